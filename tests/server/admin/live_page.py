"""The live page in a browser tab, served by an admin port."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from extproc.address import Address
from extproc.exchange.body_parser import parse_request
from extproc.exchange.events import Observation
from extproc.routing.policy import PoolLoad
from extproc.routing.request import Request
from extproc.routing.router import Outcome
from extproc.server.admin.explain import Explainer
from extproc.server.admin.server import AdminServer
from extproc.server.admin.status import StatusReporter
from extproc.server.observe.metrics import Metrics
from extproc.server.observe.recent import RecentDecisions
from extproc.server.observe.timeline import Timeline

from ..in_force import make_in_force
from .browser import WAIT_S, Tab, open_tab


class Session:
    """A browser, a tab, and an admin port on one event loop."""

    def __init__(self, profile: Path) -> None:
        self.runner = asyncio.Runner()
        self._profile = profile
        self.url = ""
        self.tab: Tab

    def run(self, steps: Callable[[Tab], Awaitable[None]]) -> None:
        """Run the steps; the page must not log errors or break its policy in them."""

        async def bounded() -> None:
            await asyncio.wait_for(steps(self.tab), 2 * WAIT_S)

        self.runner.run(bounded())
        assert self.tab.complaints == []

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
