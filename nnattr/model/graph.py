"""The graph of a model: of one that is loaded, or of a configuration alone."""

from __future__ import annotations

from typing import Any

from nnattr.arch.spec import ArchSpec
from nnattr.graph import Graph
from nnattr.model.model import Model


def graph_of(model: Model, *, ungrouped: bool = False) -> Graph:
    """Which parts of a model write and read, and which edges it has.

    Args:
        model: loaded here or on a server.
        ungrouped: give every head a key and a value of its own, see `nnattr.graph.Graph`.
    """
    layout = _layout(model.spec, ungrouped)
    return Graph(model.n_layers, model.n_heads, model.n_kv_heads, **layout)


def graph_from(spec: ArchSpec, config: Any, *, ungrouped: bool = False) -> Graph:
    """The same from where a family keeps its parts and from a Hugging Face configuration.

    No weights are needed, and no module: ``nnattr.arch.table.lookup(config)`` gives the spec.
    """
    text = config.get_text_config()
    heads = text.num_attention_heads
    return Graph(text.num_hidden_layers, heads, _kv_heads(text), **_layout(spec, ungrouped))


def _layout(spec: ArchSpec, ungrouped: bool) -> dict[str, bool]:
    return {
        "parallel": spec.parallel,
        "mlps": spec.mlp_out is not None,
        "attends": spec.qkv is not None,
        "ungrouped": ungrouped,
    }


def _kv_heads(config: Any) -> int:
    """How many keys and values a layer has, by what families call the number."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", 0):
        return 1
    named = (getattr(config, name, None) for name in ("num_key_value_heads", "num_kv_heads"))
    return next(filter(None, named), config.num_attention_heads)
