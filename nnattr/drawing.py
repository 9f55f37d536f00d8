"""Which figure shows which result: a table that results read and `nnattr.plots` fills.

Results stand below figures and do not import them, so a result finds its figure here, by its type
and the name of the view. The package itself, which stands above both and is there before any of its
modules, says with `filled_by` where the entries come from. So ``result.plot()`` works without
``import nnattr.plots``, and plotly is loaded with the first figure, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from nnattr.errors import ResultError

#: A function of a result and of options that makes its figure (or page).
Drawer: TypeAlias = Callable[..., Any]

#: By the type of the result and the name of the view, ``"plot"`` for the one that suits it best.
DRAWERS: dict[tuple[type, str], Drawer] = {}
_FILLERS: list[Callable[[], None]] = []


def filled_by(fill: Callable[[], None]) -> None:
    """Name the function that fills the table, called once a figure is wanted."""
    _FILLERS.append(fill)


def drawer(kind: type, view: str = "plot") -> Drawer:
    """The function that draws this view of results of a type, or of what it derives from.

    Raises:
        ResultError: there is none.
    """
    while _FILLERS:
        _FILLERS.pop()()
    for one in kind.__mro__:
        if (one, view) in DRAWERS:
            return DRAWERS[one, view]
    raise ResultError(
        f"There is no figure {view!r} of {kind.__name__}; its numbers are in .data and "
        ".to_dataframe(), and nnattr.plots.matrix draws any table of two dimensions."
    )
