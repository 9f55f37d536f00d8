"""Where parts of a model read and write, for patches of edges: plain values that travel."""

from __future__ import annotations

from typing import Any

from nnattr.arch.modules import is_norm
from nnattr.graph import Part
from nnattr.model.components import contribution_norm
from nnattr.model.model import Model


def wiring(model: Model) -> dict[str, Any]:
    """Plain values that travel with a job: see `nnattr.engine.wiring.Wiring`."""
    spec, layers = model.spec, range(model.n_layers)
    roots = [f"{spec.layers}.{layer}" for layer in layers]
    return {
        "layers": roots,
        "heads": model.n_heads,
        "kv_heads": model.n_kv_heads,
        "scale": float(getattr(model.config, spec.residual_scale) if spec.residual_scale else 1.0),
        "norms": [_norms(model, root) for root in roots],
        "ports": [_ports(model, layer) for layer in layers],
        "shifted": spec.qk_positions is not None,
        "z": model.places("z"),
        "behind": [contribution_norm(model, layer) for layer in layers],
        "mlp_in": [_mlp_in(model, root) for root in roots],
        "mlp_out": model.places("mlp_out") if spec.mlp_out else [],
        "parallel": spec.parallel,
    }


def _norms(model: Model, root: str) -> list[str]:
    """The norms that are a layer's own parts: some stand in front of attention and the MLP."""
    layer = model.module.get_submodule(root)
    return [f"{root}.{name}" for name, part in layer.named_children() if is_norm(name, part)]


def _ports(model: Model, layer: int) -> dict[str, dict[str, Any]]:
    """By q, k and v where they are read and written, and the modules that make them, in order."""
    qkv = model.spec.qkv
    if qkv is None:
        return {}
    root, found = f"{model.spec.layers}.{layer}", {}
    for name, projection in zip("qkv", qkv[:3], strict=True):
        where = model.places(name)[layer]  # type: ignore[arg-type]
        made_by = dict.fromkeys([f"{root}.{projection}", where[0]])
        found[name] = {"place": where, "made_by": list(made_by)}
    return found


def _mlp_in(model: Model, root: str) -> str | None:
    """The module that the MLP's own input enters: its norm, or in parallel blocks the MLP."""
    spec = model.spec
    if spec.mlp_out is None:
        return None
    if spec.resid_mid is not None:
        return f"{root}.{spec.resid_mid.path}"
    inside = spec.mlp_proj.rpartition(".")[0] if spec.mlp_proj else ""
    return f"{root}.{inside or spec.mlp_out.path}"


def plain(part: Part) -> tuple[str, int | None, int | None, str | None]:
    """A part in plain values: kind, layer, number and port."""
    return part.kind, part.layer, part.number, part.port
