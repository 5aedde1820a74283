"""The live page by keyboard, on narrow screens, in both color schemes, and by name."""

import json
import re

import pytest

from .browser import Tab
from .live_page import Session


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
