"""Opening any result: its file says what kind it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nnattr.arguments import checked
from nnattr.results.base import Result, read


def kinds() -> dict[str, type[Result]]:
    """Every type of result by the name that its files bear: all that derive from `Result`."""
    return {kind.__name__: kind for kind in _derived(Result)}


def _derived(kind: type[Result]) -> Iterator[type[Result]]:
    for one in kind.__subclasses__():
        yield one
        yield from _derived(one)


@checked
def load_result(path: str | Path) -> Result:
    """Read the file of any result, as its ``save`` wrote it, now or with schema 1 or 2.

    Reading runs no code. `Scores.load` and its kin do the same and refuse other kinds.

    Raises:
        ResultError: no such file, truncated or not a result, of an unknown schema version, or with
            contents that contradict its header.
    """
    return read(path, kinds())
