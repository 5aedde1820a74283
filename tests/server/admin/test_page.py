"""The live page in a real Chromium: content, keyboard use, both color schemes."""

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from extproc.address import Address
from extproc.exchange.body_parser import parse_request
from extproc.exchange.events import Observation
from extproc.routing.policy import PoolLoad
from extproc.routing.request import Request
from extproc.routing.router import Outcome
from extproc.server.admin.explain import Explainer
from extproc.server.admin.page import load_page
from extproc.server.admin.server import AdminServer
from extproc.server.admin.status import StatusReporter
from extproc.server.observe.metrics import Metrics
from extproc.server.observe.recent import RecentDecisions
from extproc.server.observe.timeline import Timeline

from ..in_force import make_in_force
from .browser import CHROMIUM, WAIT_S, Tab, open_tab


class Session:
    """A browser, a tab, and an admin port on one event loop."""

    def __init__(self, profile: Path) -> None:
        self.runner = asyncio.Runner()
        self._profile = profile
        self.url = ""
        self.tab: Tab

    def run(self, steps: Callable[[Tab], Awaitable[None]]) -> None:
        async def bounded() -> None:
            await asyncio.wait_for(steps(self.tab), 2 * WAIT_S)

        self.runner.run(bounded())

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        self.admin = make_admin()
        self.url = f"http://{await self.admin.start()}/"
        stack.push_async_callback(self.admin.stop)
        self.tab = await open_tab(stack, self._profile)
        await self.tab.show()
        await self.tab.call("Page.navigate", url=self.url)
        await self.tab.wait_for("document.querySelector('#last tr')")


def make_admin() -> AdminServer:
    """An admin port with four decisions."""
    in_force = make_in_force(loads=lambda: {"long": PoolLoad(under_pressure=True)})
    (router,) = in_force.now.router.routers
    metrics = Metrics()
    history = RecentDecisions(in_force, lambda: 1_700_000_000.0)
    times = iter(range(1_700_000_000, 1_700_001_000, 10))
    timeline = Timeline(metrics, history, lambda: float(next(times)))
    status = StatusReporter(
        in_force,
        metrics,
        history,
        timeline,
        lambda: True,
        lambda: 1_700_000_000.0,
    )
    for content, limit in (("Some words. " * 30, 100),) * 3 + (("Many. ", 60_000),):
        body = {
            "model": "<b>not-shown</b>",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": limit,
        }
        request = parse_request("/v1/chat/completions", json.dumps(body).encode())
        assert isinstance(request, Request)
        decision = router.route(request)
        outcome = Outcome(200, 95, 10)
        for watcher in (metrics, history):
            watcher.decided(decision)
        lesson = router.learn(decision, outcome)
        for watcher in (metrics, history):
            watcher.observed(Observation(decision, outcome), lesson)
        metrics.message_seconds.add(0.0003, "request_body")
        timeline.sample()
    return AdminServer(
        Address.parse("127.0.0.1:0"),
        metrics.registry,
        lambda: True,
        status.report,
        Explainer(in_force),
        100_000,
    )


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    session = Session(tmp_path_factory.mktemp("chromium"))
    stack = contextlib.AsyncExitStack()
    with session.runner:
        try:
            session.runner.run(session.open(stack))
            yield session
        finally:  # an open tab would fail a test in another file
            session.runner.run(stack.aclose())


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


def test_health_is_in_view_on_a_phone(session: Session) -> None:
    report = (
        "(() => { const report = structuredClone(before);"
        "report.pools[0].endpoints = [{name: 'http://10.128.14.201:8000', healthy: false}];"
        "show(report); return 0; })()"
    )
    inside = (
        "document.querySelector('#servers .bad').getBoundingClientRect().right"
        " <= document.querySelector('#servers-part .scroll').getBoundingClientRect().right"
    )

    async def steps(tab: Tab) -> None:
        await tab.show("light", 400)
        await tab.evaluate("$('pause').click()")
        await tab.evaluate(report)
        assert await tab.evaluate(inside)
        await tab.evaluate("$('pause').click()")
        await tab.show("light", 1280)

    session.run(steps)


