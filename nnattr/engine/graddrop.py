r"""GradDrop: magnitudes over backward passes that each drop what one layer writes.

Two paths from a cell to the metric may cancel in one gradient. With the writes of layer *l* dropped
from the backward pass (attention's and the MLP's, at all positions), only what goes round the layer
is left, and

.. math:: c(n) = \frac{1}{L - 1} \sum_l \left| \hat I_l(n) \right|

for a cell within a layer, which has nothing in the pass that drops its own; for the residual
stream, which always has something, the sum is divided by *L* (AtP*, Kramár et al. 2024,
arXiv:2403.00745). A magnitude: it says nothing of the sign.

Gradients above layer *l* are those of the whole model, and at the layer's input that at its output.
So each pass is one product from there downwards, and all of them about L / 2 backward passes
through one graph. Inside a job: torch and plain values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nnattr.engine.contributions import Moved, contributions
from nnattr.runs.places import cut


def magnitudes(
    moved: Moved,
    layers: list[int],
    parts: list[Any],
    in_stream: bool,
    metric: Tensor,
    live: list[Tensor],
    streams: list[Tensor],
) -> Tensor:
    """The mean magnitude [example, layer, unit, spot] over layers that are dropped.

    Args:
        moved: how the site moves.
        layers: those that are asked about.
        parts: which part of ``live`` the site is, by layer (see `nnattr.runs.places.cut`).
        in_stream: whether the site is the residual stream.
        metric: one number that can be differentiated.
        live: what the site is a part of, by layer [example, pos, width].
        streams: the residual stream that enters each layer, and that leaving the last one.
    """
    found = [
        contributions(moved, [cut(slope, part) for slope, part in zip(slopes, parts, strict=True)])
        for slopes in slopes_without(metric, layers, live, streams, in_stream)
    ]
    passes = len(found) if in_stream else len(found) - 1
    return torch.stack([one.abs() for one in found]).sum(0) / passes


def slopes_without(
    metric: Tensor,
    layers: list[int],
    live: list[Tensor],
    streams: list[Tensor],
    in_stream: bool,
) -> Iterator[list[Tensor]]:
    """For each layer that is dropped, the gradients at the site by asked layer."""
    whole = torch.autograd.grad(metric, [*live, *streams], retain_graph=True)
    slopes, stream = list(whole[: len(live)]), whole[len(live) :]
    for dropped, behind in enumerate(stream[1:]):
        below = sum(layer < dropped for layer in layers)
        found = [*pulled_back(streams[dropped], live[:below], behind), *slopes[below:]]
        if dropped in layers:
            found[below] = behind if in_stream else torch.zeros_like(slopes[below])
        yield found


def pulled_back(stream: Tensor, live: list[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    """The gradients below a layer that a gradient at its input becomes."""
    if not live:
        return ()
    return torch.autograd.grad(stream, live, cotangent, retain_graph=True)
