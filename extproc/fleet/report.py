"""A plan as one page: no script to load, no image, no font; light and dark.

Plots are SVG drawn here, on axes that say their unit. Colours come from variables that
the page sets for either scheme, so the page needs no second set of plots.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from extproc.fleet.charts import Axis, Bar, Chart, Series, bar_chart
from extproc.fleet.planning import Question, SizedPolicy
from extproc.fleet.sensitivity import MisroutePoint
from extproc.fleet.strategy import StrategyName

_DRAWS = 50_000
_TITLES = {
    StrategyName.ROUTER: "shipped router",
    StrategyName.EMA: "the papers' estimator",
    StrategyName.BYTES_PER_4: "bytes / 4",
}

_STYLE = """
:root { color-scheme: light dark;
  --page: #fcfcfb; --text: #1c1e21; --muted: #666b73; --line: #dcdee2; --card: #ffffff;
  --a: #2563a8; --b: #c2571a; --c: #3d8361; --d: #7d5ba6; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root {
  --page: #16181b; --text: #e6e7e9; --muted: #9aa0a8; --line: #363a40; --card: #1e2125;
  --a: #6aa7e8; --b: #eb9458; --c: #74bf9b; --d: #b79be0; --bad: #f2867e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 32px 24px 64px;
  background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 17px; margin: 0 0 2px; }
p { margin: 0 0 12px; } .muted { color: var(--muted); }
.verdict { font-size: 17px; margin: 20px 0; padding-left: 14px;
  border-left: 4px solid var(--a); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr));
  gap: 12px; margin: 20px 0; }
.figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 14px; }
.figure b { display: block; font-size: 24px; font-variant-numeric: tabular-nums; }
.plots { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); }
.plots + p { margin-top: 20px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  min-width: 0; padding: 16px; } section.wide { grid-column: 1 / -1; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--muted); }
svg .strong { fill: var(--text); }
.scroll { overflow-x: auto; }
.scroll svg { min-width: 420px; } .wide .scroll svg { min-width: 640px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 8px; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; } th { vertical-align: bottom; }
th { font-weight: 600; color: var(--muted); } th:first-child, td:first-child {
  text-align: left; } tr.ours td { font-weight: 600; } .missed { color: var(--bad); }
