"""Where the engine finds things: paths in every layer, and how a patch enters the model.

A patch of a site enters the model in one of five ways: the residual stream ``before`` a layer is
replaced, or ``after`` it; a change is ``added`` to the stream after the layer (MLP outputs,
neurons, and everything in parallel blocks); a change is added to what ``attention`` contributes,
and the layer's MLP runs on; or the site is replaced ``inside`` a layer that is run from its start
(queries, keys, values). A patch of z or of neurons first goes through the output projection.

A patched ``pattern`` is a patch of z: see `nnattr.engine.pattern_patch`.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from nnattr.arch.spec import ArchSpec
from nnattr.model.model import Model
from nnattr.model.patterns import attention_paths
from nnattr.model.sites import FORWARD_ORDER, SiteName, place

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
_MIXING = ("resid_pre", "k", "v")


def layout(model: Model, site: PatchSite) -> dict[str, Any]:
    """Plain values that travel with a job: see `nnattr.engine.question.Layout`.

    Raises:
        ArchError: the site is unknown or this family does not have it.
    """
    spec, layers = model.spec, range(model.n_layers)
    paths = [f"{spec.layers}.{layer}" for layer in layers]
    attention = [f"{path}.{spec.attn_proj.rpartition('.')[0]}" for path in paths]
    has_post_norm = spec.attn_out.path != spec.attn_proj
    where: SiteName = "z" if site == "pattern" else site
    places = model.places(where)
    gelus = [_gelus(model, path) for path in paths]
    scale = getattr(model.config, spec.residual_scale) if spec.residual_scale else 1.0
    return {
        "embed": spec.embed,
        "unembed": spec.unembed,
        "layers": paths,
        "steps": _steps(where, has_post_norm, paths, attention, places, gelus),
        "attention": attention,
        "norms": [f"{path}.{spec.attn_out.path}" for path in paths],
        "gelus": gelus,
        "tail": [f"{paths[-1]}.{path}" for path in _tail(spec)],
        "site": where,
        "places": places,
        "entry": (_PARALLEL if spec.parallel else _SERIAL)[where],
        "mixes_positions": where in _MIXING,
        "out_path": [[f"{path}.{part}" for part in _out_path(spec, where)] for path in paths],
        "behind_norm": has_post_norm and where != "z",
        "scale": float(scale),
        "pattern_paths": attention_paths(model) if site == "pattern" else [],
        "value_places": model.places("v") if site == "pattern" else [],
        "kv_heads": model.n_kv_heads,
        "sizes": sizes(model, site),
    }


def _steps(
    site: SiteName,
    has_post_norm: bool,
    paths: list[str],
    attention: list[str],
    places: list[tuple[Any, ...]],
    gelus: list[list[str]],
) -> list[list[tuple[str, Any]]]:
    """What may be read or done in each layer while it runs, in forward order.

    The site comes before attention's end, before the MLP's GELU, or after it.
    """
    order = list(FORWARD_ORDER)
    when = order.index(site)
    early = when <= order.index("z") or (site == "attn_out" and not has_post_norm)
    late = when >= order.index("neuron")
    found = []
    for layer, path in enumerate(paths):
        steps: list[tuple[str, Any]] = [("attention", (attention[layer], "output", None))]
        steps += [("arity", attention[layer])] if layer == 0 else []
        middle = len(steps)
        steps += [("gelu", gelu) for gelu in gelus[layer]]
        steps.insert(0 if early else len(steps) if late else middle, ("site", places[layer]))
        steps += [("arity", path)] if layer == 0 else []
        found.append([("stream", (path, "input", None)), *steps])
    found[-1].append(("end", (paths[-1], "output", None)))
    return found


def units(model: Model, site: PatchSite) -> tuple[str | None, int]:
    """The parts of a site that are patched apart: the name of their axis, and how many they are.

    Raises:
        ArchError: this family does not have the site.
    """
    if site == "neuron":
        return site, model.d_mlp
    where: SiteName = "z" if site == "pattern" else site
    place(model.spec, where, 0)  # it must be there
    axis = FORWARD_ORDER[where]
    return axis, {"head": model.n_heads, "kv_head": model.n_kv_heads, None: 1}[axis]


def sizes(model: Model, site: PatchSite) -> dict[str, int]:
    """Floats per token of what takes memory: see `nnattr.engine.question.Sizes`."""
    module = model.module
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


def _out_path(spec: ArchSpec, site: SiteName) -> list[str]:
    """The modules between a site and what is added to the residual stream, a projection first.

    The norm behind attention is not among them: it runs by itself after what enters there.
    """
    if site == "z":
        return [spec.attn_proj]
    if site != "neuron" or spec.mlp_proj is None or spec.mlp_out is None:
        return []
    behind = not f"{spec.mlp_proj}.".startswith(f"{spec.mlp_out.path}.")
    return [spec.mlp_proj, spec.mlp_out.path] if behind else [spec.mlp_proj]


def _tail(spec: ArchSpec) -> list[str]:
    """The modules of a layer whose input may be cut to the positions that are still needed.

    What comes out of them is added to the residual stream, so one position does for all.
    """
    mlp = spec.mlp_out.path if spec.mlp_out else ""
    mlp = spec.mlp_proj.rpartition(".")[0] if spec.mlp_proj else mlp
    return [path for path in (spec.attn_proj, mlp) if path]


def _gelus(model: Model, path: str) -> list[str]:
    """The modules of a layer that torch computes faster in one step."""
    layer = model.module.get_submodule(path)
    modules = layer.named_modules()
    return [f"{path}.{name}" for name, part in modules if type(part).__name__ == _TANH_GELU]
