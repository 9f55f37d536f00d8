"""Cells of a result: their names, and rankings of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnattr.graph import Part


@dataclass(frozen=True)
class Cell:
    """One cell of a result: its index along the cell dimensions, label, value, standard error.

    The index is made of numbers, ``(layer, head)``, or of a component's name, ``("L3 mlp",)``.
    """

    index: tuple[Any, ...]
    label: str
    value: float
    stderr: float


class Ranking(tuple[Cell, ...]):
    """Cells in order; prints as a table, ``indices`` gives the bare ``(layer, head)`` tuples."""

    @property
    def indices(self) -> list[tuple[Any, ...]]:
        """The cells' indices, best first."""
        return [cell.index for cell in self]

    def __repr__(self) -> str:
        width = max((len(cell.label) for cell in self), default=4)
        rows = [
            f"{cell.label:<{width}}  {cell.value:+8.4f}"
            + ("" if np.isnan(cell.stderr) else f"  ± {cell.stderr:.4f}")
            for cell in self
        ]
        return "\n".join(rows) or "no cells"


def cell_label(cell: Mapping[str, Any], token: str | None = None) -> str:
    """The name of a cell in text and figures: ``L9H6``, ``L11N611``, ``L3 pos 10 ' John'``."""
    parts = []
    if "component" in cell:
        parts.append(str(cell["component"]))
    if "layer" in cell:
        units = {"head": "head", "kv_head": "head", "neuron": "neuron"}
        unit = next((key for key in units if key in cell), None)
        layer = cell["layer"]
        parts.append(f"L{layer}" if unit is None else str(Part(units[unit], layer, cell[unit])))
    if "pos" in cell:
        parts.append(f"pos {cell['pos']}" + ("" if token is None else f" {token!r}"))
    return " ".join(parts) or "all"
