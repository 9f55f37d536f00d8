"""What every head of an attention layer reads: its query, keys and values, in any family.

Where a family calls Hugging Face's attention functions they are caught in its own plain one, after
any rotary turn and norm. The others have neither norms of queries and keys nor a cache here, so the
columns of their projections' outputs do as well: a turn at the same position is the same turn.
Keys and values are shown once for each *query* head, also where heads share them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.oracles.maps import map_of
from tests.oracles.patching import on_output

#: Queries, keys and values by their letters, each [query head, pos, d_head].
Read = dict[str, Tensor]
#: Shows what a layer's heads read, and takes something else.
Change = Callable[[int, Read], Read]


@contextmanager
def heads_read(module: Any, change: Change) -> Iterator[None]:
    """While this lasts, what heads read of one prompt passes through ``change``."""
    code: Any = sys.modules[type(module).__module__]
    catch = _functions if hasattr(code, "eager_attention_forward") else _projections
    with catch(module, change):
        yield


@contextmanager
def _functions(module: Any, change: Change) -> Iterator[None]:
    code: Any = sys.modules[type(module).__module__]
    plain = code.eager_attention_forward
    config, implementation = module.config, module.config._attn_implementation

    def changed(block: Any, *args: Any, **options: Any) -> Any:
        heads = args[0].shape[1]
        read = {
            port: own[0].repeat_interleave(heads // own.shape[1], 0)
            for port, own in zip("qkv", args[:3], strict=True)
        }
        new = change(block.layer_idx, read)
        shared = getattr(block, "num_key_value_groups", None)
        if shared is not None:
            block.num_key_value_groups = 1  # each head has its own now
        try:
            return plain(block, *(new[port][None] for port in "qkv"), *args[3:], **options)
        finally:
            if shared is not None:
                block.num_key_value_groups = shared

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
def _projections(module: Any, change: Change) -> Iterator[None]:
    catch = _three if module.config.model_type in ("gpt_neo", "gptj") else _one
    with ExitStack() as hooks:
        for at, block in enumerate(module.get_submodule(map_of(module).layers)):
            for handle in catch(module.config, at, block, change):
                hooks.callback(handle.remove)
        yield


def _three(config: Any, layer: int, block: Any, change: Change) -> Iterator[Any]:
    """Three projections, shown and changed one after the other."""
    attention = getattr(block.attn, "attention", block.attn)
    heads = config.num_attention_heads
    for port in "qkv":

        def changed(own: Tensor, port: str = port) -> Tensor:
            new = change(layer, {port: _apart(own, heads)})
            return _together(new[port])

        yield on_output(getattr(attention, f"{port}_proj"), changed)


def _one(config: Any, layer: int, block: Any, change: Change) -> Iterator[Any]:
    """One projection, whose columns `_columns` tells apart."""
    path = {"mpt": "attn.Wqkv"}.get(config.model_type, "self_attention.query_key_value")
    heads = config.num_attention_heads

    def changed(own: Tensor) -> Tensor:
        at = _columns(config, own.shape[-1])
        read = {}
        for port, columns in at.items():
            stored = own[:, columns].transpose(0, 1)
            read[port] = stored.repeat_interleave(heads // len(stored), 0)
        new, whole = change(layer, read), own.clone()
        for port, columns in at.items():
            sharing = new[port].unflatten(0, (len(columns), -1))
            if not torch.equal(sharing, sharing[:, :1].expand_as(sharing)):
                raise NotImplementedError(f"{config.model_type} has one {port} for several heads")
            whole[:, columns] = sharing[:, 0].transpose(0, 1)
        return whole

    yield on_output(block.get_submodule(path), changed)


def _columns(config: Any, width: int) -> dict[str, Tensor]:
    """Which columns of the one projection are whose [head, d_head], read off each ``forward``."""
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    every = torch.arange(width)
    if config.model_type == "mpt":
        return dict(zip("qkv", every.view(3, heads, size), strict=True))
    if config.model_type == "bloom":
        return dict(zip("qkv", every.view(heads, 3, size).unbind(1), strict=True))
    groups = config.num_kv_heads if config.new_decoder_architecture else 1
    if not config.new_decoder_architecture and not config.multi_query:
        return dict(zip("qkv", every.view(heads, 3, size).unbind(1), strict=True))
    cut = every.view(groups, heads // groups + 2, size)
    return {"q": cut[:, :-2].flatten(0, 1), "k": cut[:, -2], "v": cut[:, -1]}


def _apart(own: Tensor, heads: int) -> Tensor:
    return own.unflatten(-1, (heads, -1)).transpose(0, 1)


def _together(own: Tensor) -> Tensor:
    return own.transpose(0, 1).flatten(1)
