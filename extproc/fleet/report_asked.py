"""The optional sections of a plan's page.

The sections are prefix caching, separate prefill and decode, and energy. Each has a
title, a note and a body, which :func:`extproc.fleet.report.render` arranges.
"""

from collections.abc import Iterator
from html import escape

from extproc.fleet.energy_rows import EnergyRows
from extproc.fleet.four_ways import FourWays
from extproc.fleet.plan_document import Plan
from extproc.fleet.prefix_study import PrefixStudy
from extproc.fleet.report_tables import seconds, share, table

_BYTES_PER_GBIT = 1e9 / 8


def asked_sections(plan: Plan) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield each section's title, note and body; note and body are HTML."""
    if plan.prefix_caching is not None:
        yield "Prefix caching", _prefixes(plan.prefix_caching)
    if plan.disaggregation is not None:
        yield "Separate prefill and decode", _four_ways(plan.disaggregation)
    if plan.energy is not None:
        yield "Energy and carbon", _energy(plan.energy)


def _prefixes(found: PrefixStudy) -> tuple[str, str]:
    none, cached, split, both = found.instances.values()
    note = (
        f"One pool: {none:,} instances without caching, {cached:,} with it; split: "
        f"{split:,} and {both:,}. "
    )
    if found.reported:
        note += (
            f"{found.unlimited_share:.1%} of the prompt tokens were found in a cache "
            "by the usage of the file, in whole blocks, and count as found on any "
            "instance. Hits in these fleets:"
        )
    else:
        note += (
            f"A cache of unlimited size contains {found.unlimited_share:.1%} of the "
            "prompt tokens, and one for each class "
            f"{found.unlimited_share_split:.1%}: a conversation that outgrows the "
            "threshold loses its prefix. Hits in these fleets, by load balancer:"
        )
    rows = [
        (
            "",
            (
                f"{escape(row.fleet)}, {escape(row.balancing)}",
                " + ".join(f"{count:,}" for count in row.instances),
                share(row.cached_share),
                seconds(row.p99_ttft_s),
            ),
        )
        for row in found.hits
    ]
    head = ("fleet, load balancer", "instances", "found", "P99 TTFT")
    return note, table(head, rows)


def _four_ways(found: FourWays) -> tuple[str, str]:
    rows = []
    for way in found.ways:
        kept = "kept" if way.slo_met else "<span class=missed>missed</span>"
        rows.append(
            (" class=ours", (escape(way.name), f"{way.gpus:,}", "", "", "", "", kept))
        )
        for pair in way.pairs:
            kept = "kept" if pair.slo_met else "<span class=missed>missed</span>"
            rows.append(
                (
                    "",
                    (
                        escape(pair.name),
                        "",
                        f"{pair.prefill:,} + {pair.decode:,}",
                        seconds(pair.p99_ttft_s),
                        seconds(pair.p99_tpot_s),
                        seconds(pair.mean_transfer_s),
                        kept,
                    ),
                )
            )
    gbits = found.transfer_bytes_per_s / _BYTES_PER_GBIT
    note = (
        f"{escape(found.verdict)} The KV cache is transferred at {gbits:g} Gbit/s an "
        f"instance, {found.kv_bytes_per_token / 1024:,.0f} KiB a token."
    )
    head = (
        "way", "GPUs", "prefill + decode instances", "P99 TTFT", "P99 TPOT", "transfer",
        "SLO",
    )  # fmt: skip
    return note, table(head, rows)


def _energy(found: EnergyRows) -> tuple[str, str]:
    rows = [
        (
            "",
            (
                escape(row.name),
                f"{row.gpus:,}",
                f"{row.watts_per_gpu:,.0f}",
                share(row.idle),
                str(row.energy.kwh_per_year.scaled(1e-6)),
                str(row.energy.joules_per_token),
                str(row.energy.kg_co2_per_year.scaled(1e-3)),
            ),
        )
        for row in found.rows
    ]
    kind = "" if found.measured else ", not measured on this GPU"
    note = f"{escape(found.relation)} Power curve: {escape(found.source)}{kind}."
    head = (
        "fleet", "GPUs", "W a GPU", "idle", "GWh a year", "J an output token",
        "t CO2 a year",
    )  # fmt: skip
    return note, table(head, rows)
