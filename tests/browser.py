"""A real browser for tests: an installed chromium without a window, driven by choreographer.

choreographer starts the browser, speaks its DevTools protocol and ends it. Tests are not
coroutines, so a `Tab` runs its loop until a command is answered, and keeps what the page asked for
and complained of meanwhile.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import choreographer
from choreographer.browsers.chromium import Chromium

CHROMIUM = Chromium.find_browser(skip_local=False)
PATIENCE = 30.0


class Tab:
    """One tab: what it was told, and what it said meanwhile.

    Attributes:
        requests: every address that the page asked for.
        complaints: errors and warnings of its console, and exceptions of its scripts.
    """

    def __init__(self, tab: choreographer.Tab, runner: asyncio.Runner) -> None:
        self.tab, self.runner = tab, runner
        self.requests: list[str] = []
        self.complaints: list[str] = []
        tab.subscribe("*", self._heard)
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.tell(f"{domain}.enable")

    def tell(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        return self._run(self._told(method, **params))

    def open(self, path: Path, width: int, height: int = 900) -> Self:
        """Load a file at a size of screen and wait until it is drawn."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.tell("Emulation.setDeviceMetricsOverride", **size)
        self._run(self._loaded(path.resolve().as_uri()))
        self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 300)))")
        return self

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression, promises awaited."""
        found = self.tell(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def hover(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Point at a place inside an element, as shares of its width and height."""
        box = self.evaluate(
            f"(() => {{ const e = document.querySelector({selector!r}); "
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect(); "
            "return [r.left, r.top, r.width, r.height]; })()"
        )
        at = {"x": box[0] + x * box[2], "y": box[1] + y * box[3]}
        for nudge in (0, 1):
            self.tell("Input.dispatchMouseEvent", type="mouseMoved", x=at["x"] + nudge, y=at["y"])
        self.evaluate("new Promise(done => setTimeout(done, 300))")

    def picture(self, path: Path) -> Path:
        """A PNG of the whole page."""
        data = self.tell("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def printed(self) -> bytes:
        """The page as it would be printed, a PDF."""
        return base64.b64decode(self.tell("Page.printToPDF")["data"])

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(asyncio.wait_for(work, PATIENCE))

    async def _told(self, method: str, **params: Any) -> dict[str, Any]:
        answer = await self.tab.send_command(method, params)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    async def _loaded(self, address: str) -> None:
        loaded = self.tab.subscribe_once("Page.loadEventFired")
        await self._told("Page.navigate", url=address)
        await loaded

    async def _heard(self, message: dict[str, Any]) -> None:
        method, params = message["method"], message["params"]
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(params["entry"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(str(params["args"]))


@contextmanager
def browser() -> Iterator[Tab]:
    """A tab of a fresh chromium, which ends with the block."""
    with asyncio.Runner() as runner:
        chromium = choreographer.Browser(CHROMIUM)
        runner.run(chromium.open())
        try:
            yield Tab(runner.run(chromium.create_tab()), runner)
        finally:
            runner.run(chromium.close())
