"""The content of the live page in a real Chromium."""

import json
import re

from extproc.server.admin.page import load_page

from .browser import Tab
from .live_page import Session


def test_page_is_self_contained_and_its_policy_names_its_own_code() -> None:
    page = load_page()
    assert (
        re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", page.html) == []
    )
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2


def test_shows_pools_learning_and_decisions(session: Session) -> None:
    async def steps(tab: Tab) -> None:
        text = await tab.evaluate("document.body.innerText")
        for expected in ("4 requests", "75.0 %", "25.0 %", "over capacity", "prose"):
            assert expected in text
        assert "under pressure" in text
        assert "not-shown" not in text
        rows = "document.querySelectorAll('#last tr').length"
        assert await tab.evaluate(rows) == 4
        width = "document.querySelector('#pools .fill').getBoundingClientRect().width"
        assert await tab.evaluate(width) > 20
        bars = "document.querySelectorAll('#budgets rect').length"
        assert await tab.evaluate(bars) > 10
        assert "needs 200 requests" in text
        curve = "document.querySelector('#categories polyline').getAttribute('points')"
        assert len((await tab.evaluate(curve)).split()) == 4

    session.run(steps)


def test_shows_models_where_there_are_any(session: Session) -> None:
    model = {
        "name": "<b>llama</b>",
        "pools": ["short", "long"],
        "decisions": 12,
        "share": 0.6,
        "observed": 9,
        "mean_absolute_error": 0.05,
        "bias": -0.01,
        "risk": {"stated": 0.01, "observed": 9, "exceeded": 0, "achieved": 0.0},
        "advice": None,
    }
    refusal = {"not_routed": "unknown_model", "asked": "<i>", "models": ["llama"]}

    async def steps(tab: Tab) -> None:
        assert await tab.evaluate("document.getElementById('models-part').hidden")
        await tab.evaluate(f"showModels({json.dumps({'models': [model]})})")
        text = await tab.evaluate("document.getElementById('models-part').innerText")
        for expected in ("<b>llama</b>", "60.0 %", "12", "5.0 %", "short", "long"):
            assert expected in text
        await tab.evaluate(f"showExplained({json.dumps(refusal)})")
        text = await tab.evaluate("document.getElementById('explained').innerText")
        assert "not routed: unknown model" in text
        assert "The request names model <i>; configured models: llama." in text
        await tab.evaluate("showModels({})")
        await tab.evaluate("document.getElementById('explained').replaceChildren()")

    session.run(steps)


def test_budgets_and_the_slider_are_of_the_model_that_is_chosen(
    session: Session,
) -> None:
    """The report has two models, each with its own pools, budgets and advice."""
    fleet = """(() => {
      const report = structuredClone(before), risk = {stated: 0.01, achieved: null};
      const prospect = (tokens) => ({threshold_tokens: tokens, short_fraction: 0.5,
        saving: 0.3, saving_at_most: 0.6, under_rate: 0.01});
      const advice = (tokens) => ({requests: 900, best: prospect(tokens),
        current: prospect(tokens), prospects: [prospect(tokens)]});
      const pool = (name, tokens) => ({...report.pools[0], name, threshold_tokens: tokens});
      report.pools = [pool("a-short", 4096), pool("a-long", 8192), pool("b-short", 2048),
        pool("b-long", 8192)];
      const model = (name, decisions, tokens) => ({name, decisions, share: 0.5, observed: 1,
        mean_absolute_error: 0, bias: 0, risk, budgets: report.budgets,
        pools: [`${name}-short`, `${name}-long`], advice: advice(tokens)});
      report.models = [model("a", 5, 4096), model("b", 9, 2048),
        {...model("other", 0, 2048), pools: ["a-short", "a-long"]}];
      report.last_decisions[0].base_model = "a";
      before = null; show(report); return 0; })()"""
    names = "[...document.querySelectorAll('#budgets text')].map((e) => e.textContent)"

    async def steps(tab: Tab) -> None:
        await tab.evaluate("$('pause').click()")
        await tab.evaluate(fleet)
        assert await tab.evaluate("$('subject').value") == "b"  # the busiest model
        assert "b-short" in await tab.evaluate(names)
        assert "a-short" not in await tab.evaluate(names)
        shown = "$('threshold-shown').textContent"
        assert await tab.evaluate(shown) == "2,048, in force"
        await tab.evaluate(
            "$('subject').value = 'a', $('subject').dispatchEvent(new Event('change')), 0"
        )
        assert "a-short" in await tab.evaluate(names)
        assert await tab.evaluate(shown) == "4,096, in force"
        rows = "[...$('models').children].map((e) => e.firstChild.textContent)"
        assert await tab.evaluate(rows) == ["a", "b"]  # no other rows were requested
        assert await tab.evaluate("$('last').innerText.includes('a')")
        assert not await tab.evaluate("$('last-model').hidden")
        await tab.evaluate("$('pause').click()")
        await tab.wait_for("document.getElementById('models-part').hidden")
        assert await tab.evaluate("$('subject-part').hidden && $('last-model').hidden")

    session.run(steps)


