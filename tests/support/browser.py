"""Drives a headless Chromium over its DevTools protocol: pages as a phone, a dark desktop or no script would see them.

The trap guarded against is a browser that is never asked what it thought: refusals of the content policy, exceptions
and errors of the console are collected, and so is every address that was asked for.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import aiohttp

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--remote-debugging-port=0", "--no-default-browser-check", "--disable-extensions"),
)
_POLL = 0.05


def chromium() -> str:
    """The browser's program. Raises `FileNotFoundError` that says what to install."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise FileNotFoundError("Chromium is needed for these tests: apt-get install chromium")


def _port_in(file: Path) -> int:
    """The port that the browser wrote down, 0 as long as it has not."""
    text = file.read_text() if file.exists() else ""
    return int(text.split()[0]) if "\n" in text else 0


class Browser:
    """One browser, used as `async with Browser(folder) as browser`."""

    def __init__(self, folder: Path) -> None:
        """`folder` is empty, and gets the browser's profile."""
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._tabs: list[Tab] = []
        self._port = 0

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            chromium(),
            *_FLAGS,
            f"--user-data-dir={self._folder}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        self._session = aiohttp.ClientSession()
        file = self._folder / "DevToolsActivePort"
        async with asyncio.timeout(30):
            while not self._port:
                await asyncio.sleep(_POLL)
                self._port = await asyncio.to_thread(_port_in, file)
        return self

    async def __aexit__(self, *_: object) -> None:
        for tab in self._tabs:
            await tab.close()
        if self._session is not None:
            await self._session.close()
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    async def tab(self, width: int = 1200, height: int = 900, *, dark: bool = False, script: bool = True) -> Tab:
        """A new tab with a window of this size; below 600 it is a phone."""
        if self._session is None:
            raise RuntimeError("the browser was not started")
        async with self._session.put(f"http://127.0.0.1:{self._port}/json/new?about:blank") as answer:
            address = (await answer.json())["webSocketDebuggerUrl"]
        tab = Tab(await self._session.ws_connect(address, max_msg_size=0))
        self._tabs.append(tab)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.send(f"{domain}.enable")
        phone = width < 600
        await tab.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await tab.send("Emulation.setEmulatedMedia", features=[scheme])
        await tab.send("Emulation.setScriptExecutionDisabled", value=not script)
        return tab


class Tab:
    """One tab; `complaints` are what the browser objected to, `asked` the addresses it asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
                continue
            given = said.get("params", {})
            match said["method"]:
                case "Page.loadEventFired":
                    self._loaded.set()
                case "Log.entryAdded":
                    entry = given["entry"]
                    # A connection that fails is what some tests are about; the page has to say so, not the console.
                    if entry["level"] in ("error", "warning") and entry["source"] != "network":
                        self.complaints.append(entry["text"])
                case "Runtime.exceptionThrown":
                    self.complaints.append(str(given["exceptionDetails"]))
                case "Runtime.consoleAPICalled":
                    self.complaints.append(str(given["args"]))
                case "Page.javascriptDialogOpening":
                    self.complaints.append(f"dialog: {given['message']}")
                case "Network.requestWillBeSent":
                    self.asked.append(given["request"]["url"])
                case _:
                    pass

    async def send(self, method: str, **given: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": given})
        async with asyncio.timeout(30):
            said = await answer
        if "error" in said:
            raise RuntimeError(f"{method}: {said['error']}")
        result: dict[str, Any] = said["result"]
        return result

    async def open(self, url: str) -> None:
        """Go to an address and wait until it is loaded."""
        self._loaded.clear()
        await self.send("Page.navigate", url=url)
        async with asyncio.timeout(30):
            await self._loaded.wait()

    async def value(self, expression: str) -> Any:
        """The value of a JavaScript expression; works without the page's scripts, too."""
        result = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    async def text(self, selector: str = "body") -> str:
        """The text of an element as a person sees it."""
        return str(await self.value(f"document.querySelector({selector!r})?.innerText ?? ''"))

    async def until(self, expression: str, within: float = 15.0) -> None:
        """Wait until an expression is true; raises `TimeoutError` with the page's text otherwise."""
        try:
            async with asyncio.timeout(within):
                while True:
                    if await self.value(expression):
                        return
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise TimeoutError(f"{expression} was not true within {within} s:\n{await self.text()}") from None

    async def screenshot(self, file: Path) -> None:
        """Write a PNG of the whole page."""
        picture = await self.send("Page.captureScreenshot", captureBeyondViewport=True)
        await asyncio.to_thread(file.write_bytes, base64.b64decode(picture["data"]))

    async def close(self) -> None:
        """Forget the tab."""
        await self._socket.close()
        await self._reading
