"""Which cells of a site a study is about, as people name them.

A cell is a layer and, where the site is split, a head or neuron of it; where ``positions="each"``,
at a position. It is written as results give it, with numbers in the order of their dimensions, or
by a part's name:

============================  ======================================================
``(9, 6)``, ``"L9H6"``        a head; a neuron ``(3, 17)``, ``"L3N17"``
``(5, 0)``, ``"L5KV0.k"``     a key/value head, at ``k`` and ``v``
``3``, ``(3,)``, ``"M3"``     a layer, at sites that are not split
``(9, 6, 12)``                a head at position 12, where ``positions="each"``
``("L9H6", 12)``              the same by name
============================  ======================================================

A ranking (``scores.top(20)``) and each of its cells are such as well. A cell without a position
stands for all of its positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from nnattr.axes import ORDER
from nnattr.errors import ArchError, TaskError
from nnattr.graph import Part, parse
from nnattr.jobs.layout import PatchSite, units
from nnattr.model.heads import Head
from nnattr.model.model import Model
from nnattr.results import cells as results
from nnattr.tasks import Task
from nnattr.tasks.positions import Positions, labels

#: A cell, see the module.
Cell: TypeAlias = int | Sequence[int] | str | Part | tuple[str | Part, int] | results.Cell
#: One cell or several, or a ranking.
Cells: TypeAlias = Cell | Sequence[Cell]
#: One layer or several.
Layers: TypeAlias = int | Sequence[int]
#: The kinds of parts that cells are, by the axis of the site or, where it has none, by its name.
KINDS = {
    "head": "head",
    "kv_head": "kv",
    "neuron": "neuron",
    "resid_pre": "pre",
    "attn_out": "attn",
    "resid_mid": "mid",
    "mlp_out": "mlp",
}


@dataclass(frozen=True)
class Asked:
    """Cells of a site.

    Attributes:
        layers: the layers that have some, in order; None for all.
        cells: the cells as (layer, unit, spot), see `nnattr.engine.question.Question`; None for all
            of these layers.
        others: whether all cells but these are meant.
        pos_embed: the path of the learned position embeddings, where these are meant instead.
        said: the arguments that named them, as results record them.
    """

    layers: tuple[int, ...] | None = None
    cells: tuple[tuple[int, int, int], ...] | None = None
    others: bool = False
    pos_embed: str | None = None
    said: dict[str, Any] = field(default_factory=dict)

    def payload(self, layers: Sequence[int]) -> dict[str, Any]:
        """What travels of the cells in these layers."""
        cells = None
        if self.cells is not None:
            some = [cell for cell in self.cells if cell[0] in layers]
            cells = torch.tensor(some, dtype=torch.long).reshape(-1, 3)
        return {"cells": cells, "others": self.others, "pos_embed": self.pos_embed}

    def count(self, layers: int, per_layer: int) -> int:
        """How many cells are meant, of a model with so many layers of so many cells."""
        n = layers if self.layers is None else len(self.layers)
        named = n * per_layer if self.cells is None else len(self.cells)
        return layers * per_layer - named if self.others else named


#: All cells, one by one or at once.
EVERYTHING = Asked()


def asked_cells(
    model: Model,
    task: Task,
    site: PatchSite,
    positions: Positions,
    *,
    cells: Cells | None = None,
    layers: Layers | None = None,
    heads: Head | Sequence[Head] | None = None,
) -> Asked:
    """The cells that were asked for by one of the three ways; all of them if by none.

    Raises:
        TaskError: more than one way, nothing named, something twice, or no cell of the site.
        ArchError: the model does not have it.
    """
    given = {"cells": cells, "layers": layers, "heads": heads}
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) > 1:
        raise TaskError(
            f"{' and '.join(f'{name}=' for name in named)} were given; name what is asked for in "
            "one of these ways."
        )
    if not named:
        return EVERYTHING
    if layers is not None:
        return _layers(model, layers)
    place = Naming(model, task, site, positions)
    if heads is not None and place.unit not in ("head", "kv_head"):
        raise TaskError(f"The site {site!r} has no heads; name cells= or layers= instead.")
    ((name, value),) = named.items()
    return place.asked(value, name)


def _layers(model: Model, given: Layers) -> Asked:
    layers = [given] if isinstance(given, int) else list(given)
    _require_some(layers, "layers")
    for layer in layers:
        if layer not in range(model.n_layers):
            raise ArchError(
                f"{model.name} has no layer {layer}: it has {model.n_layers}, counted from 0."
            )
    return Asked(tuple(sorted(layers)), said={"layers": layers})


class Naming:
    """How cells of a site are named on a model and a task.

    Args:
        model: whose site it is.
        task: whose positions they may name.
        site: which one.
        positions: those of the call.
    """

    def __init__(self, model: Model, task: Task, site: PatchSite, positions: Positions) -> None:
        self.model, self.site = model, site
        self.unit, self.units = units(model, site)
        each = isinstance(positions, str) and positions == "each"
        self.spots = {label: i for i, label in enumerate(labels(task))} if each else {}
        self.length = task.lengths[0][0]
        dims = {"layer", *filter(None, [self.unit]), *(["pos"] if each else [])}
        self.dims = tuple(sorted(dims, key=ORDER.index))
        self.short = tuple(dim for dim in self.dims if dim != "pos")

    def asked(self, given: Cells, name: str, others: bool = False) -> Asked:
        """These cells, or all others.

        Raises:
            TaskError: none were named, one twice, or something that is not a cell of the site.
            ArchError: the model does not have it.
        """
        indices = [self.index(one) for one in self._several(given)]
        found = [cell for index in indices for cell in self._found(index)]
        if not others:
            _require_some(indices, name)
        if len(set(found)) < len(found):
            twice = next(index for i, index in enumerate(indices) if self._met(index, indices[:i]))
            raise TaskError(f"{name} has {results.cell_label(twice)} twice; name each cell once.")
        layers = None if others else tuple(sorted({layer for layer, *_ in found}))
        said = [list(index.values()) for index in indices]
        return Asked(layers, tuple(sorted(found)), others, said={name: said})

    def index(self, given: Any) -> dict[str, int]:
        """A cell by its dimensions: ``{"layer": 9, "head": 6}``.

        Raises:
            TaskError: it is not a cell of the site.
        """
        numbers = self._numbers(given)
        dims = {len(one): one for one in (self.dims, self.short)}.get(len(numbers))
        if dims is None:
            at_position = len(numbers) == len(self.short) + 1
            hint = "; a position is named where positions='each'" if at_position else ""
            raise self._no_cell(given, hint)
        cell = dict(zip(dims, numbers, strict=True))
        if isinstance(given, results.Cell) and not _named_alike(given.label, cell):
            raise self._no_cell(given.label, "")
        return cell

    def _several(self, given: Cells) -> Sequence[Any]:
        """What was given as a list of cells."""
        if isinstance(given, int | str | Part | results.Cell):
            return [given]
        first = next(iter(given), None)
        if isinstance(first, str | Part) and any(isinstance(one, int) for one in given):
            return [given]  # a name at a position
        if not isinstance(first, int):
            return given
        if self.unit is None and self.spots and len(given) == len(self.dims):
            raise TaskError(
                f"{given!r} can be two layers or a layer at a position; write "
                f"[{tuple(given)!r}] for the cell, or layers={list(given)!r}."
            )
        return given if self.unit is None else [given]

    def _numbers(self, given: Any) -> tuple[Any, ...]:
        """The numbers that name a cell."""
        if isinstance(given, results.Cell):
            return given.index
        if isinstance(given, int):
            return (given,)
        if isinstance(given, str | Part):
            return self._of_part(given)
        first, *rest = given or (None,)
        if not isinstance(first, str | Part):
            return tuple(given)
        layer, *unit = self._of_part(first)
        return (layer, *rest, *unit) if self.dims[-1] == "neuron" else (layer, *unit, *rest)

    def _of_part(self, given: str | Part) -> tuple[int, ...]:
        """What a part's name stands for at this site: a layer, and a unit if it has some."""
        part = parse(given)
        if part.kind != KINDS.get(self.unit or self.site) or part.port not in (None, self.site):
            raise self._no_cell(given, "")
        assert part.layer is not None
        return (part.layer,) if part.number is None else (part.layer, part.number)

    def _found(self, index: dict[str, int]) -> list[tuple[int, int, int]]:
        """The cells (layer, unit, spot) that are meant."""
        layer, unit = index["layer"], index[self.unit] if self.unit else 0
        if layer not in range(self.model.n_layers) or unit not in range(self.units):
            of = f" of {self.units} {self.unit}s each" if self.unit else ""
            raise ArchError(
                f"{self.model.name} has no part {tuple(index.values())} at {self.site!r}: it has "
                f"{self.model.n_layers} layers{of}, counted from 0."
            )
        return [(layer, unit, spot) for spot in self._spots(index)]

    def _spots(self, index: dict[str, int]) -> list[int]:
        if "pos" not in index:
            return list(range(max(1, len(self.spots))))
        pos = index["pos"]
        if pos < 0 <= min(self.spots):  # from the end of prompts of one length
            pos += self.length
        if pos not in self.spots:
            known = f"{min(self.spots)} to {max(self.spots)}"
            raise TaskError(
                f"There is no position {index['pos']} that all examples are labelled by; positions "
                f"of cells are {known} here."
            )
        return [self.spots[pos]]

    def _met(self, index: dict[str, int], before: Sequence[dict[str, int]]) -> bool:
        """Whether an earlier one covers some of the same cells."""
        known = {cell for one in before for cell in self._found(one)}
        return not known.isdisjoint(self._found(index))

    def _no_cell(self, given: Any, hint: str) -> TaskError:
        short = f"({', '.join(self.short)}) tuples" if self.unit else "layers, as whole numbers"
        whole = f", or ({', '.join(self.dims)}) at a position" if self.spots else ""
        return TaskError(
            f"{given!r} is not a part of the site {self.site!r}; expected {short}{whole}{hint}."
        )


def _require_some(given: Sequence[Any], name: str) -> None:
    """Refuse an empty list, and a list that names something twice."""
    if not given:
        raise TaskError(f"{name} is empty; name at least one, or leave it out for all.")
    twice = [one for i, one in enumerate(given) if one in given[:i]]
    if twice:
        said = results.cell_label(twice[0]) if isinstance(twice[0], dict) else twice[0]
        raise TaskError(f"{name} has {said} twice; name each once.")


def _named_alike(label: str, cell: dict[str, int]) -> bool:
    """Whether a ranking gives this cell the label that its index has at this site."""
    return label.split(" ")[0] == results.cell_label(cell).split(" ")[0]
