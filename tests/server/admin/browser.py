"""A real Chromium, if the machine has one."""

import asyncio
import contextlib
import re
import shutil
from pathlib import Path
from typing import Any

import aiohttp

from ...patience import PATIENCE_S

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT_S = PATIENCE_S


class Tab:
    """One browser tab, which the test controls through the Chrome DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._sent = 0
        self.requested: list[str] = []
        self.complaints: list[Any] = []

    async def call(self, method: str, **params: Any) -> Any:
        self._sent += 1
        await self._socket.send_json(
            {"id": self._sent, "method": method, "params": params}
        )
        while True:
            message = await self._socket.receive_json(timeout=WAIT_S)
            self._note(message)
            if message.get("id") == self._sent:
                assert "error" not in message, message
                return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
            case "Log.entryAdded" | "Runtime.exceptionThrown":
                self.complaints.append(message["params"])

    async def evaluate(self, expression: str) -> Any:
        answer = await self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def wait_for(self, condition: str) -> None:
        """Wait until an expression is true; a hidden tab has no animation frames."""
        await asyncio.wait_for(
            self.evaluate(
                "new Promise((done) => { const next = (look) => { let fresh = true;"
                " const once = () => { if (fresh) { fresh = false; look(); } };"
                " requestAnimationFrame(once); setTimeout(once, 500); };"
                " const look = () => "
                f"({condition}) ? done(1) : next(look); look(); }})"
            ),
            WAIT_S,
        )

    async def press(self, key: str, modifiers: int = 0) -> None:
        code = {"Tab": 9, "Enter": 13}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        kind = "keyDown"
        await self.call(
            "Input.dispatchKeyEvent", type=kind, modifiers=modifiers, **event, **text
        )
        await self.call(
            "Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **event
        )

    async def show(self, scheme: str = "light", width: int = 1280) -> None:
        await self.call(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": scheme},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ],
        )
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )


async def open_tab(stack: contextlib.AsyncExitStack, profile: Path) -> Tab:
    """Start a browser, which exits when the stack is closed.

    Args:
        stack: context that closes the browser.
        profile: an empty directory.
    """
    port = await _start_chromium(stack, profile)
    client = await stack.enter_async_context(aiohttp.ClientSession())
    async with client.put(f"http://127.0.0.1:{port}/json/new") as response:
        address = (await response.json())["webSocketDebuggerUrl"]
    socket = await stack.enter_async_context(client.ws_connect(address, max_msg_size=0))
    tab = Tab(socket)
    for domain in ("Page", "Network", "Log", "Runtime", "Accessibility"):
        await tab.call(f"{domain}.enable")
    return tab


async def _start_chromium(stack: contextlib.AsyncExitStack, profile: Path) -> str:
    assert CHROMIUM is not None
    chromium = await asyncio.create_subprocess_exec(
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    stack.push_async_callback(chromium.communicate)
    stack.callback(chromium.terminate)
    assert chromium.stderr is not None
    while True:
        line = await asyncio.wait_for(chromium.stderr.readline(), WAIT_S)
        assert line, "Chromium ended before it listened"
        found = re.search(rb"DevTools listening on ws://127.0.0.1:(\d+)/", line)
        if found:
            return found[1].decode()
