"""Progress for people: a bar on a terminal or in a notebook, silence anywhere else."""

from __future__ import annotations

import sys
from typing import Any


class ProgressBar:
    """A tqdm bar that appears once the first tick says how long the work is.

    Args:
        label: what the bar calls the work.
        delay: seconds before the bar shows, so that short work stays silent.
    """

    def __init__(self, label: str, delay: float = 1.0) -> None:
        self.label = label
        self.delay = delay
        self.bar: Any = None

    def __enter__(self) -> ProgressBar:
        return self

    def tick(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps are done."""
        bar = self.bar
        if bar is None or bar.total != total:
            bar = self._open(total)
        bar.update(done - bar.n)

    def say(self, text: str) -> None:
        """Show what is going on, beside the bar."""
        bar = self.bar if self.bar is not None else self._open(None)
        bar.set_postfix_str(text)

    def _open(self, total: int | None) -> Any:
        from tqdm.auto import tqdm

        self.close()
        quiet = not (sys.stderr.isatty() or "ipykernel" in sys.modules)
        self.bar = tqdm(total=total, desc=self.label, leave=False, disable=quiet, delay=self.delay)
        return self.bar

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def __exit__(self, *exc: object) -> None:
        self.close()
