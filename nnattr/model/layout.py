"""Where the engine finds things: paths in every layer, and how a patch enters the model.

A patch of a site enters the model in one of five ways: the residual stream ``before`` a layer is
replaced, or ``after`` it; a change is ``added`` to the stream after the layer (MLP outputs,
neurons, and everything in parallel blocks); a change is added to what ``attention`` contributes,
and the layer's MLP runs on; or the site is replaced ``inside`` a layer that is run from its start
(queries, keys, values). A patch of z or of neurons first goes ``through`` the output projection.

A patched ``pattern`` is a patch of z: see `nnattr.model.gathered`.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from nnattr.arch.spec import ArchSpec
from nnattr.model.model import Model
from nnattr.model.patterns import attention_paths
from nnattr.model.sites import SiteName, part

#: What can be patched: the sites that are read and written, and the attention pattern.
PatchSite: TypeAlias = SiteName | Literal["pattern"]

_SERIAL = {
    "resid_pre": "before",
    "q": "inside",
    "k": "inside",
    "v": "inside",
    "z": "attention",
    "attn_out": "attention",
    "resid_mid": "attention",
    "neuron": "added",
    "mlp_out": "added",
    "resid_post": "after",
}
_PARALLEL = {**_SERIAL, "z": "added", "attn_out": "added"}
#: The class of transformers that writes the tanh form of GELU out in eight elementwise steps.
_TANH_GELU = "NewGELUActivation"
#: Sites at which a position is read by later ones in the same layer.
_SPREADING = ("resid_pre", "k", "v")


def layout(model: Model, site: PatchSite) -> dict[str, Any]:
    """Plain values that travel with a job: ``reads`` holds, for each layer, named places in order.

    Raises:
        ArchError: the site is unknown or this family does not have it.
    """
    spec, layers = model.spec, range(model.n_layers)
    paths = [f"{spec.layers}.{layer}" for layer in layers]
    attention = spec.attn_proj.rpartition(".")[0]
    normed = spec.attn_out.path != spec.attn_proj
    where: SiteName = "z" if site == "pattern" else site
    places = model.places(where)
    # in forward order: a site is read before attention's end, before the MLP's GELU, or after it
    early = where in ("resid_pre", "q", "k", "v", "z") or (where == "attn_out" and not normed)
    late = where in ("neuron", "mlp_out", "resid_post")
    gelus = [_gelus(model, path) for path in paths]
    reads = []
    for layer, path in enumerate(paths):
        module = f"{path}.{attention}"
        steps: list[tuple[str, Any]] = [("attention", (module, "output", None))]
        steps += [("arity", module)] if layer == 0 else []
        middle = len(steps)
        steps += [("gelu", gelu) for gelu in gelus[layer]]
        steps.insert(0 if early else len(steps) if late else middle, ("site", places[layer]))
        steps += [("arity", path)] if layer == 0 else []
        reads.append([("stream", (path, "input", None)), *steps])
    reads[-1].append(("end", (paths[-1], "output", None)))
    scale = getattr(model.config, spec.residual_scale) if spec.residual_scale else 1.0
    return {
        "site": where,
        "reads": reads,
        "places": places,
        "entry": (_PARALLEL if spec.parallel else _SERIAL)[where],
        "spreads": where in _SPREADING,
        "through": [[f"{path}.{part}" for part in _through(spec, where)] for path in paths],
        "normed": normed,
        "scale": float(scale),
        "embed": spec.embed,
        "unembed": spec.unembed,
        "narrow": [f"{paths[-1]}.{path}" for path in _narrow(spec)],
        "queries": _queries(model, paths[-1]),
        "gelus": gelus,
        "layer_paths": paths,
        "attn": [f"{path}.{attention}" for path in paths],
        "norms": [f"{path}.{spec.attn_out.path}" for path in paths],
        "patterns": attention_paths(model) if site == "pattern" else [],
        "values": model.places("v") if site == "pattern" else [],
    }


def units(model: Model, site: PatchSite) -> tuple[str | None, int]:
    """The parts of a site that are patched apart: the name of their axis, and how many they are.

    Raises:
        ArchError: this family does not have the site.
    """
    if site in ("z", "q", "pattern"):
        return "head", model.n_heads
    if site in ("k", "v"):
        return "kv_head", model.n_kv_heads
    return ("neuron", model.d_mlp) if site == "neuron" else (None, 1)


def sizes(model: Model, site: PatchSite) -> dict[str, int]:
    """Floats per token of what takes memory: see `nnattr.model.memory`."""
    module = model.nn._module
    embedding = module.get_submodule(model.spec.embed).weight
    layer = module.get_submodule(f"{model.spec.layers}.0")
    widest = max(max(weight.shape[-2:]) for weight in layer.parameters() if weight.ndim > 1)
    stream = model.config.hidden_size
    count = {"head": model.n_heads, "kv_head": model.n_kv_heads}
    axis, parts = units(model, site)
    return {
        "stream": stream,
        "widest": widest,
        "site": parts if axis == "neuron" else count[axis] * model.d_head if axis else stream,
        "keys": model.n_kv_heads * model.d_head,
        "heads": model.n_heads,
        "vocab": embedding.shape[0],
    }


def _through(spec: ArchSpec, site: SiteName) -> list[str]:
    """The modules between a site and what is added to the residual stream, a projection first.

    The norm behind attention is not among them: it runs by itself after what enters there.
    """
    if site == "z":
        return [spec.attn_proj]
    if site != "neuron" or spec.mlp_proj is None:
        return []
    behind = not f"{spec.mlp_proj}.".startswith(f"{spec.mlp_out.path}.")
    return [spec.mlp_proj, spec.mlp_out.path] if behind else [spec.mlp_proj]


def _narrow(spec: ArchSpec) -> list[str]:
    """The modules of a layer whose input may be cut to the positions that are still needed.

    What comes out of them is added to the residual stream, so one position does for all.
    """
    mlp = spec.mlp_proj.rpartition(".")[0] if spec.mlp_proj else spec.mlp_out.path
    return [path for path in (spec.attn_proj, mlp) if path]


def _queries(model: Model, path: str) -> tuple[str, Any] | None:
    """The module that makes a layer's queries, and which part of its output they are."""
    qkv = model.spec.qkv
    if qkv is None:
        return None
    return f"{path}.{qkv.q}", part(qkv, "q", model.n_heads, model.n_kv_heads, model.d_head)


def _gelus(model: Model, path: str) -> list[str]:
    """The modules of a layer that torch computes faster in one step."""
    layer = model.nn._module.get_submodule(path)
    modules = layer.named_modules()
    return [f"{path}.{name}" for name, part in modules if type(part).__name__ == _TANH_GELU]
