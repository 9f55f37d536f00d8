"""Forward runs inside a job: plain functions that travel to a server.

Rows of a batch are ordered cell by cell: ``copies`` of the examples, one copy for each cell that is
patched, so ``[copies * example, ...]`` unflattens to ``[copies, example, ...]``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnattr.model.sites import read

#: Tokens in one forward pass unless a single example already has more.
TOKENS_PER_FORWARD = 4096


def inputs(prompts: dict[str, Tensor], copies: int = 1) -> dict[str, Tensor]:
    """The model's inputs for ``copies`` of the prompts; a mask only where there is padding."""
    ids, mask = prompts["ids"], prompts["mask"]
    given = {"input_ids": ids.repeat(copies, 1)}
    if not mask.all():
        given["attention_mask"] = mask.long().repeat(copies, 1)
    return given


def run(
    nn: Any, prompts: dict[str, Tensor], places: list[tuple[str, str]], options: dict[str, Any]
) -> tuple[list[Tensor], Tensor]:
    """One forward without gradients: the activations at ``places`` (in order) and the logits."""
    with nn.trace(inputs(prompts), **options):
        with torch.no_grad():
            # clones: a later in-place addition of the model would change what was read
            found = [read(nn, where).clone() for where in places]
            logits = nn.output.logits
    return found, logits


def batch_of(
    answers: dict[str, Tensor], prompts: dict[str, Tensor], clean: Tensor, copies: int = 1
) -> SimpleNamespace:
    """What a metric sees beside the logits (see `nnattr.metrics`), for ``copies`` of the examples."""
    fields = {**answers, **prompts, "clean_logits": clean}
    return SimpleNamespace(
        **{
            name: value.to(clean.device).repeat(copies, *[1] * (value.dim() - 1))
            for name, value in fields.items()
        }
    )


def examples(tensors: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """The examples from ``start`` to ``stop`` of a dict of tensors [example, ...]."""
    return {name: value[start:stop] for name, value in tensors.items()}


def wrong_shape(value: Any, n: int) -> str | None:
    """Why ``value`` is not one number per example, or None when it is."""
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    return None if shape == (n,) else f"expected one number for each of {n} examples, got {shape}"
