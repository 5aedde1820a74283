"""The requests that the live page sends: polling, pause, and a server that is gone."""

from .browser import Tab
from .live_page import Session


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
        await tab.evaluate("explain()")
        hosts = {url for url in tab.requested if not url.startswith("data:")}
        assert all(url.startswith(session.url) for url in hosts)
        assert tab.complaints == []
        injected = "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.broken = 1\">')"
        await tab.evaluate(injected)
        await tab.evaluate("new Promise((done) => setTimeout(done))")
        assert await tab.evaluate("window.broken ?? 0") == 0
        tab.complaints.clear()

    session.run(steps)


def test_a_server_that_hangs_is_reported(session: Session) -> None:
    """The time limit of the request is 0 here."""
    poll = (
        "(async () => { const real = AbortSignal.timeout;"
        "AbortSignal.timeout = () => AbortSignal.abort();"
        "try { await poll(); } finally { AbortSignal.timeout = real; }"
        "const said = $('connection').textContent; await poll();"
        "return [said, $('connection').textContent]; })()"
    )

    async def steps(tab: Tab) -> None:
        during, after = await tab.evaluate(poll)
        assert during == "The server does not respond; retrying"
        assert after == ""

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
        tab.complaints.clear()  # Chromium logs the failed requests itself

    session.run(steps)
