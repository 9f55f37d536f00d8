"""Where the engine finds things: paths in every layer, and how a patch enters the model.

A patch of a site enters the model in one of four ways: the residual stream ``before`` a layer is
replaced, or ``after`` it; a change is ``added`` to the stream after the layer (MLP outputs, and
everything in parallel blocks); or a change is added to what ``attention`` contributes, and the
layer's MLP runs on. A patch of z is first ``projected`` to the residual stream.
"""

from __future__ import annotations

from typing import Any

from nnattr.arch.spec import ArchSpec
from nnattr.model.sites import SiteName
from nnattr.model.view import Model

_SERIAL = {
    "resid_pre": "before",
    "z": "attention",
    "attn_out": "attention",
    "resid_mid": "attention",
    "mlp_out": "added",
    "resid_post": "after",
}
_PARALLEL = {**_SERIAL, "z": "added", "attn_out": "added"}


def layout(model: Model, site: SiteName) -> dict[str, Any]:
    """Plain values that travel with a job: ``reads`` holds, for each layer, named places in order.

    Raises:
        ArchError: the site is unknown or this family does not have it.
    """
    spec, layers = model.spec, range(model.n_layers)
    paths = [f"{spec.layers}.{layer}" for layer in layers]
    attention = spec.attn_proj.rpartition(".")[0]
    normed = spec.attn_out.path != spec.attn_proj
    places = model.places(site)
    # a site before attention's end is read before it, the others after it
    early = site in ("resid_pre", "z") or (site == "attn_out" and not normed)
    reads = []
    for layer, path in enumerate(paths):
        both = [("site", places[layer]), ("attention", (f"{path}.{attention}", "output", None))]
        reads.append([("stream", (path, "input", None)), *(both if early else both[::-1])])
    reads[-1].append(("end", (paths[-1], "output", None)))
    scale = getattr(model.config, spec.residual_scale) if spec.residual_scale else 1.0
    return {
        "site": site,
        "reads": reads,
        "entry": (_PARALLEL if spec.parallel else _SERIAL)[site],
        "projected": site == "z",
        "normed": normed,
        "scale": float(scale),
        "embed": spec.embed,
        "unembed": spec.unembed,
        "narrow": [f"{paths[-1]}.{path}" for path in _narrow(spec)],
        "layer_paths": paths,
        "attn": [f"{path}.{attention}" for path in paths],
        "proj": [f"{path}.{spec.attn_proj}" for path in paths],
        "norms": [f"{path}.{spec.attn_out.path}" for path in paths],
    }


def _narrow(spec: ArchSpec) -> list[str]:
    """The modules of a layer whose input may be cut to the positions that are still needed.

    What comes out of them is added to the residual stream, so one position does for all.
    """
    mlp = spec.mlp_proj.rpartition(".")[0] if spec.mlp_proj else spec.mlp_out.path
    return [path for path in (spec.attn_proj, mlp) if path]
