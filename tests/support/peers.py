"""TransformerLens 4.3 on the weights of a teaching model, or of stories260K."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nnattr import Task
from nnattr.teaching import folder
from tests.methods.common import TEACHING
from tests.support.paths import STORIES


@cache
def bridge(name: str) -> Any:
    """TransformerLens's view of the same local folder, frozen and in eval mode."""
    return _booted(name)


@cache
def folded(name: str) -> Any:
    """The same in its compatibility mode: norms folded, weights centred; value biases stay."""
    found = _booted(name)
    found.enable_compatibility_mode(fold_value_biases=False)
    return found


def _booted(name: str) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = folder(name) if name in TEACHING else STORIES
        found = TransformerBridge.boot_transformers(str(path), device="cpu")
    found.eval()
    return found


def difference(task: Task) -> Any:
    """The difference of logits of each pair, as TransformerLens takes a metric."""
    right, wrong = (
        torch.tensor([row[0] for row in side]) for side in (task.answer_ids, task.wrong_answer_ids)
    )

    def metric(logits: Tensor) -> Tensor:
        last = logits[:, -1]
        rows = torch.arange(len(last))
        return last[rows, right[: len(last)]] - last[rows, wrong[: len(last)]]

    return metric