@media (max-width: 540px) { body { padding: 16px 12px 48px; } }
"""


def render(
    question: Question,
    sized: Mapping[str, SizedPolicy],
    document: Mapping[str, Any],
    misroutes: Sequence[MisroutePoint],
) -> str:
    """The page, as HTML.

    Args:
        document: what :func:`extproc.fleet.verdict.answer` says of them.
    """
    name = escape(document["workload"])
    synthetic = " Synthetic lengths." if document["synthetic"] else ""
    return (
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        '<meta name=viewport content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: what a split would save</title>\n<style>{_STYLE}</style>\n"
        "</head>\n<body>\n"
        f"<h1>{name} at {document['rate']:g} requests a second</h1>\n"
        f"<p class=muted>{escape(document['source'])}.{synthetic} "
        f"{escape(document['engine'])}. {_promises(document)}</p>\n"
        f"<p class=verdict>{escape(document['verdict'])}</p>\n"
        f"{_figures(document)}"
        '<div class="plots">\n'
        f"{_section('GPUs by policy', _gpus(document), wide=True)}"
        f"{_section('Requests by length', _lengths(question))}"
        f"{_section('Saving by threshold', _savings(document))}"
        f"{_section('Time to the first token', _first_tokens(question, sized))}"
        f"{_section('What the router gets wrong', _misroutes(misroutes))}"
        f"{_section('Pools', _pools_table(document), wide=True)}"
        f"{_section('Every policy', _policies_table(document), wide=True)}"
        "</div>\n"
        f"{_method(document)}"
        "</body>\n</html>\n"
    )


def _section(title: str, content: tuple[str, str], *, wide: bool = False) -> str:
    note, body = content
    kind = " class=wide" if wide else ""
    return (
        f"<section{kind}>\n<h2>{escape(title)}</h2>\n<p class=muted>{note}</p>\n"
        # Where there is no room for it; with the keyboard too.
        f'<div class=scroll tabindex=0 role=region aria-label="{escape(title)}">'
        f"{body}</div>\n</section>\n"
    )


def _promises(document: Mapping[str, Any]) -> str:
    slo = document["slo"]
    return (
        f"Promised at P99: first token in {slo['p99_ttft_s']:g} s "
        f"({slo['long_ttft_s']:.3g} s over {slo['long_tokens']:,} tokens), "
        f"{1e3 * slo['p99_tpot_s']:g} ms for each further one."
    )


def _figures(document: Mapping[str, Any]) -> str:
    worst = document["baselines"]["homogeneous-worst-case"]["instances"]
    figures = (
        (f"{document['gpus']:,}", "GPUs with the split"),
        (f"{worst * document['gpus_per_instance']:,}", "with the papers' baseline"),
        (
            f"{document['saving_from_not_sizing_for_the_worst_case_pct']:g} %",
            "saved by not sizing for the worst case",
        ),
        (
            f"{document['saving_from_the_split_pct']:g} %",
            "saved by the split itself",
        ),
        (
            f"${document['dollars_per_year_saved'] / 1e6:,.2f}M",
            "a year against the papers' baseline",
        ),
    )
    cells = "".join(
        f"<div class=figure><b>{value}</b>{label}</div>" for value, label in figures
    )
    return f"<div class=figures>{cells}</div>\n"


def _gpus(document: Mapping[str, Any]) -> tuple[str, str]:
    gpus = document["gpus_per_instance"]
    rows = {"split": None, **document["baselines"]}
    bars = []
    for name, row in rows.items():
        count = document["instances"] if row is None else row["instances"]
        met = document["slo_met"] if row is None else row["slo_met"]
        notes = [] if met else ["misses the SLO"]
        for verb, key in (("rejects", "rejected_share"), ("cuts", "truncated_share")):
            if row is not None and row[key] > 0:
                notes.append(f"{verb} {row[key]:.3%}")
        bars.append(
            Bar(name, count * gpus, "a" if row is None else "c", ", ".join(notes))
        )
    note = (
        "All sized by simulation for the same promises. One that misses them at any "
        "sensible size is counted by throughput alone."
    )
    return note, bar_chart(bars)


def _lengths(question: Question) -> tuple[str, str]:
    prompts, outputs = question.workload.lengths.draw(
        np.random.default_rng(question.seed), _DRAWS
    )
    totals = prompts + outputs
    edges = np.logspace(np.log10(16), np.log10(131_072), 66)
    counts, _ = np.histogram(totals, edges)
    shares = 100 * counts / len(totals)
    chart = Chart(
        Axis("prompt + output tokens", 16, 131_072, log=True),
        Axis("% of requests", 0, float(shares.max()) * 1.1),
    )
    points = [
        point
        for left, right, share in zip(edges, edges[1:], shares, strict=False)
        for point in ((float(left), float(share)), (float(right), float(share)))
    ]
    chart.add(Series("", points, "a", filled=True))
    for threshold in (*question.thresholds, question.max_model_len):
        chart.mark(threshold, f"{threshold:,}")
    under = float((totals <= question.thresholds[-1]).mean())
    tokens = float(totals[totals <= question.thresholds[-1]].sum() / totals.sum())
    note = (
        f"{under:.2%} of the requests, and {tokens:.1%} of the tokens, are in requests "
        f"of up to {question.thresholds[-1]:,}."
    )
    return note, chart.svg()


def _savings(document: Mapping[str, Any]) -> tuple[str, str]:
    points = document["sweep"]
    note = (
        "Against one pool sized for the worst case, by throughput alone, routed "
        "without error. The dotted line is what that pool saves alone with paged KV."
    )
    if not points:
        return "Not swept.", ""
    kinds = (
        ("alpha (1 - 1/rho)", "formula", "d"),
        ("split, worst-case max_num_seqs", "worst_case_saving", "b"),
        ("split, paged", "paged_saving", "a"),
    )
    values = [100 * p[key] for p in points for _, key, _ in kinds]
    alone = 100 * points[0]["unsplit_paged_saving"]
    low = min(0.0, *values, alone)
    chart = Chart(
        Axis(
            "threshold, tokens",
            points[0]["threshold_tokens"],
            max(points[-1]["threshold_tokens"], 2 * points[0]["threshold_tokens"]),
            log=True,
        ),
        Axis("% of instances saved", low, max(*values, alone, 10) * 1.08),
    )
    for title, key, colour in kinds:
        chart.add(
            Series(
                title, [(p["threshold_tokens"], 100 * p[key]) for p in points], colour
            )
        )
    chart.level(alone)
    return note, chart.svg()


def _first_tokens(
    question: Question, sized: Mapping[str, SizedPolicy]
) -> tuple[str, str]:
    shown = (
        ("homogeneous-worst-case", "c"),
        ("homogeneous-paged", "d"),
        ("split", "a"),
    )
    longest = max(sized[name].result.ttft.quantile(0.999) for name, _ in shown)
    chart = Chart(
        Axis("seconds to the first token", 0.01, max(longest, 1.0), log=True),
        Axis("% of requests", 0, 100),
    )
    for name, colour in shown:
        points = [
            (max(seconds, 0.01), 100 * share)
            for seconds, share in sized[name].result.ttft.cumulative()
            if seconds <= longest
        ]
        chart.add(Series(name, points, colour))
    chart.mark(question.slo.p99_ttft_s, f"{question.slo.p99_ttft_s:g} s")
    return "Share of requests that have it by then, at the sizes above.", chart.svg()


def _misroutes(points: Sequence[MisroutePoint]) -> tuple[str, str]:
    note = (
        "Requests sent to a pool below (solid) or above (dashed) their own, as bytes a "
        "token vary between requests more or less than they do (1)."
    )
    highest = max([100 * max(p.under, p.over) for p in points] + [0.1])
    chart = Chart(
        Axis("variation of bytes a token, times measured", 0, 3),
        Axis("% of requests", 0, highest * 1.1),
    )
    for strategy, colour in zip(
        dict.fromkeys(p.strategy for p in points), "abd", strict=False
    ):
        own = [p for p in points if p.strategy is strategy]
        title = _TITLES.get(strategy, strategy)
        chart.add(
            Series(title, [(p.variation_factor, 100 * p.under) for p in own], colour)
        )
        chart.add(
            Series(
                "",
                [(p.variation_factor, 100 * p.over) for p in own],
                colour,
                dashed=True,
            )
        )
    return note, chart.svg()


def _table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    # vLLM's long names may break after an underscore.
    titles = "".join(
        f"<th>{escape(title).replace('_', '_<wbr>')}</th>" for title in head
    )
    body = "".join(
        f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"
        for kind, cells in rows
    )
    return f"<table><thead><tr>{titles}</tr></thead>\n<tbody>{body}</tbody></table>"


def _pools_table(document: Mapping[str, Any]) -> tuple[str, str]:
    rows = [
        (
            "",
            (
                escape(pool["name"]),
                f"{pool['instances']:,}",
                f"{pool['max_model_len']:,}",
                f"{pool['max_num_seqs']:,}",
                f"{pool['max_num_batched_tokens']:,}",
                f"{pool['share_of_requests']:.2%}",
                _seconds(pool["p50_ttft_s"]),
                _seconds(pool["p99_ttft_s"]),
                _seconds(pool["p99_tpot_s"]),
                f"{pool['mean_running']:.1f}",
                f"{pool['mean_kv_cache_usage']:.1%}",
                f"{pool['preemption_rate']:.3f}",
            ),
        )
        for pool in document["pools"]
    ]
    head = (
        "pool", "instances", "max_model_len", "max_num_seqs", "max_num_batched_tokens",
        "requests", "P50 TTFT", "P99 TTFT", "P99 TPOT", "running", "KV used",
        "preemptions a request",
    )  # fmt: skip
    return "The split with the shipped router, as simulated.", _table(head, rows)


def _policies_table(document: Mapping[str, Any]) -> tuple[str, str]:
    rows = []
    for name, row in document["baselines"].items():
        met = "met" if row["slo_met"] else "<span class=missed>missed</span>"
        rows.append(
            (
                "",
                (
                    escape(name),
                    f"{row['instances']:,}",
                    f"{row['saving_pct']:g} %",
                    _seconds(row["p99_ttft_s"]),
                    _seconds(row["p99_tpot_s"]),
                    f"{row['rejected_share']:.3%}",
                    f"{row['misrouted_short']:.3%}",
                    f"{row['misrouted_long']:.3%}",
                    f"{row['preemptions']:,}",
                    met,
                ),
            )
        )
    met = "met" if document["slo_met"] else "<span class=missed>missed</span>"
    ours = ("split", f"{document['instances']:,}", "", "", "", "",
            f"{document['misrouted_short']:.3%}", f"{document['misrouted_long']:.3%}",
            "", met)  # fmt: skip
    head = (
        "policy", "instances", "saved by the split", "P99 TTFT", "P99 TPOT", "rejected",
        "sent too short", "sent too long", "preemptions", "SLO",
    )  # fmt: skip
    titles = "".join(
        f"<b>{escape(name)}</b>: {escape(row['title'])}. "
        for name, row in document["baselines"].items()
    )
    return titles, _table(head, [(" class=ours", ours), *rows])


def _method(document: Mapping[str, Any]) -> str:
    return (
        "<p class=muted>Simulated with the decisions of vLLM's v1 scheduler "
        "(0.32.0: chunked prefill, paged KV, preemption by recompute; no prefix "
        "caching, no speculative decoding). Step times are a roofline of data sheets "
        "unless a profile was given: measure yours with <code>extproc profile</code>. "
        f"Seed {document['seed']}; client limits {escape(document['declared'])}; "
        f"${document['usd_per_gpu_hour']:g} a GPU-hour, "
        f"{document['hours_per_year']:,.0f} hours a year; "
        f"alpha {document['alpha']:.4f}, rho {document['rho']:.2f}, formula "
        f"{document['formula_saving_pct']} %; {document['wall_time_s']} s to compute."
        "</p>\n"
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.0f} ms"
