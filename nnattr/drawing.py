"""Which figure shows which result: a table that results read and `nnattr.plots` has the rows of.

Results stand below figures and do not import them, so a result finds its figure here, by its type
and the name of the view. The package itself, which stands above both and is there before any of its
modules, says with `filled_by` where the rows come from. So ``result.plot()`` works without
``import nnattr.plots``, and plotly is loaded with the first figure, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from nnattr.errors import ResultError

#: Functions of a result and of options that make its figure (or page), by the type of the result
#: and the name of the view: ``"plot"`` for the one that suits it best.
Drawers: TypeAlias = Mapping[tuple[type, str], Callable[..., Any]]

_TABLE: dict[tuple[type, str], Callable[..., Any]] = {}
_SOURCES: list[Callable[[], Drawers]] = []


def filled_by(source: Callable[[], Drawers]) -> None:
    """Name a function that gives rows of the table, called once a figure is wanted."""
    _SOURCES.append(source)


def drawer(kind: type, view: str = "plot") -> Callable[..., Any]:
    """The function that draws this view of results of a type, or of what it derives from.

    Raises:
        ResultError: there is none.
    """
    while _SOURCES:
        _TABLE.update(_SOURCES.pop()())
    for one in kind.__mro__:
        if (one, view) in _TABLE:
            return _TABLE[one, view]
    raise ResultError(
        f"There is no figure {view!r} of {kind.__name__}; its numbers are in .data and "
        ".to_dataframe(), and nnattr.plots.matrix draws any table of two dimensions."
    )
