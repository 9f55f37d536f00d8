"""Activation patching and attribution patching, done the long way.

One example at a time, without padding; one forward pass per cell; plain hooks on the raw Hugging
Face module. A cell is a layer, a unit (a head of z, or the whole vector: one unit) and a set of
positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tests.oracles.maps import map_of

Change = Callable[[Tensor], Tensor]
Cells = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Pair:
    """One example: the tokens [1, pos] of the run patched into and of the other, and the metric.

    ``metric(logits [pos, vocab], ids [pos])`` is a scalar.
    """

    base: Tensor
    source: Tensor
    metric: Callable[[Tensor, Tensor], Tensor]

    def measure(self, module: Any, ids: Tensor | None = None) -> Tensor:
        """The metric of one forward pass, of the base run if no other tokens are given."""
        ids = self.base if ids is None else ids
        return self.metric(logits_of(module, ids), ids[0])


def patch_every_cell(module: Any, pair: Pair, site: str, units: int, cells: Cells) -> Tensor:
    """The change of the metric [layer, unit, cell], one forward pass for each."""
    with torch.no_grad():
        before = pair.measure(module)
        theirs = activations(module, pair.source, site)
        return torch.stack(
            [
                torch.stack(
                    [
                        torch.stack(
                            [
                                patch_one(module, pair, site, layer, unit, units, cell, theirs)
                                - before
                                for cell in cells
                            ]
                        )
                        for unit in range(units)
                    ]
                )
                for layer in range(len(theirs))
            ]
        )


def patch_one(
    module: Any,
    pair: Pair,
    site: str,
    layer: int,
    unit: int,
    units: int,
    positions: Sequence[int],
    theirs: Sequence[Tensor],
) -> Tensor:
    """The metric of the base run with one cell taken from ``theirs``."""
    width = theirs[layer].shape[-1] // units
    columns = slice(unit * width, (unit + 1) * width)

    def change(own: Tensor) -> Tensor:
        new = own.clone()
        for position in positions:
            new[position, columns] = theirs[layer][position, columns]
        return new

    with torch.no_grad(), passed_through(module, site, layer, change):
        return pair.measure(module)


def estimate_every_cell(module: Any, pair: Pair, site: str, units: int, cells: Cells) -> Tensor:
    """The first-order estimate of the same [layer, unit, cell]: two forwards and one backward."""
    theirs = activations(module, pair.source, site)
    ours = activations(module, pair.base, site)
    nudges = [torch.zeros_like(own, requires_grad=True) for own in ours]
    with ExitStack() as hooks:
        for layer, nudge in enumerate(nudges):
            hooks.enter_context(passed_through(module, site, layer, nudge.__add__))
        slopes = torch.autograd.grad(pair.measure(module), nudges)
    found = torch.zeros(len(ours), units, len(cells))
    for layer, slope in enumerate(slopes):
        product = slope * (theirs[layer] - ours[layer])
        for unit, part in enumerate(product.chunk(units, -1)):
            for i, cell in enumerate(cells):
                found[layer, unit, i] = sum(part[position].sum() for position in cell)
    return found


def activations(module: Any, ids: Tensor, site: str) -> list[Tensor]:
    """The activation [pos, width] of a site at every layer."""
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Change:
        def change(own: Tensor) -> Tensor:
            found[layer] = own.detach().clone()
            return own

        return change

    layers = len(module.get_submodule(map_of(module).layers))
    with torch.no_grad(), ExitStack() as hooks:
        for layer in range(layers):
            hooks.enter_context(passed_through(module, site, layer, keep(layer)))
        logits_of(module, ids)
    return [found[layer] for layer in range(layers)]


def logits_of(module: Any, ids: Tensor) -> Tensor:
    """The logits [pos, vocab] of one prompt."""
    return module(ids, use_cache=False).logits[0]


@contextmanager
def passed_through(module: Any, site: str, layer: int, change: Change) -> Iterator[None]:
    """While this lasts, the activation [pos, width] at a site passes through ``change``."""
    handles = list(_hooks(module, site, layer, change))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(module: Any, site: str, layer: int, change: Change) -> Iterator[RemovableHandle]:
    where = map_of(module)
    block = module.get_submodule(where.layers)[layer]
    if site == "z":
        yield on_input(block.get_submodule(where.projection), change)
    elif site == "attn_out":
        yield on_output(block.get_submodule(where.attention), change)
    elif site == "mlp_out":
        yield on_output(block.get_submodule(where.mlp), change)
    elif site == "resid_pre":
        yield on_input(block, change)
    elif site == "resid_post":
        yield on_output(block, change)
    elif site == "resid_mid":
        # What stands between attention and MLP is the sum of what came in and attention's
        # contribution; the change is made through the contribution.
        came_in: list[Tensor] = []

        def keep(own: Tensor) -> Tensor:
            came_in[:] = [own]
            return own

        def contribution(own: Tensor) -> Tensor:
            return (change(came_in[0] + where.scale * own) - came_in[0]) / where.scale

        yield on_input(block, keep)
        yield on_output(block.get_submodule(where.attention), contribution)
    else:
        raise ValueError(site)


def on_input(target: Any, change: Change) -> RemovableHandle:
    """Change what enters a module."""

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (_changed(change, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": _changed(change, kwargs["hidden_states"])}

    return target.register_forward_pre_hook(hook, with_kwargs=True)


def on_output(target: Any, change: Change) -> RemovableHandle:
    """Change what leaves a module (the first part, if that is a tuple)."""

    def hook(_: Any, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (_changed(change, output[0]), *output[1:])
        return _changed(change, output)

    return target.register_forward_hook(hook)


def _changed(change: Change, value: Tensor) -> Tensor:
    """``change`` on [pos, width]: one example, so every other axis has length 1.

    The clone keeps what the model later adds in place out of what was read.
    """
    return change(value.reshape(-1, value.shape[-1])).clone().reshape(value.shape)