def test_a_response_after_the_pause_changes_nothing(session: Session) -> None:
    late = (
        "(async () => { const real = window.fetch, draw = show; let release, shown = 0;"
        "const held = new Promise((done) => { release = done; });"
        "window.fetch = async (...request) => { await held; return real(...request); };"
        "show = (report) => { shown += 1; draw(report); };"
        "const polled = poll(); $('pause').click(); release(); await polled;"
        "window.fetch = real; show = draw; $('pause').click(); return shown; })()"
    )

    async def steps(tab: Tab) -> None:
        assert await tab.evaluate(late) == 0

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


def test_explains_in_words(session: Session) -> None:
    huge = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 900_000}

    async def steps(tab: Tab) -> None:
        await tab.evaluate(f"$('body').value = {json.dumps(json.dumps(huge))}")
        await tab.evaluate("explain()")
        await tab.wait_for("document.querySelectorAll('#explained .note').length")
        text = await tab.evaluate("document.querySelector('#explained').innerText")
        assert "This budget fits no pool: the largest window is 65,536" in text
        bars = "document.querySelectorAll('#explained .terms .fill').length"
        assert await tab.evaluate(bars) >= 2
        presets = "[...$('preset').options].map((option) => option.value)"
        for name in await tab.evaluate(presets):
            await tab.evaluate(f"$('preset').value = {json.dumps(name)}, usePreset()")
            await tab.evaluate("explain()")
            found = "document.querySelector('#explained .decision') !== null"
            assert await tab.evaluate(found)

    session.run(steps)


def test_explains_by_keyboard_alone(session: Session) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 30_000}

    async def steps(tab: Tab) -> None:
        await tab.evaluate("document.activeElement.blur()")
        seen = []
        for _ in range(20):
            await tab.press("Tab")
            active = "document.activeElement.id || document.activeElement.className"
            seen.append(await tab.evaluate(active))
            if seen[-1] == "body":
                break
        assert seen[0] == "skip"
        assert "pause" in seen
        assert seen[-1] == "body"
        await tab.evaluate("document.activeElement.select()")
        await tab.call("Input.insertText", text=json.dumps(body))
        await tab.press("Enter", modifiers=2)
        await tab.wait_for("document.querySelector('#explained .decision')")
        text = await tab.evaluate("document.querySelector('#explained').innerText")
        assert "long: over capacity" in text
        assert "> 8,192" in text

    session.run(steps)


def test_a_refusal_is_said_in_words(session: Session) -> None:
    async def steps(tab: Tab) -> None:
        await tab.evaluate("$('body').value = 'x'.repeat(300000), explain(), 0")
        await tab.wait_for("document.querySelector('#explained .bad')")
        text = await tab.evaluate("document.querySelector('#explained').innerText")
        assert "exceeds the server's size limit" in text
        tab.complaints.clear()  # Chromium logs the 413 itself

    session.run(steps)


def test_a_late_response_does_not_replace_a_newer_one(session: Session) -> None:
    async def steps(tab: Tab) -> None:
        await tab.evaluate(
            "window.kept = window.fetch, window.answers = [], window.fetch = () =>"
            " new Promise((done) => answers.push(done)), explain(), explain(),"
            " window.fetch = window.kept, 0"
        )
        await tab.evaluate("answers[1](new Response('newer', {status: 400})), 0")
        await tab.wait_for("document.querySelector('#explained .bad')")
        await tab.evaluate("answers[0](new Response('older', {status: 400})), 0")
        await tab.evaluate("new Promise((done) => setTimeout(() => done(1), 0))")
        text = await tab.evaluate("document.querySelector('#explained').innerText")
        assert text == "newer"

    session.run(steps)


