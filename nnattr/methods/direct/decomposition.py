"""A decomposition of the residual stream: what travels, what is refused, what comes back as arrays.

`direct_logit_attribution` and `next_token_attribution` differ in the direction that they read; the
rest of the way, through `nnattr.methods.direct.decomposition_job`, is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from nnattr.model.components import Plan, Unit, bias, logit_constants
from nnattr.model.model import Model
from nnattr.results.dataset import ordered
from nnattr.tasks import Task
from nnattr.tasks.positions import Positions, labels
from nnattr.tokens import Tokens

Norm = Literal["frozen", "each"]
Run = Literal["clean", "corrupted"]
Labelled = tuple[xr.DataArray, xr.DataArray | None]


def decomposition(
    model: Model,
    task: Task,
    plan: Plan,
    chosen: Tensor,
    words: tuple[Tensor, Tensor],
    unit: Unit,
    norm: Norm = "frozen",
    run: Run = "clean",
) -> dict[str, Any]:
    """What travels to `decomposition_job`: tensors and plain values.

    Args:
        model: as `nnattr.load` gives it.
        task: the prompts.
        plan: what to read and split.
        chosen: the positions of each cell [cell, example, pos].
        words: the direction's tokens and weights [example, pos, word], pos being 1 for all.
        unit: see `direct_logit_attribution`, as the rest.
        norm: likewise.
        run: likewise.
    """
    sides = (task.clean_tokens, task.corrupted_tokens if _reads_both(task, run) else None)
    here, there = sides if run == "clean" else sides[::-1]
    multiplier, cap = logit_constants(model)
    held = (2 * len(plan.reads) + model.n_heads) * model.config.hidden_size
    held *= int(chosen.any(0).any(0).sum())
    return {
        "run": _prompts(model, task, here),
        "other": _prompts(model, task, there),
        "direction": {"tokens": words[0], "weights": words[1], "cells": chosen},
        "parts": {
            "reads": list(plan.reads),
            "parts": list(plan.parts),
            "splits": list(plan.splits),
            "added": list(plan.added),
            "heads": model.n_heads if unit == "head" else 0,
            "end": {
                "norm": model.spec.final_norm,
                "unembed": model.spec.unembed,
                "multiplier": multiplier,
                "capped": cap is not None,
            },
            "embed": model.spec.embed,
            "whole": unit != "accumulated",
            "each": norm == "each",
            "keeps": model.accepts("logits_to_keep"),
        },
        "portions": model.portions(task.width, floats=2 * held),  # the sums are as large again
    }


def shares(
    model: Model, plan: Plan, values: dict[str, Any], layers: Sequence[int], unit: Unit
) -> Labelled:
    """The cells, and what the whole has beside them, with positions still an axis."""
    names = [name for name, _ in plan.parts]
    capped = logit_constants(model)[1] is not None
    if unit == "accumulated":
        points = [values["parts"] + values["bias"], *([values["whole"]] if capped else [])]
        return _by_component(points, [*names, *(["softcap"] if capped else [])]), None
    constants = [values["bias"], *([values["whole"] - values["linear"]] if capped else [])]
    ends = ["bias", *(["softcap"] if capped else [])]
    if unit == "component":
        return _by_component([values["parts"], *constants], [*names, *ends]), None
    split = [one["part"] for one in plan.splits]
    others = [
        values[f"bias {name}"] if name in split else values["parts"][:, at : at + 1]
        for at, name in enumerate(names)
    ]
    labels = [bias(name) if name in split else name for name in names]
    rest = _by_component([*others, *constants], [*labels, *ends])
    return _by_unit(torch.stack([values[f"units {name}"] for name in split], 1), layers, unit), rest


def _by_unit(values: Tensor, layers: Sequence[int], unit: Unit) -> xr.DataArray:
    return xr.DataArray(
        values.numpy(),
        dims=("example", "layer", unit, "pos"),
        coords={
            "example": np.arange(len(values)),
            "layer": list(layers),
            unit: np.arange(values.shape[2]),
        },
    )


def _by_component(values: list[Tensor], names: list[str]) -> xr.DataArray:
    joined = torch.cat(values, 1).numpy()
    return xr.DataArray(
        joined,
        dims=("example", "component", "pos"),
        coords={"example": np.arange(len(joined)), "component": names},
    )


def placed(values: xr.DataArray | None, spots: Tensor, task: Task, positions: Positions) -> Any:
    """The values with their positions named, or without that axis where there is one cell.

    Where a prompt does not have a position they become NaN.
    """
    if values is None:
        return None
    values = values.where(xr.DataArray(spots.any(-1).T.numpy(), dims=("example", "pos")))
    if not (isinstance(positions, str) and positions == "each"):
        return ordered(values.isel(pos=0, drop=True))
    named = values.assign_coords(pos=list(labels(task)))
    return ordered(named.assign_coords(token=("pos", list(task.labels))))


def _reads_both(task: Task, run: Run) -> bool:
    """Whether there is a corrupted run to measure, or to complain about if it is missing."""
    return task.paired or run == "corrupted"


def _prompts(model: Model, task: Task, tokens: Tokens | None) -> dict[str, Any] | None:
    return None if tokens is None else model.batch(tokens, task)
