"""The size of a fleet in instances, GPUs and dollars, by pool.

Fleets whose instances are all equal are compared by number of instances. If a pool has
other GPUs, numbers of instances or GPUs are not comparable, so fleets are compared in
dollars. If a GPU has no price, they are compared in GPUs as a last resort.
"""

from collections.abc import Iterator
from enum import StrEnum

from extproc.fleet.planning import SizedPolicy
from extproc.fleet.question import Question
from extproc.fleet.sizing import Engine


class Unit(StrEnum):
    """The unit in which the fleets of a plan are compared."""

    INSTANCES = "instances"
    GPUS = "GPUs"
    DOLLARS = "dollars"


def unit(question: Question) -> Unit:
    """Return the unit in which the plan's fleets are compared."""
    if not question.pool_hardware:
        return Unit.INSTANCES
    engines = [
        question.engine,
        *(own.engine for own in question.pool_hardware.values()),
    ]
    return Unit.DOLLARS if all(e.usd_per_gpu_hour for e in engines) else Unit.GPUS


def gpus(question: Question, policy: SizedPolicy) -> int:
    """Return the number of GPUs of all pools."""
    return sum(count * engine.gpus for count, engine in _parts(question, policy))


def usd_per_hour(question: Question, policy: SizedPolicy) -> float | None:
    """Return the cost of all pools in dollars an hour; None if a GPU has no price."""
    total = 0.0
    for count, engine in _parts(question, policy):
        if not engine.usd_per_gpu_hour:
            return None
        total += count * engine.gpus * engine.usd_per_gpu_hour
    return total


def amount(question: Question, policy: SizedPolicy) -> float:
    """Return the size of a policy's fleet in the unit of comparison."""
    chosen = unit(question)
    if chosen is Unit.DOLLARS:
        return usd_per_hour(question, policy) or 0.0
    return policy.total if chosen is Unit.INSTANCES else gpus(question, policy)


def _parts(question: Question, policy: SizedPolicy) -> Iterator[tuple[int, Engine]]:
    for tier, count in zip(policy.policy.tiers, policy.instances, strict=True):
        yield count, question.hardware(tier.name).engine