def test_shows_time_with_axes(session: Session) -> None:
    async def steps(tab: Tab) -> None:
        charts = await tab.evaluate(
            "[...document.querySelectorAll('#strip svg')].map((svg) => svg.textContent)"
        )
        assert len(charts) == 6
        for text in charts:
            assert "-15 min" in text
            assert "now" in text
        drawn = "document.querySelectorAll('#strip polygon, #strip polyline, #strip circle').length"
        assert await tab.evaluate(drawn) >= 6
        health = await tab.evaluate("document.querySelector('#health-list').innerText")
        assert "ms" in health
        assert "failed open" in health

    session.run(steps)


def test_charts_of_a_row_share_a_base_and_each_line_has_a_key(session: Session) -> None:
    """Of four pools with long names, one has a caption with more lines than the others."""
    report = (
        "(() => { const report = structuredClone(before);"
        "report.pools = ['llama-3.1-8b-instruct-short', 'llama-3.1-8b-instruct-long',"
        " 'qwen3-32b-short', 'qwen3-32b-long'].map((name) => ({...report.pools[0], name}));"
        "report.intervals = report.intervals.slice(-1).map((last) => ({...last, pools:"
        " Object.fromEntries(report.pools.map((pool) => [pool.name, 70]))}));"
        "show(report); return 0; })()"
    )
    charts = "[...document.querySelectorAll('#strip figure')]"
    bottoms = (
        f"{charts}.slice(0, 3).map((f) => f.lastChild.getBoundingClientRect().bottom)"
    )
    heights = f"{charts}.slice(0, 2).map((f) => f.firstChild.offsetHeight)"

    async def steps(tab: Tab) -> None:
        await tab.show("light", 1280)
        await tab.evaluate("$('pause').click()")
        await tab.evaluate(report)
        first, second = await tab.evaluate(heights)
        assert first > second
        assert len(set(await tab.evaluate(bottoms))) == 1
        keys = f"{charts}.map((f) => f.querySelectorAll('figcaption .dot').length)"
        assert await tab.evaluate(keys) == [4, 0, 2, 0, 0, 2]
        # A single interval is drawn, too, although an area needs two intervals.
        assert await tab.evaluate(f"{charts}[0].querySelectorAll('circle').length") == 4
        await tab.evaluate("$('pause').click()")

    session.run(steps)


def test_filters_keep_what_was_chosen(session: Session) -> None:
    async def steps(tab: Tab) -> None:
        choose = (
            "$('filter-pool').value = '{}', "
            "$('filter-pool').dispatchEvent(new Event('change')), 0"
        )
        rows = "document.querySelectorAll('#last tr').length"
        await tab.evaluate(choose.format("long"))
        assert await tab.evaluate(rows) == 1
        await tab.evaluate("poll()")
        assert await tab.evaluate(rows) == 1
        await tab.evaluate(choose.format(""))
        assert await tab.evaluate(rows) == 4

    session.run(steps)


def test_the_slider_shows_what_a_threshold_would_bring(session: Session) -> None:
    """The report contains advice, which needs at least 200 requests."""
    prospect = (
        "(tokens, saving) => ({threshold_tokens: tokens, short_fraction: 0.5, saving,"
        " saving_at_most: 0.6, under_rate: 0.01})"
    )
    steps_of = (
        f"(() => {{ const make = {prospect}; const report = structuredClone(before);"
        "report.advice = {requests: 900, best: make(4096, 0.4), current: make(8192, 0.3),"
        " prospects: [make(4096, 0.4), make(8192, 0.3)]};"
        "report.pools[0].endpoints = [{name: 'a:8000', healthy: true, running: 3,"
        " waiting: 2, kv_cache_usage: 0.42, max_model_len: 8192}];"
        "show(report); return 0; })()"
    )

    async def steps(tab: Tab) -> None:
        await tab.evaluate("$('pause').click()")
        await tab.evaluate(steps_of)
        shown = "document.querySelector('#threshold-shown').textContent"
        assert await tab.evaluate(shown) == "8,192, in force"
        advice = await tab.evaluate("$('advice').textContent")
        assert "4,096 would save about 40 %; the current one saves 30 %" in advice
        await tab.evaluate(
            "$('threshold').value = 0, $('threshold').dispatchEvent(new Event('input'))"
        )
        assert await tab.evaluate(shown) == "4,096"
        assert "40.0 %" in await tab.evaluate("$('tried').innerText")
        assert "a:8000" in await tab.evaluate("$('servers').innerText")
        assert "42 %" in await tab.evaluate("$('servers').innerText")
        assert "resume" in await tab.evaluate("$('pause').textContent")
        await tab.evaluate("$('pause').click()")

    session.run(steps)
