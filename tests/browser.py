"""A real browser for tests: Debian's chromium without a window, spoken to over its own protocol.

The DevTools protocol is JSON over a websocket, so a page's errors, its requests and its size on a
screen can be asked for without another package.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PATIENCE = 30.0


class Tab:
    """One tab: what it was told, and what it said meanwhile.

    Attributes:
        requests: every address that the page asked for.
        complaints: errors and warnings of its console, and exceptions of its scripts.
    """

    def __init__(self, socket: Any) -> None:
        self.socket, self.number = socket, 0
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.events: list[str] = []
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.tell(f"{domain}.enable")

    def tell(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._heard(message)

    def open(self, path: Path, width: int, height: int = 900) -> Self:
        """Load a file at a size of screen and wait until it is drawn."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.tell("Emulation.setDeviceMetricsOverride", **size)
        self.events.clear()
        self.tell("Page.navigate", url=path.resolve().as_uri())
        until = time.monotonic() + PATIENCE
        while "Page.loadEventFired" not in self.events:
            assert time.monotonic() < until, "the page did not load"
            self.evaluate("0")
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

    def _heard(self, message: dict[str, Any]) -> None:
        method, params = message.get("method", ""), message.get("params", {})
        self.events.append(method)
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
    import websocket

    assert CHROMIUM, "no chromium is installed"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # sandboxes of their own fail in containers; the page is ours
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        options += ["--disable-dev-shm-usage", "--disable-background-networking"]
        options += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(
            [CHROMIUM, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": folder},
            start_new_session=True,
        )
        try:
            address = _address(Path(folder) / "DevToolsActivePort", process)
            socket = websocket.create_connection(address, suppress_origin=True, timeout=PATIENCE)
            try:
                yield Tab(socket)
            finally:
                socket.close()
        finally:
            os.killpg(process.pid, 15)
            process.wait(PATIENCE)


def _address(file: Path, process: subprocess.Popen[bytes]) -> str:
    """Where the first tab of the browser listens."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        assert process.poll() is None, "chromium did not start"
        if file.exists() and (lines := file.read_text().splitlines()):
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json") as answer:
                tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if tabs:
                return tabs[0]["webSocketDebuggerUrl"]
        time.sleep(0.1)
    raise AssertionError("chromium said nothing")
