"""A study of edges: what travels to the job, and what its answer means.

Jobs answer some receivers each, as those of other studies answer some layers: what is called a
layer there is a receiver here, and a unit a sender.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from nnattr.backend import Cost
from nnattr.errors import ArchError, MetricError
from nnattr.graph import Part
from nnattr.graph.choice import Choice
from nnattr.jobs.frame import Frame
from nnattr.jobs.study import Study
from nnattr.model.components import contribution_norm
from nnattr.model.model import Model
from nnattr.results import EdgeScores, Provenance
from nnattr.tasks.positions import spots

#: Bytes of all examples' scores up to which they are kept one by one.
SMALL = 16 * 2**20
#: Sites of edits under which the residual stream is no sum of what parts write.
BREAKS = ("attn_out", "resid_pre", "resid_mid", "resid_post")


@dataclass(frozen=True, kw_only=True)
class EdgeStudy(Study):
    """One question about edges; see `Study`.

    ``choice`` says which edges, ``arguments`` what the call was asked besides, ``per_example``
    whether examples are kept apart, ``ungrouped`` whether heads have keys and values of their own.
    """

    jobs_of: ClassVar[str] = "receivers"

    choice: Choice
    arguments: dict[str, Any]
    per_example: bool | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_sums(self.model)

    @property
    def keeps_examples(self) -> bool:
        """Whether examples are kept apart: asked for, or the scores are few."""
        if self.per_example is not None:
            return self.per_example
        cells = len(spots(self.task, self.positions))
        return 4 * len(self.task) * self.choice.wanted.numel() * cells <= SMALL

    def payload(self, layers: Sequence[int] | None = None) -> dict[str, Any]:
        """What travels to the job, for these receivers."""
        receivers, wanted = self.choice.receivers, self.choice.wanted
        if layers is not None:
            receivers = [receivers[at] for at in layers]
            wanted = wanted[:, list(layers)]
        payload = super().payload()
        payload["layout"] |= _steps(self.model, payload["layout"])
        payload["layout"]["sizes"] |= {"site": _kept(self.model)}
        return {
            **payload,
            "senders": [
                (part.kind, part.layer or 0, part.number or 0) for part in self.choice.senders
            ],
            "receivers": [_receiver(self.model, part) for part in receivers],
            "wanted": wanted,
            "parts": _parts(self.model),
            "between": self.arguments["between"],
            "reduced": not self.keeps_examples,
            "readings": 2 if self.reads_twice else 1,
        }

    def frame(self) -> EdgeFrame:
        """What the answer's numbers will mean."""
        plain = super().frame()
        fields = {name: getattr(plain, name) for name in Frame.model_fields}
        return EdgeFrame(
            **{
                **fields,
                "layers": len(self.choice.receivers),
                "units": len(self.choice.senders),
                "senders": tuple(map(str, self.choice.senders)),
                "receivers": tuple(map(str, self.choice.receivers)),
                "reduced": not self.keeps_examples,
            }
        )

    def _provenance(self) -> Provenance:
        plain = super()._provenance()
        arguments = {k: v for k, v in plain.arguments.items() if k != "site"}
        own = {**self.arguments, "per_example": self.keeps_examples}
        return plain.model_copy(update={"arguments": {**own, **arguments}})


def require_sums(model: Model) -> None:
    """Refuse a model whose edits replace the residual stream, so that parts do not add up to it."""
    for edit in model.edits:
        replaced = any(mask is not None for *_, mask in edit.places)
        if replaced and set(edit.sites) & set(BREAKS):
            raise ArchError(
                f"With {edit.said}, the residual stream of {model.name} is not the sum of what its "
                "parts write, so it has no edges; use activation_patching, or ablate heads and "
                "MLPs instead."
            )


