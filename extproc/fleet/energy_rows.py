"""Energy of a plan's policies, compared with the policies' numbers of GPUs."""

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

#: Requests per tried size of a plan, divided by the requests over which the energy of
#: each instance is measured: by default, 12,000 and 2,000.
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
        idle, decode, prefill: shares of the time of the policy's GPUs.
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
    """The energy of all policies."""

    rows: tuple[EnergyRow, ...]
    relation: str
    """A sentence that compares the change in power with the change in number of GPUs.
    """
    source: str
    """Source of the power curve."""
    measured: bool


def energy_rows(
    question: Question,
    sized: Mapping[str, SizedPolicy],
    curve: PowerCurve,
    around: Surroundings,
    pool_curves: Mapping[str, PowerCurve] | None = None,
) -> EnergyRows:
    """Simulate one instance per pool and policy; compare policies with the first one.

    Args:
        curve: power curve of the fleet's GPU.
        pool_curves: power curves of pools with other GPUs, by pool name.
    """
    others = pool_curves or {}
    rows = tuple(
        _row(name, question, policy, curve, others, around)
        for name, policy in sized.items()
    )
    curves = list(dict.fromkeys([curve, *others.values()]))
    first = rows[0]
    parts = [
        f"{row.name}: {row.gpus / first.gpus - 1:+.0%} GPUs, "
        f"{row.energy.gpu_megawatts / first.energy.gpu_megawatts - 1:+.0%} power of "
        "the GPUs"
        for row in rows[1:]
    ]
    relation = f"Against {first.name}, {'; '.join(parts)}." if parts else ""
    source = "; ".join(dict.fromkeys(each.source for each in curves))
    return EnergyRows(rows, relation, source, all(each.measured for each in curves))


def _row(
    name: str,
    question: Question,
    policy: SizedPolicy,
    curve: PowerCurve,
    pool_curves: Mapping[str, PowerCurve],
    around: Surroundings,
) -> EnergyRow:
    loads = [
        Load(
            instances * question.hardware(tier.name).engine.gpus,
            question.hardware(tier.name).engine.gpus,
            watch(
                tier.limits,
                question.hardware(tier.name).engine.step_time,
                RenewalArrivals(question.rate * traffic.share / instances),
                traffic.lengths,
                pool_curves.get(tier.name, curve),
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
