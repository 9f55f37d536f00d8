r"""Does a head write the token that it reads?

Take what a token's position holds after the first layer, let a head look at nothing else, and see
which tokens its output alone would predict:

.. math:: \mathrm{logits}_h(x) = \mathrm{norm}_f \left( \mathrm{OV}_h(\mathrm{norm}_l(x)) \right)
          W_U, \qquad x = \text{resid\_post}^{(0)} \text{ at the token}

The *copying score* of a head is the share of tokens that are among the first k of these. (Wang et
al. 2022, "Interpretability in the Wild", arXiv:2211.00593, section 3.1 and appendix: with k = 5 it
is above 95 % for GPT-2 small's name movers and below 20 % for the average head. For *negative*
heads, which write against what they read, the output is turned round.)

Every module on this path is the model's own. A head looks at one token alone where the prompt has
only one: its z is then that token's v, whatever the family, with grouped heads and biases as they
are. So x is put before each layer of a pass over prompts of one token.

A *name mover* also looks: its score is the attention that the last position pays to the answer in
the prompt, if the head copies it, and 0 if not, averaged over prompts.

It misleads where a head's input is not what layer 0 left (heads that read what middle layers moved
there show no copying), and where only the composition of several heads copies. The cost is two
forward passes, and an unembedding per head and token; two passes more for name movers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from nnattr.arguments import Positive, Share, checked
from nnattr.errors import TaskError
from nnattr.jobs.record import as_task, provenance_of, untold
from nnattr.methods.attention.copying_job import copying_job
from nnattr.model.model import Model
from nnattr.model.patterns import attention_paths
from nnattr.model.prompts import Prompts, Run, aligned, texts_and_tokens
from nnattr.results import HeadScores, Provenance
from nnattr.tasks import Task
from nnattr.tasks.positions import Positions
from nnattr.tokens import Tokens


@checked
def copying_score(
    model: Model,
    prompts: Prompts,
    *,
    positions: Positions = "each",
    top_k: Positive = 5,
    negative: bool = False,
    threshold: Share = 0.5,
    run: Run = "clean",
) -> HeadScores:
    """For each head the share of tokens that its output alone puts among the first ``top_k``.

    Args:
        model: as `nnattr.load` gives it.
        prompts: one or several, or a task.
        positions: the tokens to be copied: ``"each"``, ``"last"``, positions, or a task's span
            (``"IO"`` for the names of `nnattr.tasks.ioi`).
        top_k: among how many.
        negative: turn the heads' outputs round, to find those that write against what they read.
        threshold: from which share on `HeadScores.heads` lists a head.
        run: which prompts of a task.

    Returns:
        a `HeadScores` of one kind, ``"copying"``.

    Raises:
        TaskError: prompts or positions that cannot be used.
        BackendError: the job failed where it ran.
    """
    texts, tokens = texts_and_tokens(model, prompts, run)
    at, present = aligned(prompts, texts, tokens, positions)
    payload = _payload(model, prompts, tokens, at, top_k, negative)
    outcome = model.run(copying_job, payload, label="copying score")
    values = outcome.values
    known = values["copied"].masked_fill(~present[:, None, None], float("nan"))
    given = {
        "positions": positions,
        "top_k": top_k,
        "negative": negative,
        "threshold": threshold,
    }
    made = provenance_of(
        model,
        as_task(prompts, texts, tokens),
        method="copying_score",
        arguments={**given, "run": run, **untold(prompts)},
        outcome=outcome,
    )
    return _result(model, tokens, {"copying": known.nanmean(-1)}, threshold, made)


@checked
def name_mover_score(
    model: Model, task: Task, *, top_k: Positive = 5, negative: bool = False, threshold: Share = 0.3
) -> HeadScores:
    """For each head how much the last position looks at the answer, where the head copies it.

    Args:
        model: as `nnattr.load` gives it.
        task: its clean prompts must hold their answers, as those of `nnattr.tasks.ioi` do. Where an
            answer stands several times its attention is summed, and the last one is copied.
        top_k: see `copying_score`.
        negative: see `copying_score`; finds the negative name movers.
        threshold: from which score on `HeadScores.heads` lists a head.

    Returns:
        a `HeadScores` of three kinds: ``"name mover"`` is the product, per prompt, of
        ``"attention"`` and ``"copying"``.

    Raises:
        TaskError: an answer does not stand in its prompt, or the task does not fit the model.
        ArchError: the model's attention gives no pattern.
        BackendError: where the model runs its attention cannot be switched (a sandboxed server).
    """
    tokens = texts_and_tokens(model, task)[1]
    where = _answers_in(task, tokens)
    last = where.shape[1] - 1 - where.int().flip(1).argmax(1)
    payload = _payload(model, task, tokens, last[:, None], top_k, negative)
    payload["looked_at"] = where
    outcome = model.run(copying_job, payload, label="name mover score")
    values = outcome.values
    copied = values["copied"][..., 0]
    kinds = {
        "name mover": copied * values["attention"],
        "attention": values["attention"],
        "copying": copied,
    }
    given = {"top_k": top_k, "negative": negative, "threshold": threshold}
    made = provenance_of(model, task, method="name_mover_score", arguments=given, outcome=outcome)
    return _result(model, tokens, kinds, threshold, made)


def _payload(
    model: Model, prompts: Prompts, tokens: Tokens, at: Tensor, top_k: int, negative: bool
) -> dict[str, Any]:
    """What travels."""
    spec, width = model.spec, tokens.ids.shape[1]
    normed = spec.attn_out.path != spec.attn_proj
    layers = [f"{spec.layers}.{layer}" for layer in range(model.n_layers)]
    scale = getattr(model.config, spec.logit_scale) if spec.logit_scale else 1.0
    logits = at.shape[1] * model.vocab_size
    return {
        "prompts": model.batch(tokens, prompts),
        "columns": at,
        "looked_at": None,
        "paths": attention_paths(model),
        "question": {
            "after": model.places("resid_post")[0],
            "before": model.places("resid_pre"),
            "z": model.places("z"),
            "heads": model.n_heads,
            "norms": [f"{path}.{spec.attn_out.path}" if normed else None for path in layers],
            "norm": spec.final_norm,
            "unembed": spec.unembed,
            "sign": -1.0 if negative else 1.0,
            "logit_sign": -1.0 if scale < 0 else 1.0,
            "top_k": top_k,
            "options": {"logits_to_keep": 1} if model.accepts("logits_to_keep") else {},
        },
        "portions": model.portions(width, floats=2 * logits),
    }


def _answers_in(task: Task, tokens: Tokens) -> Tensor:
    """Where each prompt holds its answer [example, pos].

    Raises:
        TaskError: one does not, or the task has no answers.
    """
    if not task.answer_ids:
        raise TaskError(f"The task {task.name!r} has no answers to be looked for.")
    where = torch.zeros_like(tokens.mask)
    for row, answers in enumerate(task.answer_ids):
        here = torch.isin(tokens.ids[row], torch.tensor(answers)) & tokens.mask[row]
        if not here.any():
            raise TaskError(
                f"The answer {task.answers[row]} does not stand in the prompt {task.clean[row]!r}, "
                "so no head can look at it."
            )
        where[row] = here
    return where


def _result(
    model: Model,
    tokens: Tokens,
    kinds: Mapping[str, Tensor],
    threshold: float,
    made: Provenance,
) -> HeadScores:
    """Scores [example, layer, head] by kind as a result."""
    array = xr.DataArray(
        torch.stack(list(kinds.values()), 1).numpy(),
        dims=("example", "kind", "layer", "head"),
        coords={
            "example": np.arange(len(tokens)),
            "kind": list(kinds),
            "layer": np.arange(model.n_layers),
            "head": np.arange(model.n_heads),
        },
    )
    return HeadScores.from_arrays(array, dict.fromkeys(kinds, threshold), tokens, made)
