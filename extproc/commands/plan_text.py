"""Formats a plan for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from extproc.commands.plan_disaggregation import print_four_ways
from extproc.commands.plan_energy import print_energy
from extproc.commands.text import wrap
from extproc.fleet.emit import Serving, pools_yaml
from extproc.fleet.expense import Unit
from extproc.fleet.plan_document import Plan, PolicyRow, PoolRow
from extproc.fleet.prefix_study import PrefixStudy
from extproc.fleet.report_tables import seconds
from extproc.fleet.verdict import BASELINE, PAGED, SPLIT

_POOL_COLUMNS = (
    ("pool", 8), ("instances", 10), ("max_model_len", 14), ("max_num_seqs", 13),
    ("share", 9), ("used", 7), ("P99 TTFT", 18), ("P99 TPOT", 18), ("measured", 10),
)  # fmt: skip

#: Definitions of the papers' terms.
TERMS = (
    "alpha is the share of the requests under the threshold; rho the requests a second "
    "of a saturated short instance over those of one in today's fleet; the papers' "
    "formula is alpha (1 - 1/rho), an upper bound. Used is the share of the saturated "
    "rate."
)


def print_plan(plan: Plan, serving: Serving) -> None:
    """Print the whole plan, starting with the verdict."""
    print(wrap(plan.verdict) + "\n")
    _print_counts(plan)
    print()
    for line in _setting(plan):
        print(wrap(line))
    print()
    print_pools(plan.pools)
    print()
    for pool in plan.pools:
        print(wrap(f"{pool.name}: {serving.command(pool)}"))
    print()
    print_policies(plan.policies)
    if plan.disaggregation is not None:
        print()
        print_four_ways(plan.disaggregation)
    if plan.energy is not None:
        print()
        print_energy(plan.energy)
    if plan.sweep:
        _print_sweep(plan)
    if plan.prefix_caching is not None:
        print_prefixes(plan.prefix_caching)
    print()
    for line in _papers(plan):
        print(wrap(line))
    print(f"seed {plan.seed}, {plan.wall_time_s} s")


def print_prefixes(found: PrefixStudy) -> None:
    """Print the savings of prefix caching, by split and load balancer."""
    none, cached, split, both = found.instances.values()
    print("\nPrefix caching")
    print(
        wrap(
            f"One pool: {none} instances without, {cached} with it; split: {split} and "
            f"{both}. Caching alone saves {none - cached}, the split beside it "
            f"{cached - both}, both {none - both}."
        )
    )
    if found.reported:
        print(
            wrap(
                f"Of the prompt tokens, {found.unlimited_share:.1%} were found in a "
                "cache by the usage of the file, in whole blocks. They are taken as "
                "found on any instance; what the split or another load balancer does "
                "to them takes conversations or hashes to say."
            )
        )
        return
    print(
        wrap(
            f"Of the prompt tokens, {found.unlimited_share:.1%} would hit an unlimited "
            f"cache; {found.unlimited_share_split:.1%} with one for each "
            "class, since a conversation that outgrows the threshold leaves its prefix "
            "behind. Hit rates in these fleets:"
        )
    )
    print(f"{'':10}{'load balancer':>16}{'instances':>14}{'found':>9}{'P99 TTFT':>10}")
    for row in found.hits:
        instances = " + ".join(map(str, row.instances))
        print(
            f"{row.fleet:10}{row.balancing:>16}{instances:>14}{row.cached_share:>9.1%}"
            f"{seconds(row.p99_ttft_s):>10}"
        )


def _print_counts(plan: Plan) -> None:
    """Print the GPUs needed today, with a better max_num_seqs, and with the split."""
    for label, name in (
        ("GPUs today", BASELINE),
        ("GPUs, max_num_seqs mended", PAGED),
        ("GPUs with the split", SPLIT),
    ):
        row = plan.policies[name]
        notes = [row.title]
        if row.usd_per_year is not None:
            notes.append(f"{dollars(row.usd_per_year)} a year")
        notes += faults(row)
        print(f"{label:26}{row.gpus:>8,}")
        print(wrap("; ".join(notes), indent=4))


def faults(row: PolicyRow) -> list[str]:
    """Return a policy's faults and its shares of rejected and truncated requests."""
    found = [] if row.slo_met else ["MISSES ITS PROMISES"]
    if row.state != "steady":
        found.append(row.state)
    if row.rejected_share:
        found.append(f"rejects {row.rejected_share:.2%}")
    if row.truncated_share >= 0.00005:
        found.append(f"cuts {row.truncated_share:.2%} off")
    return found


def _setting(plan: Plan) -> list[str]:
    slo = plan.slo
    synthetic = ", synthetic" if plan.synthetic else ""
    return [
        f"{plan.workload} ({plan.source}{synthetic}) at {plan.rate:.4g} req/s on "
        f"{plan.engine}{_other_hardware(plan)}; {plan.traffic}",
        f"promised: P99 TTFT {slo.p99_ttft_s:g} s ({slo.long_ttft_s:.3g} s over "
        f"{slo.long_tokens:,} tokens), P99 TPOT {1e3 * slo.p99_tpot_s:g} ms, "
        f"preemptions {slo.preemption_rate:g} a request; {plan.headroom:.0%} of each "
        "pool's saturated rate kept free",
    ]


def _other_hardware(plan: Plan) -> str:
    """Name the pools whose GPUs differ from the fleet's."""
    others = [
        f"{pool.name} on {pool.engine}"
        for pool in plan.pools
        if pool.engine != plan.engine
    ]
    return "".join(f", {other}" for other in others)


