"""A decomposition of the residual stream as a job: what travels, and what is refused.

`direct_logit_attribution` and `next_token_attribution` differ in the direction that they read; the
rest of the way, through `nnattr.methods.direct.decomposition_job`, is one.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from nnattr.errors import ArchError, MetricError
from nnattr.model.components import Plan, Unit, logit_constants
from nnattr.model.model import Model
from nnattr.runs.portions import TOKENS_PER_FORWARD
from nnattr.tasks import Task
from nnattr.tokens import Tokens

Norm = Literal["frozen", "each"]
Run = Literal["clean", "corrupted"]
FLOATS = 2**26  # numbers that one chunk of examples may hold at a time


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
        "tokens": words[0],
        "weights": words[1],
        "spots": chosen,
        "reads": list(plan.reads),
        "parts": list(plan.parts),
        "splits": list(plan.splits),
        "heads": model.n_heads if unit == "head" else 0,
        "norm": model.spec.final_norm,
        "unembed": model.spec.unembed,
        "multiplier": multiplier,
        "capped": cap is not None,
        "whole": unit != "accumulated",
        "each": norm == "each",
        "keeps": model.accepts("logits_to_keep"),
        "rows": max(1, min(TOKENS_PER_FORWARD // task.width, FLOATS // held)),
    }


def proven(model: Model, metric: str, values: dict[str, Any]) -> None:
    """Refuse what is not finite, and a model that is not the sum it was taken for.

    Raises:
        MetricError: infinite values, or none.
        ArchError: parts that do not add up, with what was measured.
    """
    gaps = dict(values["gaps"])
    tolerance = max(1e-4, 16 * gaps.pop("eps"))
    for key in ("run", "other", "linear"):
        if key in values and not torch.isfinite(values[key]).all():
            raise MetricError(
                f"{metric} is not finite on every example ({key} run). Check the model's "
                f"weights for NaN or overflow (`nnattr doctor {model.name}`), or use "
                "dtype='float32'."
            )
    for what, size in gaps.items():
        if not size <= tolerance:
            raise ArchError(
                f"{model.name} ({model.architecture}) is not the sum of its parts as nnattr reads "
                f"it: the {what} differ by {size:.1e} of their size, and at most "
                f"{tolerance:.0e} is allowed. Its norm, unembedding or MLP is of a kind that "
                "direct logit attribution does not know; activation_patching needs none of them."
            )


def _reads_both(task: Task, run: Run) -> bool:
    """Whether there is a corrupted run to measure, or to complain about if it is missing."""
    return task.paired or run == "corrupted"


def _prompts(tokens: Tokens | None) -> dict[str, Tensor] | None:
    return None if tokens is None else tokens.tensors
