"""Progress for people: a bar on a terminal or in a notebook, silence anywhere else.

A thread draws it, from what the work has noted down. So the bar is there after a second whether or
not the work has said anything yet, its clock goes on while a long step runs, and the work never
waits for a terminal. A bar that is opened inside another one draws nothing: what it is told moves
the part of the outer one that was kept for it (`ProgressBar.next_part`).
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

#: Seconds between drawings.
EVERY = 0.5
#: How the bar looks while nobody knows how long the work is, and once that is known.
UNKNOWN = "{desc}: {elapsed}{postfix}"
KNOWN = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"

#: The bar that is open around what runs.
_AROUND: ContextVar[ProgressBar | None] = ContextVar("around", default=None)


class ProgressBar:
    """A bar that appears when work has taken a second, and is gone when it is done.

    Args:
        label: what the bar calls the work.
        delay: seconds before the bar shows, so that short work stays silent.

    Attributes:
        share: how much of the work is done, from 0 to 1; None while that is not known.
        note: what is said beside the bar.
    """

    def __init__(self, label: str, delay: float = 1.0) -> None:
        self.label = label
        self.delay = delay
        self.share: float | None = None
        self.note = ""
        self._part: tuple[float, float] | None = None
        self._outer: ProgressBar | None = None
        self._token: Token[ProgressBar | None] | None = None
        self._began = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ProgressBar:
        self._outer = _AROUND.get()
        self._token = _AROUND.set(self)
        self._began = time.time()
        if self._outer is None and (sys.stderr.isatty() or "ipykernel" in sys.modules):
            self._thread = threading.Thread(target=self._draw, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._token is not None:
            _AROUND.reset(self._token)
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def tick(self, done: int, total: int) -> None:
        """Note that ``done`` of ``total`` steps are done."""
        self._move(done / max(total, 1))

    def say(self, text: str) -> None:
        """Note what is going on; it is shown beside the bar."""
        top = self._outer or self
        top.note = text

    def next_part(self, first: float, last: float) -> None:
        """From now on the bars that are opened inside move this one from ``first`` to ``last``."""
        self._part = first, last
        if first:
            self._move(first)

    def _move(self, share: float) -> None:
        self.share = share
        if self._outer is not None and self._outer._part is not None:
            first, last = self._outer._part
            self._outer._move(first + share * (last - first))

    def _draw(self) -> None:
        """What the thread does."""
        if self._stop.wait(self.delay):
            return
        from tqdm.auto import tqdm

        look = {"leave": False, "bar_format": UNKNOWN, **_size()}
        bar: Any = tqdm(total=1.0, desc=self.label, **look)
        bar.start_t = self._began
        while True:
            bar.bar_format = UNKNOWN if self.share is None else KNOWN
            bar.n = self.share or 0.0
            bar.set_postfix_str(self.note)
            if self._stop.wait(EVERY):
                break
        bar.close()


def _size() -> dict[str, int]:
    """The terminal's size; a usual one where it says that it has none, as in a container."""
    if "ipykernel" in sys.modules:
        return {}
    columns, lines = shutil.get_terminal_size()
    return {"ncols": columns, "nrows": lines}


def with_bar(label: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that shows a bar while a function runs."""

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def shown(*args: P.args, **kwargs: P.kwargs) -> R:
            with ProgressBar(label):
                return function(*args, **kwargs)

        return shown

    return decorated
