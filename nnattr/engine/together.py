"""Several cells of a site replaced at once, in one run.

Every cell becomes what it is in the source run, or what an ablation puts there; all else is
computed with the others replaced. A head whose pattern is replaced mixes the values that this run
has by then.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.base import SITE, Observed, observe
from nnattr.engine.measure import measure, require_own_numbers
from nnattr.engine.memory import portions_for
from nnattr.engine.pattern_patch import mixed, proven_patterns
from nnattr.engine.question import Question, question_of, require_edits_in_place
from nnattr.engine.replacements import replacements_of
from nnattr.engine.shortcuts import read_logits
from nnattr.runs.inputs import inputs
from nnattr.runs.places import read, write


class Replaced:
    """What is replaced.

    Attributes:
        cells: which cells of the asked layers [layer, unit, spot], bool.
        pos_embed: the path of the learned position embeddings, where these are replaced instead.
        by_mean: whether these become their mean, or zero.
    """

    def __init__(self, cells: Tensor, pos_embed: str | None, by_mean: bool) -> None:
        self.cells = cells
        self.pos_embed = pos_embed
        self.by_mean = by_mean


def together_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """The change of the metric with all chosen cells replaced at once."""
    path, by_mean = payload["pos_embed"], payload["replacement"] == "mean"
    question = question_of(nn, payload, None if path else replacements_of(nn, payload))
    replaced = Replaced(chosen(question, payload["others"]), path, by_mean)
    portions = portions_for(nn, tick, payload, question)
    for some in portions:
        with portions.attempt():
            portions.keep(together(nn, question.take(some), replaced))
            portions.tick(1, 1)
    return portions.joined()


def chosen(question: Question, others: bool) -> Tensor:
    """The cells that are asked about, or all others [layer, unit, spot]."""
    asked = question.asked
    if asked is None:
        shape = len(question.layers), question.units, len(question.spots)
        asked = torch.ones(shape, dtype=torch.bool)
    return ~asked if others else asked


def together(nn: Any, question: Question, replaced: Replaced) -> dict[str, Any]:
    """The metric of the plain runs and its change, for a portion of the examples."""
    require_edits_in_place(nn, question.layout)
    by_patterns = bool(question.layout.pattern_paths)
    ours = observe(nn, question, question.base, SITE if by_patterns else ())
    theirs = other_run(nn, question, replaced, ours)
    clean = (ours if question.base_is_clean else theirs).logits[:, -1]
    base = measure(question, question.base, ours.logits, clean)
    require_own_numbers(question, ours.logits, clean, base)
    if replaced.pos_embed:
        logits = without_positions(nn, question, replaced.pos_embed, replaced.by_mean)
    else:
        patterns = proven_patterns(nn, question, ours.site) if by_patterns else []
        logits = with_cells(nn, question, replaced.cells, theirs.site, patterns)
    change = measure(question, question.base, logits, clean) - base
    return {
        "change": change.reshape(len(question), 1, 1, -1),
        "base": base,
        "source": measure(question, question.source, theirs.logits, clean),
        "engine": "full",
        "dtype": str(ours.logits.dtype),
    }


def other_run(nn: Any, question: Question, replaced: Replaced, ours: Observed) -> Observed:
    """The run that cells are taken from; in an ablation the base run, with what it puts there."""
    if question.replacements is None and not replaced.pos_embed:
        return observe(nn, question, question.source, SITE)
    found = Observed()
    found.logits, found.site = ours.logits, question.replacements or []
    return found


def with_cells(
    nn: Any, question: Question, cells: Tensor, others: list[Tensor], patterns: list[Tensor]
) -> Tensor:
    """The logits with these cells [layer, unit, spot] replaced.

    Args:
        nn: the nnsight model.
        question: whose sites these are.
        cells: which are replaced.
        others: what the site becomes, by asked layer, to be expanded to [example, pos, width].
        patterns: what the patterns become instead [example, head, query_pos, key_pos].
    """
    layout, width = question.layout, question.base.width
    with nn.trace(**inputs(question.base, layout.options)):
        with torch.no_grad():
            for column, layer in enumerate(question.layers):
                if cells[column].any():
                    if patterns:
                        values = read(nn, layout.value_places[layer], width)
                        other = mixed(patterns[column], values, layout.kv_heads)
                    else:
                        other = others[column]
                    live = read(nn, layout.places[layer], width).clone()
                    there = covered(question, cells[column], live)
                    write(nn, layout.places[layer], torch.where(there, other.to(live), live))
            logits = read_logits(nn, question)
    return logits


def covered(question: Question, cells: Tensor, live: Tensor) -> Tensor:
    """Where cells [unit, spot] lie in a layer's site [example, pos, width]."""
    spots = question.spots.float()
    units = torch.einsum("sep,us->epu", spots, cells.float()) > 0
    return units.repeat_interleave(live.shape[-1] // len(cells), -1).to(live.device)


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
