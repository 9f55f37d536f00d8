"""Studies of edges whose cells are whole runs: a set of edges together, and paths one by one.

What is a layer in other studies is one such run here (`nnattr.engine.variants`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from nnattr.errors import MetricError
from nnattr.graph import Edge
from nnattr.graph.choice import Choice
from nnattr.jobs.edge_study import require_sums
from nnattr.jobs.frame import Frame
from nnattr.jobs.study import Study
from nnattr.jobs.wiring import plain, wiring
from nnattr.results import Provenance


@dataclass(frozen=True, kw_only=True)
class VariantStudy(Study):
    """One question about sets of edges or about paths; see `Study`.

    ``what`` is a set of edges that are patched together, or paths; ``arguments`` what the call was
    asked besides.
    """

    jobs_of: ClassVar[str] = "paths"

    what: Choice | tuple[tuple[Edge, ...], ...]
    arguments: dict[str, Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_sums(self.model)

    def payload(self, layers: Sequence[int] | None = None) -> dict[str, Any]:
        """What travels to the job, for some of the paths."""
        payload = {**super().payload(), "wiring": wiring(self.model)}
        if isinstance(self.what, Choice):
            return {
                **payload,
                "senders": [plain(part) for part in self.what.senders],
                "readers": [plain(part) for part in self.what.receivers],
                "sets": self.what.wanted[None],
            }
        some = self.what if layers is None else [self.what[at] for at in layers]
        parts = [[path[0].sender, *(edge.receiver for edge in path)] for path in some]
        return {**payload, "chains": [[plain(part) for part in path] for path in parts]}

    def frame(self) -> VariantFrame:
        """What the answer's numbers will mean."""
        whole = super().frame()
        paths = None if isinstance(self.what, Choice) else tuple(map(name_of, self.what))
        return VariantFrame(
            **{name: getattr(whole, name) for name in Frame.model_fields}
            | {
                "layers": 1 if paths is None else len(paths),
                "units": 1,
                "cells": 1,
                "unit": None,
                "places": None,
                "absent": ((False,),) * len(self.task),
                "paths": paths,
            }
        )

    def _provenance(self) -> Provenance:
        found = super()._provenance()
        arguments = {k: v for k, v in found.arguments.items() if k != "site"}
        return found.model_copy(update={"arguments": {**self.arguments, **arguments}})


class VariantFrame(Frame):
    """How to read what a job about sets of edges or paths returns; see `Frame`.

    Attributes:
        paths: their names; None where one set of edges was patched.
    """

    paths: tuple[str, ...] | None

    def _labelled(self, change: torch.Tensor, base: torch.Tensor) -> xr.DataArray:
        values = change[:, :, 0, 0].float()
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            what = "the edges together" if self.paths is None else self.paths[bad[0, 1]]
            raise MetricError(
                f"{self.provenance.metric} is {values[tuple(bad[0])]} with {what} patched, though "
                "it is finite on both runs. Use dtype='float32', or another metric."
            )
        array = xr.DataArray(
            values.numpy(),
            dims=("example", "path"),
            coords={"example": np.arange(len(values))},
        )
        if self.paths is None:
            return array.isel(path=0, drop=True)
        return array.assign_coords(path=list(self.paths))


def name_of(path: tuple[Edge, ...]) -> str:
    """A path as it is written, ``L3H2->L5H1.k->logits``."""
    return "->".join([str(path[0].sender), *(str(edge.receiver) for edge in path)])
