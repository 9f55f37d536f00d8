r"""Integrated gradients: the mean of gradients on the way from the base run to the source run.

.. math:: \hat I(c) = (a_c^{source} - a_c^{base}) \cdot
          \sum_k w_k \left.\frac{\partial m}{\partial a_c}\right|_{\alpha_k}

Along ``"inputs"`` the token embeddings of all positions go from one run to the other at once
(Sundararajan et al. 2017; EAP-IG, Hanna et al. 2024, arXiv:2403.17806): one pass for each step.
Along ``"activations"`` the site of one layer does, at the positions that are patched, in all its
cells together, and the model above it follows: one pass for each step and layer.

With ever more steps what all parts of the way add up to becomes the change of the metric along it.
How far they are from it is the *completeness error*: along the inputs, of the embeddings' own part;
along activations, of a layer's cells, against one run in which all of them are replaced.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.cache import fork, inputs_from
from nnattr.engine.contributions import Moved, contribution, contributions
from nnattr.engine.gradients import Backward, SourceRun, differentiated, require_gradients
from nnattr.engine.measure import measured
from nnattr.engine.question import Question, every_example, sandboxed
from nnattr.engine.shortcuts import read_logits
from nnattr.runs.places import read, write
from nnattr.runs.portions import RefusedError


class Start:
    """The base run, from which both ways begin.

    Attributes:
        metric: of it [example].
        clean: the clean run's logits at the last position [example, token].
        gap: how far the source run's metric is from it [example].
    """

    def __init__(self, metric: Tensor, clean: Tensor, gap: Tensor) -> None:
        self.metric = metric
        self.clean = clean
        self.gap = gap


def along_inputs(
    backward: Backward,
    question: Question,
    source: SourceRun,
    shares: list[tuple[float, float]],
    begin: Start,
    moved: Moved,
) -> tuple[Tensor, Tensor]:
    """The estimate of every cell, and the completeness error [example, layer], all the same."""
    embed, first = backward.nn.get(question.layout.embed), source.start
    own, other = (
        embed(prompts.ids[:, first:].to(embed.weight.device)).detach()
        for prompts in (question.base, question.source)
    )
    total: list[Tensor] = []
    for share, weight in shares:
        entering = own + share * (other - own)
        run = differentiated(backward, question, source, entering=entering, clean=begin.clean)
        some = [weight * slope.float() for slope in (*run.slopes, run.entered)]
        total = [old + new for old, new in zip(total, some, strict=True)] if total else some
    *slopes, entered = total
    parts = (entered * (other - own).float()).sum((-1, -2))
    error = (parts - begin.gap.to(parts))[:, None].expand(-1, len(moved.own)).cpu()
    return contributions(moved, slopes), error


def along_activations(
    backward: Backward,
    question: Question,
    source: SourceRun,
    shares: list[tuple[float, float]],
    begin: Start,
    moved: Moved,
) -> tuple[Tensor, Tensor]:
    """The estimate of every cell, and the completeness error [example, layer]."""
    changes, errors = [], []
    for i, (layer, own, other) in enumerate(
        zip(question.layers, moved.own, moved.other, strict=True)
    ):
        where = moved.spots.any(0)[..., None].to(own.device)
        change = torch.where(where, other - own, torch.zeros_like(own))
        slope = torch.zeros(own.shape, device=own.device)
        for share, weight in shares:
            _, new = moved_run(
                backward.nn, question, source, layer, own + share * change, begin.clean
            )
            slope = slope + weight * new.float()
        end, _ = moved_run(backward.nn, question, source, layer, own + change, begin.clean)
        changes.append(contribution(moved, i, slope).cpu())
        errors.append(changes[-1].sum((1, 2)) - (end - begin.metric).cpu())
    return torch.stack(changes, 1), torch.stack(errors, 1)


def moved_run(
    nn: Any, question: Question, source: SourceRun, layer: int, value: Tensor, clean: Tensor
) -> tuple[Tensor, Tensor]:
    """The metric of the base run with another site in one layer, and its gradient there."""
    layout, start = question.layout, source.start
    slopes: list[Tensor] = []
    cache = fork(source.cache, every_example(question))
    with nn.trace(**inputs_from(layout, question.base, start, cache)):
        leaf = value.detach().requires_grad_(True)
        read(nn, layout.places[layer], question.base.width - start)
        write(nn, layout.places[layer], leaf.clone())  # the model may go on to add into it
        logits = source.whole(read_logits(nn, question))
        tracked = logits.requires_grad and not sandboxed(nn, layout)
        metric, problem = measured(question, question.base, logits, clean)
        if tracked and metric.requires_grad and not problem:
            slopes = list(torch.autograd.grad(metric.sum(), [leaf]))
    if problem:
        raise RefusedError("metric", problem)
    require_gradients(tracked, slopes)
    return metric.detach(), slopes[0]
