"""Cells of a result: their names, their values with errors, and rankings of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, Literal, TypeAlias

import numpy as np
import xarray as xr

from nnattr.errors import ResultError
from nnattr.graph import Part, parse

#: What comes first: the largest effect either way, the most positive, the most negative.
By: TypeAlias = Literal["abs", "value", "-value"]
WIDTH = 80  # columns of a terminal
#: Axes that name a pair of parts, from the one to the other.
PAIRS = (("sender", "receiver"), ("query_component", "key_component"))


@dataclass(frozen=True)
class Cell:
    """One cell of a result: its index along the cell dimensions, label, value, standard error.

    The index is made of numbers, ``(layer, head)``, or of a component's name, ``("L3 mlp",)``; a
    sender and a receiver are tuples themselves, ``((0, 7), (1, 3))``.
    """

    index: tuple[Any, ...]
    label: str
    value: float
    stderr: float


class Ranking(tuple[Cell, ...]):
    """Cells in order; prints as a table, ``indices`` gives the bare ``(layer, head)`` tuples.

    Attributes:
        caution: what is to be said with the table, see `nnattr.results.Provenance`.
    """

    caution: str = ""

    @property
    def indices(self) -> list[tuple[Any, ...]]:
        """The cells' indices, best first."""
        return [cell.index for cell in self]

    def __repr__(self) -> str:
        width = max((len(cell.label) for cell in self), default=4)
        rows = [
            f"{cell.label:<{width}}  {measured(cell.value, cell.stderr, '+8.4f', '.4f', '  ± ')}"
            for cell in self
        ]
        return "\n".join([*cautioned(self.caution), *(rows or ["no cells"])])


def cautioned(text: str) -> list[str]:
    """A caution as lines for a terminal; none for nothing."""
    return wrap(f"Caution: {text}", WIDTH) if text else []


def measured(
    value: float, error: float, number: str = "+.4g", spread: str = ".2g", sign: str = " ± "
) -> str:
    """A value with its standard error, if it has one: ``+0.4213 ± 0.03``.

    Args:
        value: the value.
        error: its standard error; NaN where it is not known.
        number: how to write the value.
        spread: how to write the error.
        sign: what stands between them.
    """
    return f"{value:{number}}" + (f"{sign}{error:{spread}}" if np.isfinite(error) else "")


def counted(n: int, noun: str) -> str:
    """How many there are, in words: ``1 prompt``, ``2 prompts``."""
    return f"{n} {noun}{'s' * (n != 1)}"


def ranking(
    values: xr.DataArray,
    errors: xr.DataArray | None = None,
    k: int | None = 10,
    by: By = "abs",
    caution: str = "",
) -> Ranking:
    """The ``k`` strongest cells, strongest first; those without a number are left out.

    Args:
        values: a number per cell; its dimensions and coordinates name the cells.
        errors: their standard errors.
        k: how many; None means all.
        by: what counts as strong.
        caution: what is to be said with the table.

    Raises:
        ResultError: there is no such order.
    """
    orders = {"abs": np.abs, "value": lambda x: x, "-value": lambda x: -x}
    if by not in orders:
        raise ResultError(f"by is {by!r}; expected one of {', '.join(map(repr, orders))}.")
    numbers = values.to_numpy()
    spread = np.full(numbers.shape, np.nan) if errors is None else errors.to_numpy()
    keyed = np.where(np.isfinite(numbers), orders[by](numbers), -np.inf).ravel()
    known = int(np.isfinite(numbers).sum())
    coords = {str(dim): values[dim].to_numpy() for dim in values.dims}
    tokens = values["token"].to_numpy() if "token" in values.coords else None
    cells = []
    for flat in np.argsort(-keyed, kind="stable")[: known if k is None else min(k, known)]:
        at = np.unravel_index(flat, numbers.shape)
        cell = {dim: coords[dim][i].item() for dim, i in zip(coords, at, strict=True)}
        places = dict(zip(coords, at, strict=True))
        token = str(tokens[places["pos"]]) if tokens is not None and "pos" in cell else None
        index = tuple(_part(value) if dim in PAIRS[0] else value for dim, value in cell.items())
        text = cell_label(cell, token)
        cells.append(Cell(index, text, float(numbers[at]), float(spread[at])))
    found = Ranking(cells)
    found.caution = caution
    return found


def _part(name: str) -> Any:
    """A part of a model as a ranking of such parts gives it: ``(0, 7)`` for ``L0H7``."""
    part = parse(name)
    writes = part.kind == "head" and part.port is None
    return (part.layer, part.number) if writes else name


def cell_label(cell: Mapping[str, Any], token: str | None = None) -> str:
    """The name of a cell in text and figures: ``L9H6``, ``L3 pos 10 ' John'``, ``L0H7 → L1H3``."""
    parts = [f"{cell[one]} → {cell[other]}" for one, other in PAIRS if one in cell]
    parts += [str(cell[dim]) for dim in ("path", "component") if dim in cell]
    if "layer" in cell:
        units = {"head": "head", "kv_head": "head", "neuron": "neuron"}
        unit = next((key for key in units if key in cell), None)
        layer = cell["layer"]
        parts.append(f"L{layer}" if unit is None else str(Part(units[unit], layer, cell[unit])))
    if "pos" in cell:
        parts.append(f"pos {cell['pos']}" + ("" if token is None else f" {token!r}"))
    return " ".join(parts) or "all"
