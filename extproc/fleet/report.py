"""A plan as one HTML page without scripts, images or fonts, in light and dark mode.

Plots are SVG with units on their axes. The colors of a plot are CSS variables, which
the page sets for light and dark mode, so one set of plots is enough.
"""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from extproc.fleet.charts import Axis, Bar, Chart, Series, bar_chart
from extproc.fleet.emit import Serving, pools_yaml
from extproc.fleet.expense import Unit
from extproc.fleet.plan_document import Plan, PolicyRow
from extproc.fleet.planning import SizedPolicy
from extproc.fleet.question import Question
from extproc.fleet.report_asked import asked_sections
from extproc.fleet.report_style import STYLE
from extproc.fleet.report_tables import dollars, interval, number, share, table
from extproc.fleet.sensitivity import MisroutePoint
from extproc.fleet.strategy import StrategyName
from extproc.fleet.verdict import BASELINE, PAGED, SPLIT

_DRAWS = 50_000
_TITLES = {
    StrategyName.ROUTER: "shipped router",
    StrategyName.EMA: "the papers' estimator",
    StrategyName.BYTES_PER_4: "bytes / 4",
}


def render(
    question: Question,
    sized: Mapping[str, SizedPolicy],
    plan: Plan,
    misroutes: Sequence[MisroutePoint],
    serving: Serving,
) -> str:
    """Return the page as HTML.

    Args:
        plan: the result of :func:`extproc.fleet.plan_document.answer` for the other
            arguments.
    """
    name = escape(plan.workload)
    synthetic = " Synthetic lengths." if plan.synthetic else ""
    sections = [
        _section("GPUs by policy", _gpus(plan), wide=True),
        _section("Settings to apply", _apply(plan, serving), wide=True),
        _section("Pools of the split", _pools_table(plan), wide=True),
        _section("Requests by length", _lengths(question)),
        _section("Time to the first token", _first_tokens(question, sized)),
    ]
    if plan.sweep:
        sections.append(_section("Saving by threshold", _savings(plan)))
    sections.append(_section("Routing errors", _misroutes(misroutes)))
    # Wide sections follow the plots, which are side by side.
    sections += [
        _section(title, content, wide=True) for title, content in asked_sections(plan)
    ]
    sections += [
        _section("Every policy", _policies_table(plan), wide=True),
    ]
    return (
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        '<meta name=viewport content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: what a split would save</title>\n<style>{STYLE}</style>\n"
        "</head>\n<body>\n"
        f"<h1>{name} at {plan.rate:.4g} requests a second</h1>\n"
        f"<p class=muted>{escape(plan.source)}.{synthetic} {escape(plan.traffic)}. "
        f"{escape(plan.engine)}. {_promises(plan)}</p>\n"
        f"<p class=verdict>{escape(plan.verdict)}</p>\n"
        f"{_figures(plan)}"
        f'<div class="plots">\n{"".join(sections)}</div>\n'
        f"{_method(plan)}"
        "</body>\n</html>\n"
    )


def _section(title: str, content: tuple[str, str], *, wide: bool = False) -> str:
    note, body = content
    kind = " class=wide" if wide else ""
    return (
        f"<section{kind}>\n<h2>{escape(title)}</h2>\n<p class=muted>{note}</p>\n"
        # A wide body can be scrolled, also with the keyboard.
        f'<div class=scroll tabindex=0 role=region aria-label="{escape(title)}">'
        f"{body}</div>\n</section>\n"
    )


def _promises(plan: Plan) -> str:
    slo = plan.slo
    return (
        f"SLO at P99: first token in {slo.p99_ttft_s:g} s "
        f"({slo.long_ttft_s:.3g} s over {slo.long_tokens:,} tokens), "
        f"{1e3 * slo.p99_tpot_s:g} ms per further token; "
        f"{plan.headroom:.0%} of each pool's saturated rate kept free."
    )


def _figures(plan: Plan) -> str:
    figures = [
        (f"{plan.policies[name].gpus:,}{_mark(plan.policies[name])}", label)
        for name, label in (
            (BASELINE, "GPUs today, max_num_seqs sized for the worst case"),
            (PAGED, "GPUs with max_num_seqs mended, no router"),
            (SPLIT, "GPUs with the split"),
        )
    ]
    for amount, label in (
        (plan.dollars_per_year_saved, "a year, the split against today"),
        (
            plan.dollars_per_year_saved_against_paged,
            "a year, the split against one pool mended",
        ),
    ):
        if amount is not None:
            verb = "saved" if amount >= 0 else "more"
            figures.append((f"{dollars(abs(amount))} {verb}", label))
    if plan.usd_per_gpu_hour is None:
        figures.append(("no price given", "--usd-per-gpu-hour adds dollars"))
    cells = "".join(
        f"<div class=figure><b>{value}</b>{label}</div>" for value, label in figures
    )
    marked = any(_mark(plan.policies[name]) for name in (BASELINE, PAGED, SPLIT))
    note = "<p class=muted>* misses its SLO or rejects requests.</p>\n"
    return f"<div class=figures>{cells}</div>\n{note if marked else ''}"


