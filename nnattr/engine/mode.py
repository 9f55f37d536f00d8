"""How this model's rows are run: a value that the search for the fastest mode returns.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

#: Characters that are kept of what a model says against the engine.
LONGEST = 300


class Mode:
    """Which shortcuts are taken.

    Attributes:
        full: none at all: every row runs through all layers and positions.
        together: rows of several layers share a pass, each joins at its own layer.
        packed: rows of an example share a sequence (see `nnattr.engine.packing`).
        narrow: the last layer goes on with the last position alone, if the metric reads no other.
        longest: the longest sequence, with what is cached before it, that was compared with full
            passes; None before the comparison.
        unbatched: names of modules' arguments that have no axis of the batch. A set that passes add
            to during the comparison, a frozenset afterwards.
        because: why rows are full passes though they were not asked for.
    """

    def __init__(
        self,
        *,
        full: bool = False,
        together: bool = False,
        packed: bool = False,
        narrow: bool = False,
        longest: int | None = None,
        unbatched: set[Any] | frozenset[Any] = frozenset(),
        because: str = "",
    ) -> None:
        self.full = full
        self.together = together
        self.packed = packed
        self.narrow = narrow
        self.longest = longest
        self.unbatched = unbatched
        self.because = because


def reason(error: Exception) -> str:
    """What a model's own code has against a cache, for `Mode.because`."""
    return f"{type(error).__name__}: {error}"[:LONGEST]
