"""Every head of z patched over all positions, on a module of any kind, by the paths given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnattr import Task


@torch.no_grad()
def patch_every_head(
    module: Any, task: Task, paths: Sequence[str], heads: int
) -> tuple[float, np.ndarray]:
    """The logit difference of the first clean prompt, and by how much patches change the other's.

    Args:
        module: the raw Hugging Face module.
        task: the prompts and answers, of which the first pair is taken.
        paths: of every layer's attention output projection.
        heads: how many heads each has.

    Returns:
        The clean run's logit difference; the change that each patch makes [layer, head].
    """
    clean, corrupted = (torch.tensor(one.rows[:1]) for one in _sides(task))
    projections = [module.get_submodule(path) for path in paths]
    theirs: dict[int, Tensor] = {}
    hooks = [_keep(one, at, theirs) for at, one in enumerate(projections)]
    whole = _difference(module, clean, task)
    for hook in hooks:
        hook.remove()
    before = _difference(module, corrupted, task)
    found = np.zeros((len(paths), heads))
    for at, one in enumerate(projections):
        for head, columns in enumerate(torch.arange(theirs[at].shape[-1]).chunk(heads)):
            hook = _patch(one, theirs[at], columns)
            found[at, head] = _difference(module, corrupted, task) - before
            hook.remove()
    return whole, found


def _sides(task: Task) -> tuple[Any, Any]:
    assert task.corrupted_tokens is not None
    return task.clean_tokens, task.corrupted_tokens


def _difference(module: Any, ids: Tensor, task: Task) -> float:
    logits = module(input_ids=ids, use_cache=False).logits[0, -1]
    return float(logits[task.answer_ids[0][0]] - logits[task.wrong_answer_ids[0][0]])


def _keep(projection: Any, at: int, kept: dict[int, Tensor]) -> Any:
    def hook(_: Any, given: Any) -> None:
        kept[at] = given[0].clone()

    return projection.register_forward_pre_hook(hook)


def _patch(projection: Any, theirs: Tensor, columns: Tensor) -> Any:
    def hook(_: Any, given: Any) -> Any:
        value = given[0].clone()
        value[..., columns] = theirs[..., columns]
        return (value, *given[1:])

    return projection.register_forward_pre_hook(hook)
