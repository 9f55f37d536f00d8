"""Patches inside a layer, done the long way: in Hugging Face's own plain attention function.

Its arguments are what attention really uses: queries and keys *after* any rotary turn and per-head
norm, heads apart, keys and values one per key/value head. What it returns besides the output is the
pattern. Neurons are hooked where the MLP's last projection takes them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.oracles.maps import map_of
from tests.oracles.patching import Cells, Pair, logits_of, on_input

#: Shows an activation [unit, pos, ...] of a layer, and takes another.
Change = Callable[[int, Tensor], Tensor]
NEURONS = {"gpt2": "mlp.c_proj", "gpt_neox": "mlp.dense_4h_to_h"}


def patch_every_cell(module: Any, pair: Pair, site: str, cells: Cells) -> Tensor:
    """The change of the metric [layer, unit, cell], one forward pass for each."""
    theirs = activations(module, pair.source, site)
    with torch.no_grad():
        before = pair.measure(module)
        found = [
            [[patched(module, pair, site, at, unit, cell, theirs) - before for cell in cells]
             for unit in range(len(theirs[at]))]
            for at in sorted(theirs)
        ]  # fmt: skip
    return torch.tensor(found)


def estimate_every_cell(module: Any, pair: Pair, site: str, cells: Cells) -> Tensor:
    """The first-order estimate of the same [layer, unit, cell]: slope times change."""
    theirs, ours = (activations(module, ids, site) for ids in (pair.source, pair.base))
    nudges = {at: torch.zeros_like(own, requires_grad=True) for at, own in ours.items()}
    with inside(module, site, lambda at, own: own + nudges[at]):
        slopes = torch.autograd.grad(pair.measure(module), list(nudges.values()))
    moved = [
        (slope * (theirs[at] - ours[at])).sum(-1)  # [unit, pos]
        for at, slope in zip(nudges, slopes, strict=True)
    ]
    return torch.stack([torch.stack([one[:, cell].sum(-1) for cell in cells], -1) for one in moved])


def patched(
    module: Any,
    pair: Pair,
    site: str,
    layer: int,
    units: int | Sequence[int],
    positions: Sequence[int],
    theirs: dict[int, Tensor],
) -> Tensor:
    """The metric of the base run with some units of a layer taken from ``theirs``."""

    def change(at: int, own: Tensor) -> Tensor:
        new = own.clone()
        for unit in [units] if isinstance(units, int) else units:
            for position in positions:
                if at == layer:
                    new[unit, position] = theirs[layer][unit, position]
        return new

    with inside(module, site, change):
        return pair.measure(module)


def activations(module: Any, ids: Tensor, site: str) -> dict[int, Tensor]:
    """The activation [unit, pos, ...] of every layer."""
    found: dict[int, Tensor] = {}

    def keep(at: int, own: Tensor) -> Tensor:
        found[at] = own.clone()
        return own

    with torch.no_grad(), inside(module, site, keep):
        logits_of(module, ids)
    return found


def inside(module: Any, site: str, change: Change) -> Any:
    """While this lasts, a site passes through ``change``."""
    return neurons(module, change) if site == "neuron" else attention(module, site, change)


@contextmanager
def attention(module: Any, site: str, change: Change) -> Iterator[None]:
    """Let queries, keys, values or the pattern of one prompt pass through ``change``."""
    code: Any = sys.modules[type(module).__module__]
    config, implementation = module.config, module.config._attn_implementation
    plain = code.eager_attention_forward

    def changed(block: Any, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        given = dict(zip("qkv", args[:3], strict=True))
        if site in given:
            given[site] = change(block.layer_idx, given[site][0])[None]
        output, pattern = plain(block, *given.values(), *args[3:], **options)
        if site == "pattern":
            values = given["v"].repeat_interleave(pattern.shape[1] // given["v"].shape[1], 1)
            output = (change(block.layer_idx, pattern[0])[None] @ values).transpose(1, 2)
        return output, pattern

    # in the registry, which comes before the family's own: TransformerLens puts one there as well
    before = ALL_ATTENTION_FUNCTIONS.get("eager")
    ALL_ATTENTION_FUNCTIONS["eager"], config._attn_implementation = changed, "eager"
    try:
        yield
    finally:
        config._attn_implementation = implementation
        del ALL_ATTENTION_FUNCTIONS["eager"]
        if before is not None:
            ALL_ATTENTION_FUNCTIONS["eager"] = before


@contextmanager
def neurons(module: Any, change: Change) -> Iterator[None]:
    """Let the neurons of one prompt pass through ``change``."""
    path = NEURONS.get(module.config.model_type, "mlp.down_proj")
    handles = [
        on_input(
            layer.get_submodule(path), lambda own, at=at: change(at, own.T[..., None])[..., 0].T
        )
        for at, layer in enumerate(module.get_submodule(map_of(module).layers))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