# This script returns every visible text with low contrast (WCAG 2.1, 1.4.3).
_LOW_CONTRAST = """
(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgb(getComputedStyle(node).backgroundColor);
      if (color[3] !== 0) return color;
    }
    return [255, 255, 255];
  };
  const low = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const color = node.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(rgb(color)), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push([walk.currentNode.data.trim(), ratio]);
  }
  return low;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(session: Session, scheme: str) -> None:
    async def steps(tab: Tab) -> None:
        await tab.show(scheme)
        await tab.evaluate('$(\'body\').value = \'{"messages": [{"content": "x"}]}\'')
        await tab.evaluate("explain()")
        await tab.wait_for("document.querySelector('#explained svg text')")
        assert await tab.evaluate(_LOW_CONTRAST) == []
        background = "getComputedStyle(document.body).backgroundColor"
        red = int(re.findall(r"\d+", await tab.evaluate(background))[0])
        assert (red > 200) == (scheme == "light")
        await tab.show()

    session.run(steps)


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_nothing_spills_sideways(session: Session, width: int) -> None:
    async def steps(tab: Tab) -> None:
        await tab.show(width=width)
        across = "document.documentElement.scrollWidth"
        assert await tab.evaluate(across) <= width
        await tab.show()

    session.run(steps)


def test_every_control_and_chart_has_a_name(session: Session) -> None:
    named = {"button", "textbox", "combobox", "link", "region", "image", "img"}

    async def steps(tab: Tab) -> None:
        nodes = (await tab.call("Accessibility.getFullAXTree"))["nodes"]
        shown = [n for n in nodes if not n["ignored"]]
        found = {n["role"]["value"] for n in shown}
        assert {"button", "textbox", "combobox", "region", "table"} <= found
        unnamed = [
            n["role"]["value"]
            for n in shown
            if n["role"]["value"] in named and not n.get("name", {}).get("value")
        ]
        assert unnamed == []

    session.run(steps)


def test_motion_is_reduced_where_asked_for(session: Session) -> None:
    async def steps(tab: Tab) -> None:
        style = "getComputedStyle(document.querySelector('.fill')).transitionDuration"
        assert await tab.evaluate(style) == "0s"
        await tab.call("Emulation.setEmulatedMedia", features=[])
        assert await tab.evaluate(style) == "0.5s"
        await tab.show()

    session.run(steps)


def test_pause_stops_asking(session: Session) -> None:
    async def steps(tab: Tab) -> None:
        await tab.evaluate("$('pause').click()")
        assert await tab.evaluate("$('pause').getAttribute('aria-pressed')") == "true"
        tab.requested.clear()
        await tab.evaluate("poll()")
        assert tab.requested == []
        await tab.evaluate("$('pause').click()")
        await tab.wait_for("$('pause').getAttribute('aria-pressed') === 'false'")
        await tab.evaluate("poll()")
        assert f"{session.url}status" in tab.requested

    session.run(steps)


def test_asks_nobody_else_and_breaks_no_rule(session: Session) -> None:
    async def steps(tab: Tab) -> None:
        await tab.evaluate("poll()")
        hosts = {url for url in tab.requested if not url.startswith("data:")}
        assert all(url.startswith(session.url) for url in hosts)
        assert tab.complaints == []
        injected = "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.broken = 1\">')"
        await tab.evaluate(injected)
        await tab.evaluate("new Promise((done) => setTimeout(done))")
        assert await tab.evaluate("window.broken ?? 0") == 0
        tab.complaints.clear()

    session.run(steps)


def test_says_when_the_server_is_gone(session: Session) -> None:
    """This must be the last test, because it stops the server."""

    async def steps(tab: Tab) -> None:
        await session.admin.stop()
        await tab.evaluate("poll()")
        said = "$('connection').textContent"
        await tab.wait_for(f"{said} !== ''")
        assert "retrying" in await tab.evaluate(said)
        role = await tab.evaluate("$('connection').getAttribute('role')")
        assert role == "status"

    session.run(steps)
