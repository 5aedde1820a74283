"""Energy of a plan's policies side by side, compared with their numbers of GPUs."""

from collections.abc import Mapping
from dataclasses import dataclass

from extproc.fleet.energy import (
    GRID_G_PER_KWH,
    HOST_WATTS,
    PUE,
    Draw,
    Energy,
    Load,
    PowerCurve,
    Range,
    fleet_energy,
    watch,
)
from extproc.fleet.planning import SizedPolicy
from extproc.fleet.question import Question
from extproc.fleet.workload import RenewalArrivals

#: A plan's 12,000 requests per size tried give 2,000 for the energy of each instance.
_TRIED_FOR_EACH_WATCHED = 6


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Power and carbon factors outside the GPUs."""

    host_watts: Range = HOST_WATTS
    pue: Range = PUE
    grid_g_per_kwh: Range = GRID_G_PER_KWH


@dataclass(frozen=True, slots=True)
class EnergyRow:
    """Energy of one policy.

    Attributes:
        idle, decode, prefill: shares of its GPUs' time.
    """

    name: str
    gpus: int
    watts_per_gpu: float
    idle: float
    decode: float
    prefill: float
    energy: Energy


@dataclass(frozen=True, slots=True)
class EnergyRows:
    """The energy of all policies, side by side."""

    rows: tuple[EnergyRow, ...]
    relation: str
    """The changes of power and of GPUs compared, in a sentence."""
    source: str
    """Source of the power curve."""
    measured: bool


def energy_rows(
    question: Question,
    sized: Mapping[str, SizedPolicy],
    curve: PowerCurve,
    around: Surroundings,
) -> EnergyRows:
    """Simulate one instance per pool and policy; compare each policy with the first."""
    rows = tuple(
        _row(name, question, policy, curve, around) for name, policy in sized.items()
    )
    first = rows[0]
    parts = [
        f"{row.name}: {row.gpus / first.gpus - 1:+.0%} GPUs, "
        f"{row.energy.gpu_megawatts / first.energy.gpu_megawatts - 1:+.0%} power of "
        "the GPUs"
        for row in rows[1:]
    ]
    relation = f"Against {first.name}, {'; '.join(parts)}." if parts else ""
    return EnergyRows(rows, relation, curve.source, curve.measured)


def _row(
    name: str,
    question: Question,
    policy: SizedPolicy,
    curve: PowerCurve,
    around: Surroundings,
) -> EnergyRow:
    per_instance = question.engine.gpus
    loads = [
        Load(
            instances * per_instance,
            per_instance,
            watch(
                tier.limits,
                question.engine.step_time,
                RenewalArrivals(question.rate * traffic.share / instances),
                traffic.lengths,
                curve,
                question.seed,
                question.tried_requests // _TRIED_FOR_EACH_WATCHED,
            ),
        )
        for tier, traffic, instances in zip(
            policy.policy.tiers,
            policy.assignment.pools,
            policy.instances,
            strict=True,
        )
        if traffic.share and len(traffic.lengths.prompts)
    ]
    gpus = sum(load.gpus for load in loads)

    def mean(part: str) -> float:
        total: float = sum(load.gpus * getattr(load.draw, part) for load in loads)
        return total / gpus

    fields = Draw.__dataclass_fields__.keys() - {"output_tokens_per_s"}
    shares = {part: mean(part) for part in fields}
    watts = shares.pop("watts")
    energy = fleet_energy(
        loads,
        host_watts=around.host_watts,
        pue=around.pue,
        grid_g_per_kwh=around.grid_g_per_kwh,
    )
    return EnergyRow(name, gpus, watts, **shares, energy=energy)
