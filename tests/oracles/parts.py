"""Names of parts for the oracle of edges, and which edges there are; read off each ``forward``."""

from __future__ import annotations

import re
from typing import Any

from tests.oracles.maps import map_of

#: A sender and a receiver.
Edge = tuple[str, str]

_PART = re.compile(r"(?:(input|logits)|(M)(\d+)|L(\d+)(H|KV)(\d+))(?:\.(q|k|v|qk))?")


def parsed(name: str) -> tuple[str, int, int, str]:
    """Kind (input, logits, M, H, KV), layer, number, ports."""
    match = _PART.fullmatch(name)
    assert match is not None, name
    end, mlp, of_mlp, of_head, head, number, ports = match.groups()
    return end or mlp or head, int(of_mlp or of_head or 0), int(number or 0), ports or ""


def order(receiver: str) -> tuple[int, int]:
    """Where a receiver comes in the forward pass: those of equal order do not feed each other."""
    kind, layer, *_ = parsed(receiver)
    return (10**6, 0) if kind == "logits" else (layer, int(kind == "M"))


def layers_of(module: Any) -> int:
    """How many layers a model has."""
    return len(module.get_submodule(map_of(module).layers))


def head_count(module: Any) -> int:
    """How many query heads a layer has."""
    return module.config.num_attention_heads


def kv_count(module: Any) -> int:
    """How many key/value heads a layer has."""
    config = module.config
    if config.model_type == "falcon":
        split = config.new_decoder_architecture
        return config.num_kv_heads if split else 1 if config.multi_query else head_count(module)
    if config.model_type == "gpt_bigcode":
        return 1 if config.multi_query else head_count(module)
    return getattr(config, "num_key_value_heads", None) or head_count(module)


def heads_of(module: Any, receiver: str) -> list[int]:
    """The query heads that a receiver changes."""
    kind, _, number, _ = parsed(receiver)
    if kind == "H":
        return [number]
    size = head_count(module) // kv_count(module)
    return list(range(number * size, (number + 1) * size))


def senders_of(module: Any) -> list[str]:
    """All senders, in forward order."""
    found = ["input"]
    for at in range(layers_of(module)):
        found += [f"L{at}H{head}" for head in range(head_count(module))] + [f"M{at}"]
    return found


def receivers_of(module: Any, ungrouped: bool = False) -> list[str]:
    """All receivers, in forward order."""
    heads, shared = head_count(module), kv_count(module)
    apart = ungrouped or heads == shared
    theirs = [f"H{head}" for head in range(heads)] if apart else [f"KV{i}" for i in range(shared)]
    found = []
    for at in range(layers_of(module)):
        found += [f"L{at}H{head}.q" for head in range(heads)]
        found += [f"L{at}{name}.{port}" for port in "kv" for name in theirs]
        found.append(f"M{at}")
    return [*found, "logits"]


def reaches(module: Any, sender: str, receiver: str) -> bool:
    """Whether what ``sender`` writes is a term of what ``receiver`` reads."""
    kind, layer, *_ = parsed(sender)
    if kind == "input":
        return True
    inside = kind == "H" and receiver == f"M{layer}" and not map_of(module).parallel
    return inside or order(receiver)[0] > layer


def all_edges(module: Any, ungrouped: bool = False) -> list[Edge]:
    """Every edge of a model, by sender."""
    receivers = receivers_of(module, ungrouped)
    return [(u, v) for u in senders_of(module) for v in receivers if reaches(module, u, v)]
