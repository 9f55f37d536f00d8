"""Several parts of the model replaced at once, in one run.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.base import SITE, observe
from nnattr.engine.measure import measure, require_own_numbers
from nnattr.engine.memory import portions_for
from nnattr.engine.question import Question, question_of, require_edits_in_place
from nnattr.engine.replacements import replacements_of
from nnattr.engine.shortcuts import read_logits
from nnattr.runs.inputs import inputs
from nnattr.runs.places import read, write


class Removed:
    """What is replaced.

    Attributes:
        units: which units of each layer's site [layer, unit], bool; None for position embeddings.
        pos_embed: the path of the learned position embeddings, where these are replaced.
        by_mean: whether these become their mean, or zero.
    """

    def __init__(self, units: Tensor | None, pos_embed: str | None, by_mean: bool) -> None:
        self.units = units
        self.pos_embed = pos_embed
        self.by_mean = by_mean


def together_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """The change of the metric with all chosen parts replaced at once."""
    path = payload["pos_embed"]
    removed = Removed(payload["ablated"], path, payload["replacement"] == "mean")
    question = question_of(nn, payload, None if path else replacements_of(nn, payload))
    portions = portions_for(nn, tick, payload, question)
    for some in portions:
        with portions.attempt():
            portions.keep(together(nn, question.take(some), removed))
            portions.tick(1, 1)
    return portions.joined()


def together(nn: Any, question: Question, removed: Removed) -> dict[str, Any]:
    """The metric of the plain run and its change, for a portion of the examples."""
    require_edits_in_place(nn, question.layout)
    logits = observe(nn, question, question.base).logits
    clean = logits[:, -1]
    base = measure(question, question.base, logits, clean)
    require_own_numbers(question, logits, clean, base)
    if removed.pos_embed:
        ablated = without_positions(nn, question, removed.pos_embed, removed.by_mean)
    else:
        others = question.replacements
        if others is None:
            others = observe(nn, question, question.source, SITE).site
        ablated = without_units(nn, question, removed.units, others)
    change = measure(question, question.base, ablated, clean) - base
    return {
        "change": change[:, None, None, None],
        "base": base,
        "source": base,
        "engine": "full",
        "dtype": str(logits.dtype),
    }


def without_units(nn: Any, question: Question, units: Any, others: list[Tensor]) -> Tensor:
    """The logits with the chosen units [layer, unit] of every layer's site replaced."""
    layout, width = question.layout, question.base.width
    positions = question.spots.any(0)[..., None]  # [example, pos, 1]
    with nn.trace(**inputs(question.base, layout.options)):
        with torch.no_grad():
            for where, some, other in zip(layout.places, units, others, strict=True):
                if some.any():
                    live = read(nn, where, width).clone()
                    columns = some.repeat_interleave(live.shape[-1] // len(some))
                    chosen = (positions & columns).to(live.device)
                    write(nn, where, torch.where(chosen, other.to(live), live))
            logits = read_logits(nn, question)
    return logits


def without_positions(nn: Any, question: Question, path: str, by_mean: bool) -> Tensor:
    """The logits with every position embedding replaced by zero, or by the mean of the table's."""
    with nn.trace(**inputs(question.base, question.layout.options)):
        with torch.no_grad():
            table = nn.get(path)
            live = table.output
            real = question.base.mask[: live.shape[0], :, None].to(live)  # a row for all, or each
            mean = (live * real).sum(-2, keepdim=True) / real.sum(-2, keepdim=True)
            table.output = (mean if by_mean else 0 * mean).expand_as(live).clone()
            logits = read_logits(nn, question)
    return logits
