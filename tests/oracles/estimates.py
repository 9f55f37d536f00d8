"""Estimates of patching, one example at a time: literal passes in plain PyTorch hooks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from tests.oracles import inside, patching
from tests.oracles.patching import Cells, Pair, activations, passed_through
from tests.oracles.rules import dropped


def slopes(
    module: Any, pair: Pair, site: str, ours: Sequence[Tensor], without: int | None = None
) -> list[Tensor]:
    """The gradients of the metric at a site, by layer; ``without`` what one layer writes."""
    nudges = [torch.zeros_like(own, requires_grad=True) for own in ours]
    with ExitStack() as hooks:
        for layer, nudge in enumerate(nudges):
            hooks.enter_context(passed_through(module, site, layer, nudge.__add__))
        if without is not None:
            hooks.enter_context(dropped(module, without))
        found = torch.autograd.grad(pair.measure(module), nudges, allow_unused=True)
    return [
        torch.zeros_like(own) if slope is None else slope
        for slope, own in zip(found, ours, strict=True)
    ]


def by_cell(products: Sequence[Tensor], units: int, cells: Cells) -> Tensor:
    """Gradient times change [pos, width] of each layer, summed over cells [layer, unit, cell]."""
    return torch.stack(
        [
            torch.stack(
                [
                    torch.stack([part[list(cell)].sum() for cell in cells])
                    for part in product.chunk(units, -1)
                ]
            )
            for product in products
        ]
    )


def magnitudes(module: Any, pair: Pair, site: str, units: int, cells: Cells) -> Tensor:
    """GradDrop by as many literal passes as there are layers [layer, unit, cell]."""
    ours, theirs = (activations(module, ids, site) for ids in (pair.base, pair.source))
    total = torch.zeros(len(ours), units, len(cells))
    for layer in range(len(ours)):
        found = slopes(module, pair, site, ours, without=layer)
        products = [s * (t - o) for s, t, o in zip(found, theirs, ours, strict=True)]
        total += by_cell(products, units, cells).abs()
    return total / (len(ours) if site.startswith("resid") else len(ours) - 1)


def embeddings(module: Any, ids: Tensor) -> Tensor:
    """The token embeddings [1, pos, d_model]."""
    return module.get_input_embeddings()(ids).detach()


def along_inputs(
    module: Any,
    pair: Pair,
    site: str,
    units: int,
    cells: Cells,
    shares: Sequence[tuple[float, float]],
) -> tuple[Tensor, float]:
    """Integrated gradients of the embeddings [layer, unit, cell], and their completeness error."""
    ours, theirs = (activations(module, ids, site) for ids in (pair.base, pair.source))
    start, end = (embeddings(module, ids) for ids in (pair.base, pair.source))
    total, part = [torch.zeros_like(own) for own in ours], 0.0
    for share, weight in shares:
        between = (start + share * (end - start)).requires_grad_(True)
        handle = module.get_input_embeddings().register_forward_hook(
            lambda *_, value=between: value
        )
        found = slopes(module, pair, site, ours)
        entered = torch.autograd.grad(pair.measure(module), between)[0]
        handle.remove()
        total = [old + weight * new for old, new in zip(total, found, strict=True)]
        part += weight * float((entered * (end - start)).sum())
    with torch.no_grad():
        gap = float(pair.measure(module, pair.source) - pair.measure(module))
    products = [s * (t - o) for s, t, o in zip(total, theirs, ours, strict=True)]
    return by_cell(products, units, cells), part - gap


def along_activations(
    module: Any,
    pair: Pair,
    site: str,
    units: int,
    cells: Cells,
    shares: Sequence[tuple[float, float]],
) -> tuple[Tensor, Tensor]:
    """Integrated gradients of each layer's site, and the completeness error [layer]."""
    ours, theirs = (activations(module, ids, site) for ids in (pair.base, pair.source))
    touched = sorted({position for cell in cells for position in cell})
    estimates, errors = [], []
    for layer, own in enumerate(ours):
        change = torch.zeros_like(own)
        change[touched] = theirs[layer][touched] - own[touched]

        def measured(value: Tensor, layer: int = layer) -> Tensor:
            with passed_through(module, site, layer, lambda _: value):
                return pair.measure(module)

        total = torch.zeros_like(own)
        for share, weight in shares:
            value = (own + share * change).requires_grad_(True)
            total += weight * torch.autograd.grad(measured(value), value)[0]
        estimates.append(by_cell([total * change], units, cells)[0])
        with torch.no_grad():
            joint = measured(own + change) - pair.measure(module)
        errors.append(estimates[-1].sum() - joint)
    return torch.stack(estimates), torch.stack(errors)


