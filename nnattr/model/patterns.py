"""Attention patterns, seen from the client: where to read them, and what a job says that has none.

The job's half is `nnattr.runs.patterns`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nnattr.errors import ArchError, BackendError

if TYPE_CHECKING:
    from nnattr.model.model import Model


def attention_paths(model: Model) -> list[list[str]]:
    """For each layer the modules that may return its pattern, from the innermost one outwards."""
    inside = model.spec.attn_proj.split(".")[:-1]
    names = [".".join(inside[:depth]) for depth in range(len(inside), 0, -1)]
    return [
        [f"{model.spec.layers}.{layer}.{name}" for name in names] for layer in range(model.n_layers)
    ]


def accepted(model: Model, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a job, unless it returned ``{"refused": (kind, reason)}``.

    Raises:
        ArchError: this model's attention gives no pattern.
        BackendError: the place where it runs gives none.
    """
    if "refused" in values:
        kind, reason = values["refused"]
        raise (ArchError if kind == "arch" else BackendError)(f"{model.name}: {reason}")
    return values
