"""A small question to the planner, which sizes in seconds."""

from dataclasses import replace
from typing import Any

from extproc.fleet.question import Question, Setting, complete_slo
from extproc.fleet.sizing import Engine
from extproc.fleet.slo import Slo
from extproc.fleet.workload import WORKLOADS, RenewalArrivals


def small_question(
    workload: str, engine: Engine, rate: float, **changes: Any
) -> Question:
    """Return a question with one threshold of 4,096 tokens and few requests."""
    lengths = WORKLOADS[workload]
    slo, budget = complete_slo(Slo(), Setting(lengths, engine, 4096, 32_768, None, 1))
    question = Question(
        lengths,
        engine,
        rate,
        RenewalArrivals(rate),
        slo,
        (4096,),
        32_768,
        budget,
        seed=1,
        asked_requests=2000,
        tried_requests=1000,
        verified_requests=1500,
    )
    return replace(question, **changes)