def through_softmax(module: Any, pair: Pair, site: str, cells: Cells) -> Tensor:
    """What patched queries or keys do to the pattern, times its gradient [layer, unit, cell].

    One softmax for each cell, in double precision.
    """
    return weighed(module, pair, site, cells, pattern_slopes(module, pair))


def dropped_through_softmax(module: Any, pair: Pair, site: str, cells: Cells) -> Tensor:
    """The same magnitudes over literal passes that drop a layer each."""
    found = []
    layers = len(inside.activations(module, pair.base, "pattern"))
    for layer in range(layers):
        with dropped(module, layer):
            found.append(weighed(module, pair, site, cells, pattern_slopes(module, pair)).abs())
    return torch.stack(found).sum(0) / (layers - 1)


def pattern_slopes(module: Any, pair: Pair) -> dict[int, Tensor]:
    """The gradient of the metric at the pattern of each layer [head, query, key]."""
    ours = inside.activations(module, pair.base, "pattern")
    nudges = {at: torch.zeros_like(own, requires_grad=True) for at, own in ours.items()}
    with inside.inside(module, "pattern", lambda at, own: own + nudges[at]):
        found = torch.autograd.grad(pair.measure(module), list(nudges.values()), allow_unused=True)
    return {
        at: torch.zeros_like(own) if slope is None else slope
        for (at, own), slope in zip(ours.items(), found, strict=True)
    }


def weighed(module: Any, pair: Pair, site: str, cells: Cells, slopes: dict[int, Tensor]) -> Tensor:
    """The change of the pattern by one cell at a time, times these slopes."""
    theirs = inside.activations(module, pair.source, site)
    plain = inside.activations(module, pair.base, "pattern")
    found = []
    for at in sorted(theirs):
        rows = []
        for unit in range(len(theirs[at])):
            row = []
            for cell in cells:
                changed = patterns_with(module, pair, site, at, unit, cell, theirs)
                row.append(((changed - plain[at]).double() * slopes[at].double()).sum())
            rows.append(torch.stack(row))
        found.append(torch.stack(rows))
    return torch.stack(found)


def patterns_with(
    module: Any,
    pair: Pair,
    site: str,
    layer: int,
    unit: int,
    positions: Sequence[int],
    theirs: dict[int, Tensor],
) -> Tensor:
    """The pattern [head, query, key] of a layer whose query or key of one cell is the other's."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    seen: dict[int, Tensor] = {}

    def change(at: int, own: Tensor) -> Tensor:
        new = own.clone()
        for position in positions if at == layer else ():
            new[unit, position] = theirs[at][unit, position]
        return new

    with torch.no_grad(), inside.inside(module, site, change):
        wrapped: Any = ALL_ATTENTION_FUNCTIONS["eager"]

        def watching(block: Any, *args: Any, **options: Any) -> Any:
            output, pattern = wrapped(block, *args, **options)
            seen[block.layer_idx] = pattern[0]
            return output, pattern

        ALL_ATTENTION_FUNCTIONS["eager"] = watching
        patching.logits_of(module, pair.base)
    return seen[layer]
