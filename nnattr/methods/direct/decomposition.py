"""A decomposition of the residual stream as a job: what travels.

`direct_logit_attribution` and `next_token_attribution` differ in the direction that they read; the
rest of the way, through `nnattr.methods.direct.decomposition_job`, is one.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from nnattr.model.components import Plan, Unit, logit_constants
from nnattr.model.model import Model
from nnattr.tasks import Task
from nnattr.tokens import Tokens

Norm = Literal["frozen", "each"]
Run = Literal["clean", "corrupted"]


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
    """What travels to `decompose_job`: tensors and plain values.

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
        "run": _prompts(here),
        "other": _prompts(there),
        "direction": {"tokens": words[0], "weights": words[1], "cells": chosen},
        "parts": {
            "reads": list(plan.reads),
            "parts": list(plan.parts),
            "splits": list(plan.splits),
            "heads": model.n_heads if unit == "head" else 0,
            "end": {
                "norm": model.spec.final_norm,
                "unembed": model.spec.unembed,
                "multiplier": multiplier,
                "capped": cap is not None,
            },
            "whole": unit != "accumulated",
            "each": norm == "each",
            "keeps": model.accepts("logits_to_keep"),
        },
        "portions": model.portions(task.width, floats=2 * held),  # the sums are as large again
    }


def _reads_both(task: Task, run: Run) -> bool:
    """Whether there is a corrupted run to measure, or to complain about if it is missing."""
    return task.paired or run == "corrupted"


def _prompts(tokens: Tokens | None) -> dict[str, Tensor] | None:
    return None if tokens is None else tokens.tensors