class EdgeFrame(Frame):
    """How to read what a job about edges returns; see `Frame`.

    Attributes:
        senders, receivers: their names.
        reduced: whether the changes are a mean and a standard error.
    """

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    reduced: bool

    def shapes(self, layers: int | None = None) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors that a job returns for so many receivers; None means all."""
        shapes = super().shapes(layers)
        n, *cells = shapes["change"]
        first = (2, 1) if self.reduced else (n, n)
        return {**shapes, "change": (first[0], *cells), "reached": (first[1], *cells)}

    def scores(self, values: dict[str, Any], cost: Cost) -> EdgeScores:
        """Label what the job returned; see `Frame.scores`."""
        values, baselines, scale, provenance = self.measured(values, cost)
        raw = self._edges(values["change"].float(), values["reached"])
        reached = self._named(values["reached"].nan_to_num().amax(0, keepdim=True) > 0)
        reached = reached.isel(example=0, drop=True)
        error = None
        if self.reduced:
            raw, error = (raw.isel(example=at, drop=True) for at in (0, 1))
        return EdgeScores.from_arrays(
            raw, baselines, scale, provenance, error=error, testable=reached
        )

    def _contrasted(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values of the first reading less those of the second; see `Frame`."""
        if not self.contrast:
            return values
        kept = values["change"] if self.reduced else None  # where the model is, that was done
        found = super()._contrasted(values)
        n = len(self.prompts)
        both = values["reached"] if self.reduced else values["reached"].unflatten(0, (2, n)).amax(0)
        return {**found, "change": found["change"] if kept is None else kept, "reached": both}

    def _edges(self, change: torch.Tensor, reached: torch.Tensor) -> xr.DataArray:
        """The changes by name; NaN where there is no edge, or a prompt has no such position."""
        bad = (~change.isfinite() & (reached > 0)).nonzero()
        if len(bad) and not (self.reduced and bad[0, 0] == 1):
            _, receiver, sender, _ = bad[0].tolist()
            raise MetricError(
                f"{self.provenance.metric} is {change[tuple(bad[0])]} for the edge "
                f"{self.senders[sender]}->{self.receivers[receiver]}, though it is finite on both "
                "runs. Use dtype='float32', or another metric."
            )
        if not self.reduced:
            absent = torch.tensor(self.absent)[:, None, None, :]
            change = change.masked_fill(absent, float("nan"))
        return self._named(change)

    def _named(self, values: torch.Tensor) -> xr.DataArray:
        """Values [example, receiver, sender, spot] by the names of their axes."""
        array = xr.DataArray(
            values.transpose(1, 2).numpy(),
            dims=("example", "sender", "receiver", "pos"),
            coords={
                "example": np.arange(len(values)),
                "sender": list(self.senders),
                "receiver": list(self.receivers),
            },
        )
        if self.places is None:
            return array.isel(pos=0, drop=True)
        labels, tokens = zip(*self.places, strict=True)
        return array.assign_coords(pos=list(labels), token=("pos", list(tokens)))


def _receiver(model: Model, part: Part) -> tuple[str, int, int, int]:
    """A receiver as `nnattr.engine.ends.Ends` takes it: port, layer, part, and how many parts."""
    if part.kind in ("logits", "mlp"):
        layer = model.n_layers - 1 if part.layer is None else part.layer
        return part.kind, layer, 0, 1
    parts = model.n_heads if part.kind == "head" else model.n_kv_heads
    return part.port or "", part.layer or 0, part.number or 0, parts


def _parts(model: Model) -> dict[str, Any]:
    """Where the ends of edges are: see `nnattr.engine.ends.Parts`."""
    spec, layers = model.spec, range(model.n_layers)
    names = ("q", "k", "v") if spec.qkv is not None else ()
    behind = [contribution_norm(model, layer) for layer in layers]
    return {
        "ports": {name: model.places(name) for name in names},
        "mlp": model.places("mlp_out") if spec.mlp_out is not None else [],
        "added": model.places("attn_out"),
        "projections": [path for path, *_ in model.places("z")],
        "behind": [path for path in behind if path is not None],
        "parallel": spec.parallel,
    }


def _steps(model: Model, plain: dict[str, Any]) -> dict[str, Any]:
    """The steps of runs that edges are made from, in forward order (see `Layout.steps`)."""
    parts, found = _parts(model), []
    for layer, steps in enumerate(plain["steps"]):
        by_name = {name: [step for step in steps if step[0] == name] for name, _ in steps}
        ports = [(name, places[layer]) for name, places in parts["ports"].items()]
        mlp = [("mlp", parts["mlp"][layer])] if parts["mlp"] else []
        arity = by_name.get("arity", [])
        path, behind_norm = plain["layers"][layer], bool(parts["behind"])
        added = ("added", parts["added"][layer])
        found.append(
            [
                *by_name["stream"],
                ("entering", (path, "input", None)),
                *ports,
                *by_name["site"],
                ("projected", (parts["projections"][layer], "output", None)),
                *([] if behind_norm else [added]),
                *by_name["attention"],
                *arity[:1],
                *([added] if behind_norm else []),
                *by_name.get("gelu", []),
                *mlp,
                *arity[1:],
                *([("leaving", (path, "output", None))] if "end" in by_name else []),
                *by_name.get("end", []),
            ]
        )
    return {"steps": found}


def _kept(model: Model) -> int:
    """Floats per token and layer that are kept of runs besides streams, a third of them.

    See `nnattr.engine.memory.bytes_per_example`, which counts three sites.
    """
    z, keys = model.n_heads * model.d_head, model.n_kv_heads * model.d_head
    return (3 * z + 2 * keys + 8 * model.config.hidden_size) // 3 + 1
