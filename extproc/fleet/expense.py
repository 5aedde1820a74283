"""What a fleet takes: instances, GPUs and dollars, each pool with its own GPU.

Fleets whose instances are all alike are compared by their number. If a pool has other
GPUs, a number of instances or GPUs compares nothing: dollars do or, without a price of
each GPU, GPUs as a last resort.
"""

from collections.abc import Iterator
from enum import StrEnum

from extproc.fleet.planning import SizedPolicy
from extproc.fleet.question import Question
from extproc.fleet.sizing import Engine


class Unit(StrEnum):
    """What two fleets of a plan are compared by."""

    INSTANCES = "instances"
    GPUS = "GPUs"
    DOLLARS = "dollars"


def unit(question: Question) -> Unit:
    """By what the plan's fleets are compared."""
    if not question.pool_hardware:
        return Unit.INSTANCES
    engines = [
        question.engine,
        *(own.engine for own in question.pool_hardware.values()),
    ]
    return Unit.DOLLARS if all(e.usd_per_gpu_hour for e in engines) else Unit.GPUS


def gpus(question: Question, policy: SizedPolicy) -> int:
    """GPUs of all pools."""
    return sum(count * engine.gpus for count, engine in _parts(question, policy))


def usd_per_hour(question: Question, policy: SizedPolicy) -> float | None:
    """Dollars an hour of all pools; None if one of their GPUs has no price."""
    total = 0.0
    for count, engine in _parts(question, policy):
        if not engine.usd_per_gpu_hour:
            return None
        total += count * engine.gpus * engine.usd_per_gpu_hour
    return total


def amount(question: Question, policy: SizedPolicy) -> float:
    """The policy in the unit that the plan's fleets are compared by."""
    chosen = unit(question)
    if chosen is Unit.DOLLARS:
        return usd_per_hour(question, policy) or 0.0
    return policy.total if chosen is Unit.INSTANCES else gpus(question, policy)


def _parts(question: Question, policy: SizedPolicy) -> Iterator[tuple[int, Engine]]:
    for tier, count in zip(policy.policy.tiers, policy.instances, strict=True):
        yield count, question.hardware(tier.name).engine
