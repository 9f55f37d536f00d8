"""Attention patterns, seen from the client: where to read them.

The job's half is `nnattr.runs.patterns`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnattr.model.model import Model


def attention_paths(model: Model) -> list[list[str]]:
    """For each layer the modules that may return its pattern, from the innermost one outwards."""
    inside = model.spec.attn_proj.split(".")[:-1]
    names = [".".join(inside[:depth]) for depth in range(len(inside), 0, -1)]
    return [
        [f"{model.spec.layers}.{layer}.{name}" for name in names] for layer in range(model.n_layers)
    ]
