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
from nnattr.jobs.record import as_task, record, untold
from nnattr.maps.linear import linear_map
from nnattr.model.model import Model
from nnattr.model.patterns import accepted, attention_paths
from nnattr.model.prompts import Prompts, Run, aligned, asked
from nnattr.results import HeadScores, Provenance
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.logits import take
from nnattr.runs.patterns import patterns
from nnattr.runs.places import read, write
from nnattr.runs.portions import TOKENS_PER_FORWARD
from nnattr.tasks import Task
from nnattr.tasks.positions import Positions
from nnattr.tokens import Tokens

FLOATS = 2**27  # logits that one chunk of tokens may hold at a time


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
    texts, tokens = asked(model, prompts, run)
    at, present = aligned(prompts, texts, tokens, positions)
    payload = _payload(model, tokens, at, top_k, negative)
    outcome = model.run(copying_job, payload, label="copying score")
    values = accepted(model, outcome.values)
    known = values["copied"].masked_fill(~present[:, None, None], float("nan"))
    given = {
        "positions": positions,
        "top_k": top_k,
        "negative": negative,
        "threshold": threshold,
    }
    made = record(
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
    tokens = asked(model, task)[1]
    where = _answers_in(task, tokens)
    last = where.shape[1] - 1 - where.int().flip(1).argmax(1)
    payload = _payload(model, tokens, last[:, None], top_k, negative)
    payload["looked_at"] = where
    outcome = model.run(copying_job, payload, label="name mover score")
    values = accepted(model, outcome.values)
    copied = values["copied"][..., 0]
    kinds = {
        "name mover": copied * values["attention"],
        "attention": values["attention"],
        "copying": copied,
    }
    given = {"top_k": top_k, "negative": negative, "threshold": threshold}
    made = record(model, task, method="name_mover_score", arguments=given, outcome=outcome)
    return _result(model, tokens, kinds, threshold, made)


def copying_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """``copied`` [example, layer, head, pos], and ``attention`` [example, layer, head] if asked."""
    copied, attention = [], []
    total, rows = payload["columns"].shape[0], payload["rows"]
    for start in range(0, total, rows):
        some = slice(start, start + rows)
        prompts = PromptBatch(**payload["prompts"]).take(some)
        at = payload["columns"][some]
        streams, ids = held(nn, payload, prompts, at)
        alone = one_by_one(nn, payload, streams, ids)
        copied.append(alone.unflatten(0, at.shape).permute(0, 2, 3, 1))
        if payload["looked_at"] is not None:
            wanted = payload["looked_at"][some]
            found, problem = last_looks(nn, payload, prompts, wanted)
            if problem is not None:
                return {"refused": problem}
            attention.append(torch.stack([one.cpu() for one in found], 1))
        tick(min(start + rows, total), total)
    values = {"copied": torch.cat(copied)}
    return {**values, "attention": torch.cat(attention)} if attention else values


def held(nn: Any, ask: dict[str, Any], prompts: PromptBatch, at: Tensor) -> tuple[Tensor, Tensor]:
    """What layer 0 leaves at each token [token, d_model], and the tokens' ids."""
    with nn.trace(**inputs(prompts, ask["options"])):
        with torch.no_grad():
            stream = take(read(nn, ask["after"], prompts.width), at).clone()
    return stream.flatten(0, 1), prompts.ids.gather(1, at).flatten()


def one_by_one(nn: Any, ask: dict[str, Any], streams: Tensor, ids: Tensor) -> Tensor:
    """Whether each head, looking at each token alone, predicts it [token, layer, head]."""
    found: list[Tensor] = []
    with nn.trace(input_ids=ids[:, None], use_cache=False, **ask["options"]):
        with torch.no_grad():
            for layer in range(len(ask["before"])):
                live = read(nn, ask["before"][layer], 1)
                write(nn, ask["before"][layer], streams[:, None].to(live))
                z = read(nn, ask["z"][layer], 1)[:, 0]
                heads = contributions(nn, ask, layer, z)
                found.append(torch.stack([predicts(nn, ask, one, ids) for one in heads], 1))
    return torch.stack([one.cpu() for one in found], 1)


def contributions(nn: Any, ask: dict[str, Any], layer: int, z: Tensor) -> list[Tensor]:
    """What each head adds to the residual stream [token, d_model], inside a trace."""
    path = ask["z"][layer][0]
    with torch.autocast(z.device.type, enabled=False):
        weight, _ = linear_map(nn.get(path), z.shape[-1], z[:, None])
        parts = zip(z.float().chunk(ask["heads"], -1), weight.chunk(ask["heads"]), strict=True)
        outputs = [(part @ matrix).to(z.dtype) for part, matrix in parts]
    norm = ask["norms"][layer]
    return outputs if norm is None else [nn.get(norm)(one) for one in outputs]


def predicts(nn: Any, ask: dict[str, Any], output: Tensor, ids: Tensor) -> Tensor:
    """Whether the tokens are among the first k that this output alone would predict [token]."""
    turned = ask["sign"] * output[:, None]
    normed = turned if ask["norm"] is None else nn.get(ask["norm"])(turned)
    logits = nn.get(ask["unembed"])(normed)[:, 0] * ask["logit_sign"]
    own = logits.gather(-1, ids.to(logits.device)[:, None])
    return ((logits > own).sum(-1) < ask["top_k"]).float()


def last_looks(
    nn: Any, ask: dict[str, Any], prompts: PromptBatch, wanted: Tensor
) -> tuple[list[Tensor], Any]:
    """Each layer's attention from the last position to the wanted keys [example, head]."""

    def reduce(pattern: Tensor) -> Tensor:
        """One layer's."""
        return (pattern[:, :, -1].float() * wanted[:, None].to(pattern.device)).sum(-1)

    return patterns(nn, prompts, ask["paths"], None, ask["options"], reduce)


def _payload(
    model: Model, tokens: Tokens, at: Tensor, top_k: int, negative: bool
) -> dict[str, Any]:
    """What travels."""
    spec, width = model.spec, tokens.ids.shape[1]
    normed = spec.attn_out.path != spec.attn_proj
    layers = [f"{spec.layers}.{layer}" for layer in range(model.n_layers)]
    scale = getattr(model.config, spec.logit_scale) if spec.logit_scale else 1.0
    held = at.shape[1] * model.config.vocab_size
    return {
        "prompts": tokens.tensors,
        "columns": at,
        "after": model.places("resid_post")[0],
        "before": model.places("resid_pre"),
        "z": model.places("z"),
        "norms": [f"{path}.{spec.attn_out.path}" if normed else None for path in layers],
        "norm": spec.final_norm,
        "unembed": spec.unembed,
        "sign": -1.0 if negative else 1.0,
        "logit_sign": -1.0 if scale < 0 else 1.0,
        "heads": model.n_heads,
        "top_k": top_k,
        "paths": attention_paths(model),
        "looked_at": None,
        "options": {"logits_to_keep": 1} if model.accepts("logits_to_keep") else {},
        "rows": max(1, min(TOKENS_PER_FORWARD // width, FLOATS // held)),
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
