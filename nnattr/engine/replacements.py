"""What an ablation puts in the place of an activation. Runs inside a job: torch and plain values.

``zero``             nothing.
``mean``             the mean over all tokens of a dataset (padding left out).
``mean_positional``  the mean over the dataset's prompts, position by position.
``resample``         what another prompt has at the same position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.base import SITE, observe
from nnattr.engine.question import Question, question_of
from nnattr.runs.edits import masked
from nnattr.runs.inputs import PromptBatch


def replacements_of(nn: Any, payload: dict[str, Any]) -> list[Tensor] | None:
    """For every asked layer what its site becomes, to be expanded over examples.

    Args:
        nn: the nnsight model.
        payload: besides a question's, ``replacement``, one of the kinds above or None for patching,
            and for the means ``dataset``, prompts as ids and mask [prompt, pos].

    Returns:
        tensors [1, 1 or pos, width], or None where every example has a source run of its own.

    Cost: for a mean one forward pass over the dataset, in chunks; nothing of it is kept.
    """
    kind, question = payload["replacement"], question_of(nn, payload)
    if kind in (None, "resample"):
        return None
    if kind == "zero":
        return [torch.zeros(1, 1, 1)] * len(question.layers)
    over = (0, 1) if kind == "mean" else (0,)
    return means(nn, question, PromptBatch(**payload["dataset"]), payload["rows"], over)


def means(
    nn: Any, question: Question, dataset: PromptBatch, size: int, over: tuple[int, ...]
) -> list[Tensor]:
    """The mean of the site over a dataset, by asked layer [1, 1 or pos, width].

    Args:
        nn: the nnsight model.
        question: whose site it is.
        dataset: the prompts.
        size: how many are run at a time.
        over: the axes of [prompt, pos] that the mean is taken over.
    """
    total: list[Tensor] = []
    for start in range(0, len(dataset), size):
        part = dataset.take(slice(start, start + size))
        site = observe(nn, question, part, SITE).site
        sums = [masked(value, part.mask).sum(over, keepdim=True) for value in site]
        total = [old + new for old, new in zip(total, sums, strict=True)] if total else sums
    count = dataset.mask.sum(over, keepdim=True)[..., None]
    return [value / count.to(value.device) for value in total]
