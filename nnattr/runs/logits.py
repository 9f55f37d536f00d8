"""Reading next-token distributions inside a job, so that the vocabulary stays where the model is.

Everything here travels: torch and plain values only.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.portions import Portions, RefusedError

#: Said where there is nothing to read.
NO_NUMBERS = (
    "the logits, or what they are made of, are NaN on some prompt. Check the model's weights for "
    "NaN or overflow (`nnattr doctor`), or use dtype='float32'."
)


def prediction_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """The best tokens, the logits asked for and the normaliser, at the last positions.

    See `nnattr.tasks.Predictions`.
    """
    every = PromptBatch(**payload["prompts"])
    portions = Portions(nn, tick, total=len(every), **payload["portions"])
    for some in portions:
        with portions.attempt():
            given = inputs(every.take(some), payload["options"])
            asked = payload["asked"][some]
            portions.keep(predicted(nn, given, asked, payload["k"], payload["last"]))
            portions.tick(1, 1)
    return portions.joined()


def predicted(
    nn: Any, given: dict[str, Any], asked: Tensor, k: int, last: int
) -> dict[str, Tensor]:
    """What one pass predicts at its ``last`` positions; ``asked`` are token ids [example, word]."""
    with nn.trace(**given):
        with torch.no_grad():
            logits = nn.output.logits[:, -last:].float()
    total = logits.logsumexp(-1)
    require_numbers(total)
    best = logits.topk(min(k, logits.shape[-1]), -1)
    wanted = asked.to(logits.device)[:, None].expand(-1, logits.shape[1], -1)
    return {
        "ids": best.indices,
        "logits": best.values,
        "asked": logits.gather(-1, wanted),
        "log_norm": total,
    }


def require_numbers(values: Tensor) -> None:
    """Refuse to say what a model predicts whose logits, or what is read of them, are NaN."""
    if values.isnan().any():
        raise RefusedError("backend", NO_NUMBERS)


def require_number(gap: float) -> None:
    """Refuse to judge a model's structure by a gap that is NaN, as of two activations that are."""
    if math.isnan(gap):
        raise RefusedError("backend", NO_NUMBERS)


def take(values: Tensor, columns: Tensor) -> Tensor:
    """The values [example, pos, ...] at each example's own columns [example, chosen]."""
    columns = columns.to(values.device)
    index = columns[..., None].expand(*columns.shape, values.shape[-1])
    return values.gather(1, index)


def top_tokens(logits: Tensor, k: int, answers: Tensor | None = None) -> dict[str, Tensor]:
    """The k likeliest tokens of each distribution, its entropy in nats, and the answer's standing.

    Args:
        logits: [..., d_vocab].
        k: how many.
        answers: a token for each distribution [...], or None.

    Returns:
        ``token``, ``logit`` and ``probability`` [..., k], ``entropy`` [...], and with answers
        ``answer_logit``, ``answer_probability`` and ``answer_rank`` (0 is the likeliest) [...].
    """
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)
    best = logits.topk(min(k, logits.shape[-1]), -1)
    found = {
        "token": best.indices,
        "logit": best.values,
        "probability": (best.values - total).exp(),
        "entropy": torch.special.entr((logits - total).exp()).sum(-1),
    }
    if answers is not None:
        own = logits.gather(-1, answers.to(logits.device)[..., None])
        found["answer_logit"] = own[..., 0]
        found["answer_probability"] = (own - total).exp()[..., 0]
        found["answer_rank"] = (logits > own).sum(-1)
    return found
