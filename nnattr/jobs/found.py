"""What is known of a study's answer so far: the one value here that grows while a study runs.

Jobs answer some layers each. A job in this process also hands over what it has found before it is
done, so that an answer may be known for some cells of a layer and not for others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.backend import Cost
from nnattr.errors import ResultError
from nnattr.jobs.frame import Frame

#: What a job returns that has an entry for each example and no other.
RUNS = ("base", "source")
#: The largest relative difference of the plain runs between jobs of one model.
SAME = 0.02


class Found:
    """What jobs have found of a study's answer, and what that cost.

    Attributes:
        tensors: ``base`` and ``source`` [example] or [example, cell], and by layer ``change`` and
            whatever else has its shape [example, layer, unit, cell]; NaN is what nobody has found
            yet. ``finished`` [layer]: which layers no job need be done with any more.
        plain: what jobs said besides: how they computed, and the most that a pass or a job took.
        cost: of all jobs.
    """

    def __init__(self, tensors: dict[str, Tensor], plain: dict[str, Any], cost: Cost) -> None:
        self.tensors = tensors
        self.plain = plain
        self.cost = cost

    @classmethod
    def nothing(cls, frame: Frame) -> Found:
        """What is known before the first job."""
        tensors = {
            name: torch.full(size, float("nan"), dtype=torch.float32)  # whatever torch's default is
            for name, size in frame.shapes().items()
        }
        tensors["finished"] = torch.zeros(frame.layers, dtype=torch.bool)
        if frame.asked_layers is not None:  # of the others nothing is to be found
            tensors["finished"][:] = True
            tensors["finished"][list(frame.asked_layers)] = False
        return cls(tensors, {}, Cost())

    @property
    def names(self) -> list[str]:
        """The tensors that jobs return."""
        return [name for name in self.tensors if name != "finished"]

    def missing(self) -> list[int]:
        """The layers that a job is still to be done with."""
        return (~self.tensors["finished"]).nonzero()[:, 0].tolist()

    def change(self, layers: list[int]) -> Tensor | None:
        """The changes of these layers that a job need not find again, NaN where it must; if any."""
        known = self.tensors["change"][:, layers]
        return None if known.isnan().all() else known

    def take(self, values: dict[str, Any], layers: list[int], some: slice = slice(None)) -> None:
        """What a job has found of these layers, for some of the examples.

        Raises:
            ResultError: another model found it than the one that found the rest.
        """
        own = {name: values[name].detach().cpu() for name in self.names}
        for name in RUNS:
            before = self.tensors[name].to(own[name].dtype)
            _require_same(before[some], own[name])
            before[some] = own[name]
            self.tensors[name] = before
        for name in set(self.names) - {*RUNS}:
            self.tensors[name][some, layers] = own[name]
        self.plain = _both(self.plain, {k: v for k, v in values.items() if k not in self.names})

    def finish(self, values: dict[str, Any], layers: list[int], cost: Cost) -> None:
        """What a job that is done has found of these layers, and what it cost."""
        self.take(values, layers)
        self.tensors["finished"][layers] = True
        self.cost += cost

    def values(self) -> dict[str, Any]:
        """All of it, as one job would have returned it."""
        return {name: self.tensors[name] for name in self.names} | self.plain


def _require_same(before: Tensor, now: Tensor) -> None:
    """Refuse plain runs that are off the earlier ones."""
    known = ~before.isnan()
    gap, size = (now - before)[known].abs(), before[known].abs()
    if known.any() and gap.max() > SAME * size.max():
        raise ResultError(
            "What was found earlier and what is found now do not belong together: the metric of "
            "the plain runs differs, so the model has changed. Call again, with another checkpoint."
        )


def _both(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What two jobs said: the later one, but a job that fell back is not forgotten."""
    said = before if before.get("fell_back") else after
    how = {name: said[name] for name in ("engine", "fell_back") if name in said}
    most = {name: max(before.get(name, 0), after.get(name, 0)) for name in ("peak", "rows")}
    return before | after | how | most