def print_pools(pools: list[PoolRow]) -> None:
    """Print the split's pools, each P99 with its 95 % interval."""
    print("".join(f"{title:>{width}}" for title, width in _POOL_COLUMNS))
    for pool in pools:
        used = pool.figures["utilization"]
        cells = (
            pool.name,
            f"{pool.instances:,}",
            f"{pool.max_model_len:,}",
            f"{pool.max_num_seqs:,}",
            f"{pool.share_of_requests:.2%}",
            "-" if used is None else f"{used:.1%}",
            with_interval(pool.figures, pool.half_widths, "p99_ttft_s"),
            with_interval(pool.figures, pool.half_widths, "p99_tpot_s"),
            f"{pool.requests_measured:,}{'*' if pool.measured_alone else ''}",
        )
        row = zip(cells, _POOL_COLUMNS, strict=True)
        print("".join(f"{cell:>{width}}" for cell, (_, width) in row))
    if any(pool.measured_alone for pool in pools):
        print("* has too few of the fleet's requests: measured separately, for longer")


def print_policies(policies: Mapping[str, PolicyRow]) -> None:
    """Print one row for each policy, starting with the split."""
    print(
        f"{'':23} {'':>9} {'saved by':>9} {'P99':>8} {'P99':>7} {'re-':>8} {'cut':>7}\n"
        f"{'policy':23} {'instances':>9} {'the split':>9} {'TTFT':>8} {'TPOT':>7} "
        f"{'jected':>8} {'off':>7}  promises"
    )
    for name, row in policies.items():
        saved = "-" if row.saving_pct is None else f"{row.saving_pct:.1f}%"
        print(
            f"{name:23} {row.instances:9,} {saved:>9} "
            f"{seconds(row.p99_ttft_s):>8} {seconds(row.p99_tpot_s):>7} "
            f"{row.rejected_share:8.3%} {row.truncated_share:7.3%}  "
            f"{'kept' if row.slo_met else 'MISSED'}"
        )


def _print_sweep(plan: Plan) -> None:
    print("\nother thresholds, by throughput alone, saving against today's fleet:")
    print(" threshold   alpha     rho   formula  worst-case split        split")
    for point in plan.sweep:
        print(
            f"{point.threshold_tokens:10,} {point.short_fraction:7.3f} "
            f"{point.throughput_gain:7.2f} {point.formula:9.1%} "
            f"{point.worst_case_saving:17.1%} {point.paged_saving:12.1%}"
        )
    advice = plan.advice
    if advice is None:
        return
    if not advice.split:
        print("No threshold saves anything by throughput: use one pool.")
        return
    print(
        wrap(
            f"Best by throughput: {advice.threshold_tokens:,}, "
            f"{advice.saving_pct:g} % fewer instances than one pool; plan it with "
            f"--threshold {advice.threshold_tokens} before you use it:"
        )
    )
    last = plan.pools[-1].max_model_len
    print(
        pools_yaml(
            (
                ("short", advice.threshold_tokens, advice.threshold_tokens),
                ("long", last, None),
            ),
            endpoints=False,
        ),
        end="",
    )


def _papers(plan: Plan) -> list[str]:
    """Return the savings in the papers' terms."""
    lines = [TERMS]
    if len(plan.pools) > 2:
        each = "; ".join(
            f"{pool.name} alpha {pool.alpha:.4f}, rho {pool.rho:.2f}"
            for pool in plan.pools
        )
        lines.append(f"By pool: {each}.")
    saved = "no saving is claimed"
    if plan.saving_pct is not None:
        saved = f"simulated {plan.saving_pct:g} %"
    first, second = (
        plan.saving_from_not_sizing_for_the_worst_case_pct,
        plan.saving_from_the_split_pct,
    )
    if plan.compared_by != Unit.INSTANCES:
        lines.append(
            "The papers' formula takes equal instances, and these are not: "
            f"{saved} of the {plan.compared_by}."
        )
        lines.append(_money(plan))
        return lines
    if first is not None and second is not None:
        verb = "saves" if second >= 0 else "costs"
        saved += (
            f": mending max_num_seqs saves {first:g}, and the split on top of that "
            f"{verb} {abs(second):g}"
        )
    lines.append(
        f"alpha {plan.alpha:.4f}, rho {plan.rho:.2f}: formula "
        f"{plan.formula_saving_pct:g} %, {saved}."
    )
    lines.append(_money(plan))
    return lines


def _money(plan: Plan) -> str:
    if plan.usd_per_gpu_hour is None:
        return "No price given: --usd-per-gpu-hour adds dollars."
    if plan.compared_by == Unit.GPUS:
        return "A pool's GPU has no price: no dollars are compared."
    price = f"at ${plan.usd_per_gpu_hour:g} a GPU-hour and {plan.hours_per_year:,.0f} h"
    if plan.compared_by == Unit.DOLLARS:
        price = f"at each GPU's price and {plan.hours_per_year:,.0f} h"
    against = []
    for amount, what in (
        (plan.dollars_per_year_saved, "today's fleet"),
        (
            plan.dollars_per_year_saved_against_paged,
            "one pool with max_num_seqs mended",
        ),
    ):
        if amount is not None:
            verb = "saves" if amount >= 0 else "costs"
            against.append(f"{verb} {dollars(abs(amount))} a year against {what}")
    if not against:
        return f"No saving is claimed, {price}."
    return f"The split {', and '.join(against)}, {price}."


def with_interval(
    figures: Mapping[str, float | None],
    half_widths: Mapping[str, float | None],
    key: str,
) -> str:
    """Format a duration with half the width of its interval, or "?" if unknown."""
    value, half = figures[key], half_widths[key]
    if value is None:
        return seconds(value)
    return f"{seconds(value)} +- {'?' if half is None else seconds(half)}"


def dollars(amount: float) -> str:
    """Format an amount with its sign before the dollar sign."""
    return f"{'-' if amount < 0 else ''}${abs(amount):,}"
