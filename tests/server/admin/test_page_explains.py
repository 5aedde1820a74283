"""The explanation of a request on the live page."""

import json

from .browser import Tab
from .live_page import Session


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
