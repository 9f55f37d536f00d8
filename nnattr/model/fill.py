"""What an ablation puts in the place of an activation. Runs inside a job: torch and plain values.

``zero``             nothing.
``mean``             the mean over all tokens of a dataset (padding left out).
``mean_positional``  the mean over the dataset's prompts, position by position.
``resample``         what another prompt has at the same position.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnattr.model.runs import observe


def fills(nn: Any, payload: dict[str, Any]) -> list[Tensor] | None:
    """For every layer of the model what its site becomes, to be expanded over examples.

    Args:
        nn: the nnsight model.
        payload: a job's payload with ``fill``, one of the kinds above, and for the means
            ``dataset``, prompts as ids and mask [prompt, pos].

    Returns:
        tensors [1, 1 or pos, width], or None where every example has a source run of its own.

    Cost: for a mean one forward pass over the dataset, in chunks; nothing of it is kept.
    """
    ask, kind = SimpleNamespace(**payload), payload["fill"]
    if kind == "resample":
        return None
    if kind == "zero":
        return [torch.zeros(1, 1, 1)] * len(ask.reads)
    over = (0, 1) if kind == "mean" else (0,)
    total: list[Tensor] = []
    for start in range(0, len(ask.dataset["ids"]), ask.rows):
        part = {name: value[start : start + ask.rows] for name, value in ask.dataset.items()}
        found, _ = observe(nn, ask, part, ("site",))
        sums = [masked(value, part["mask"]).sum(over, keepdim=True) for value in found["site"]]
        total = [old + new for old, new in zip(total, sums, strict=True)] if total else sums
    count = ask.dataset["mask"].sum(over, keepdim=True)[..., None]
    return [value / count.to(value.device) for value in total]


def masked(value: Tensor, mask: Tensor) -> Tensor:
    """The activations [prompt, pos, width] in float32, those of padding as zeros."""
    return value.float() * mask.to(value.device)[..., None]