def _mark(row: PolicyRow) -> str:
    return "" if row.slo_met and not row.rejected_share else "*"


def _gpus(plan: Plan) -> tuple[str, str]:
    bars = []
    for name, row in plan.policies.items():
        notes = [] if row.slo_met else ["misses its SLO"]
        for verb, part in (
            ("rejects", row.rejected_share),
            ("cuts", row.truncated_share),
        ):
            if part >= 0.000005:
                notes.append(f"{verb} {part:.3%}")
        bars.append(
            Bar(name, row.gpus, "a" if name == SPLIT else "c", ", ".join(notes))
        )
    note = (
        "All are sized by simulation for the same SLO. A policy that misses it at any "
        "sensible size is sized by throughput alone."
    )
    return note, bar_chart(bars)


def _apply(plan: Plan, serving: Serving) -> tuple[str, str]:
    """Return text to copy: each pool's command line, and the router's ``pools``."""
    commands = "".join(
        f"<p>{pool.instances:,} of <b>{escape(pool.name)}</b>, "
        f"{escape(pool.engine)}</p>"
        f"<pre>{escape(serving.command(pool))}</pre>"
        for pool in plan.pools
    )
    last = plan.pools[-1]
    yaml = pools_yaml(
        [
            (p.name, p.max_model_len, None if p is last else p.threshold_tokens)
            for p in plan.pools
        ]
    )
    advice = ""
    if plan.advice is not None and plan.advice.split:
        advice = (
            f" By throughput alone {plan.advice.threshold_tokens:,} is the best "
            f"threshold: {plan.advice.saving_pct:g} % fewer instances than one pool."
        )
    note = (
        "<code>extproc plan --emit DIR</code> writes these, and patches for "
        f"Deployments on request.{advice}"
    )
    return note, f"{commands}<p>The router's configuration</p><pre>{escape(yaml)}</pre>"


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
        f"Requests of up to {question.thresholds[-1]:,} tokens are {under:.2%} of all "
        f"requests, and have {tokens:.1%} of all tokens."
    )
    return note, chart.svg() + chart.legend()


def _savings(plan: Plan) -> tuple[str, str]:
    points = plan.sweep
    note = (
        "Share of today's instances saved, by throughput alone and with error-free "
        "routing."
    )
    lines = (
        ("alpha (1 - 1/rho)", [p.formula for p in points], "d"),
        ("split, worst-case max_num_seqs", [p.worst_case_saving for p in points], "b"),
        ("split", [p.paged_saving for p in points], "a"),
    )
    values = [100 * value for _, column, _ in lines for value in column]
    alone = 100 * points[0].unsplit_paged_saving
    low = min(0.0, *values, alone)
    first, last = points[0].threshold_tokens, points[-1].threshold_tokens
    chart = Chart(
        Axis("threshold, tokens", first, max(last, 2 * first), log=True),
        Axis("% of instances saved", low, max(*values, alone, 10) * 1.08),
    )
    for title, column, color in lines:
        pairs = [
            (float(point.threshold_tokens), 100 * value)
            for point, value in zip(points, column, strict=True)
        ]
        chart.add(Series(title, pairs, color))
    chart.level(alone, "one pool, max_num_seqs mended")
    return note, chart.svg() + chart.legend()


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
    for name, color in shown:
        points = [
            (max(seconds, 0.01), 100 * share)
            for seconds, share in sized[name].result.ttft.cumulative()
            if seconds <= longest
        ]
        chart.add(Series(name, points, color))
    chart.mark(question.slo.p99_ttft_s, f"{question.slo.p99_ttft_s:g} s")
    note = "Share of requests with a first token by then, at the sizes above."
    return note, chart.svg() + chart.legend()


