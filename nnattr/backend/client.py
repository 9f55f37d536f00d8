"""nnsight's client of an NDIF server, with what our jobs need of it.

It counts bytes, reads answers as plain values only (`nnattr.backend.reading`), shows where the job
stands on our progress bar, and gives up when the time is over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from nnattr.backend import reading
from nnattr.backend.seam import Cost
from nnattr.errors import BackendError
from nnattr.progress import ProgressBar

#: A job prints its progress on the server; the server forwards what is printed.
PROGRESS = "nnattr-progress"
#: Seconds within which a server must answer the first call.
HANDSHAKE = 30.0


def print_tick(done: int, total: int) -> None:
    """Report progress from a server, as a line that its client recognises."""
    print(f"nnattr-progress {done}/{total}", flush=True)


class StatusLine:
    """Shows a job's state and progress on a bar, and keeps the clock.

    It is used in place of nnsight's own display, and has the same three names.
    """

    enabled = True

    def __init__(self, bar: ProgressBar, timeout: float | None) -> None:
        self.bar = bar
        self.timeout = timeout
        self.began = time.perf_counter()
        self.taken: float | None = None
        self.started: float | None = None
        self.state = "sent"

    def update(self, response: Any) -> None:
        """Take a status of the server, such as the place in its queue."""
        self.refresh()
        now = time.perf_counter()
        status, text = response.status.value, response.description or ""
        if status == "LOG":
            if done := reported(text):
                self.bar.tick(*done)
            return
        self.taken = self.taken or now
        if status == "RUNNING":
            self.started = self.started or now
        self.state = status
        self.bar.say(f"{status.lower()} {text}".strip()[:60])

    def refresh(self) -> None:
        """Called while waiting: gives up when the time is over."""
        waited = time.perf_counter() - self.began
        if self.timeout is not None and waited > self.timeout:
            raise TimeoutError(f"no result after {waited:.0f} s (last state: {self.state})")

    @property
    def queue_seconds(self) -> float:
        """Time between the server's taking the job and its starting it."""
        return (self.started - self.taken) if self.taken and self.started else 0.0


def reported(text: str) -> tuple[int, int] | None:
    """The two numbers of a line of progress; None of any other line."""
    words = text.split()
    if len(words) != 2 or words[0] != PROGRESS:
        return None
    done, _, total = words[1].partition("/")
    return (int(done), int(total)) if done.isdecimal() and total.isdecimal() else None


def client(
    model_key: str,
    bar: ProgressBar,
    *,
    host: str | None = None,
    api_key: str | None = None,
    timeout: float | None = None,
    **options: Any,
) -> Any:
    """A client for jobs of one model; ``options`` are those of nnsight's ``RemoteBackend``.

    Raises:
        BackendError: the host is not an address, or the key has characters that a header
            cannot carry.
    """
    try:
        made = _client_class()(model_key, host=host, api_key=api_key, **options)
    except ValueError as error:  # the host of nnsight's own configuration
        raise BackendError(f"{error}. Set NDIF_HOST, or pass NDIF(host=...).") from error
    made.api_key = made.api_key.strip()
    if not (made.api_key.isascii() and made.api_key.isprintable()):
        raise BackendError("The API key holds a line break or a letter that no key has.")
    made.display = StatusLine(bar, timeout)
    return made


@cache
def _client_class() -> Any:
    """The class of `client`, made when a job is sent: nnsight is not imported before."""
    from nnsight.intervention.backends.remote import RemoteBackend
    from nnsight.schema.response import ResponseModel

    class Client(RemoteBackend):
        posted = False
        bytes_sent = 0
        bytes_received = 0
        display: Any

        def request(self, request: Any, tracer: Any) -> Any:
            with _WAITS.within(min(HANDSHAKE, self.display.timeout or HANDSHAKE)):
                return super().request(request, tracer)

        def _post(self, request: Any, blob: bytes) -> Any:
            self.posted = True
            self.bytes_sent = len(blob)  # no public name sees it on the way
            response = super()._post(request, blob)
            self.job_id = response.id
            return response

        @staticmethod
        def parse(message: str | bytes) -> Any:
            if isinstance(message, str):
                return ResponseModel.model_validate_json(message)
            return ResponseModel(**reading.message(message))

        def finalize(self, content: bytes) -> Any:
            self.bytes_received = len(content)
            values = reading.result(content, self.compress)
            if not (isinstance(values, dict) and isinstance(values.get("result"), dict)):
                raise ValueError(f"the result is a {type(values).__name__} without what was saved")
            return {"result": values["result"]}  # no other name enters our frame

        def cost(self, began: float) -> Cost:
            return Cost(
                seconds=time.perf_counter() - began,
                jobs=1,
                bytes_sent=self.bytes_sent,
                bytes_received=self.bytes_received,
                queue_seconds=self.display.queue_seconds,
                run_seconds=float((self.meta or {}).get("runtime") or 0.0),
            )

    return Client


class _Waits:
    """The library's default time limit while some thread waits for a server, and the one before.

    nnsight opens its websocket without a time limit of its own, so the default counts, which is the
    process's: the last thread to leave sets it back.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads = 0
        self.before: float | None = None

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Bound the wait for a server that takes connections and says nothing."""
        import websocket

        with self.lock:
            if not self.threads:
                self.before = websocket.getdefaulttimeout()
            self.threads += 1
            websocket.setdefaulttimeout(seconds)
        try:
            yield
        finally:
            with self.lock:
                self.threads -= 1
                if not self.threads:
                    websocket.setdefaulttimeout(self.before)


_WAITS = _Waits()