def _misroutes(points: Sequence[MisroutePoint]) -> tuple[str, str]:
    note = (
        "Requests sent to a pool below (solid) or above (dashed) their own, by the "
        "variation of bytes per token between requests (1: as measured). The shipped "
        "router uses a bound that one prompt in a hundred exceeds: it sends more "
        "requests too long, so that few are sent too short."
    )
    highest = max([100 * max(p.under, p.over) for p in points] + [0.1])
    chart = Chart(
        Axis("variation of bytes per token, relative to measured", 0, 3),
        Axis("% of requests", 0, highest * 1.1),
    )
    for strategy, color in zip(
        dict.fromkeys(p.strategy for p in points), "abd", strict=False
    ):
        own = [p for p in points if p.strategy is strategy]
        title = _TITLES.get(strategy, strategy)
        chart.add(
            Series(title, [(p.variation_factor, 100 * p.under) for p in own], color)
        )
        chart.add(
            Series(
                f"{title}, above",
                [(p.variation_factor, 100 * p.over) for p in own],
                color,
                dashed=True,
            )
        )
    return note, chart.svg() + chart.legend()


def _pools_table(plan: Plan) -> tuple[str, str]:
    rows = []
    for pool in plan.pools:
        values = pool.figures
        rows.append(
            (
                "",
                (
                    f"{escape(pool.name)}, {pool.max_model_len:,}",
                    f"{pool.instances:,}",
                    f"{pool.share_of_requests:.2%}",
                    share(values["utilization"]),
                    interval(pool.figures, pool.half_widths, "mean_ttft_s"),
                    interval(pool.figures, pool.half_widths, "p99_ttft_s"),
                    interval(pool.figures, pool.half_widths, "p99_tpot_s"),
                    number(values["mean_running"]),
                    share(values["mean_kv_cache_usage"]),
                    number(values["preemption_rate"], 3),
                    f"{pool.requests_measured:,}{'*' if pool.measured_alone else ''}",
                ),
            )
        )
    head = (
        "pool, window", "instances", "requests", "used", "mean TTFT", "P99 TTFT",
        "P99 TPOT", "running an instance", "KV used", "preemptions a request",
        "measured",
    )  # fmt: skip
    note = (
        "With the shipped router, in the steady state: after the fleet has filled, and "
        "until two halves agree. Used: share of the saturated rate. &#177;: half of a "
        "95 % interval. *: too few of the fleet's requests reach it; it was measured "
        "alone, for longer."
    )
    return note, table(head, rows)


def _policies_table(plan: Plan) -> tuple[str, str]:
    rows = []
    for name, row in plan.policies.items():
        met = "kept" if row.slo_met else "<span class=missed>missed</span>"
        saved = "-" if row.saving_pct is None else f"{row.saving_pct:g} %"
        figures = {"p99_ttft_s": row.p99_ttft_s, "p99_tpot_s": row.p99_tpot_s}
        rows.append(
            (
                " class=ours" if name == SPLIT else "",
                (
                    escape(name),
                    f"{row.instances:,}",
                    saved,
                    interval(figures, row.half_widths, "p99_ttft_s"),
                    interval(figures, row.half_widths, "p99_tpot_s"),
                    f"{row.rejected_share:.3%}",
                    f"{row.truncated_share:.3%}",
                    f"{row.misrouted_short:.3%}",
                    f"{row.misrouted_long:.3%}",
                    f"{row.preemptions:,}",
                    met,
                ),
            )
        )
    head = (
        "policy", "instances", "saved by the split", "P99 TTFT", "P99 TPOT", "rejected",
        "cut off", "sent too short", "sent too long", "preemptions", "SLO",
    )  # fmt: skip
    titles = "".join(
        f"<b>{escape(name)}</b>: {escape(row.title)}. "
        for name, row in plan.policies.items()
    )
    return titles, table(head, rows)


def _method(plan: Plan) -> str:
    price = "no price given"
    if plan.usd_per_gpu_hour is not None:
        price = (
            f"${plan.usd_per_gpu_hour:g} a GPU-hour, {plan.hours_per_year:,.0f} hours "
            "a year"
        )
    if plan.compared_by == Unit.DOLLARS:
        price = f"each GPU's price, {plan.hours_per_year:,.0f} hours a year"
    return (
        "<p class=muted>Simulated with the decisions of vLLM's v1 scheduler "
        "(0.32.0: chunked prefill, paged KV, prefix caching, asynchronous scheduling, "
        "preemption by recompute; no speculative decoding). Step times are a roofline "
        "of data sheets "
        "unless a profile was given: measure yours with <code>extproc profile</code>. "
        f"Seed {plan.seed}; client limits {escape(plan.declared)}; {price}. In the "
        "papers' terms alpha, the share of the requests under the threshold, is "
        f"{plan.alpha:.4f}; rho, the gain of a short instance over one of today's, "
        f"{plan.rho:.2f}; and alpha (1 - 1/rho), an upper bound of the saving, "
        f"{plan.formula_saving_pct:g} %. {plan.wall_time_s} s to compute.</p>\n"
    )
