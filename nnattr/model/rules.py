"""Where rules of the backward pass have something to act on in a model, in plain values.

What is found here is read off the module tree; `nnattr.engine.proven_rules` shows in a run that the
rules act there. What the rules do is in `nnattr.engine.rules`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from nnattr.arch.modules import is_norm
from nnattr.errors import ArchError
from nnattr.model.model import Model
from nnattr.model.patterns import attention_paths

#: Activations, by the names of their classes; and those that are their input times a number anyway.
ACTIVATION = re.compile(r"gelu|silu|swish|mish|relu|tanh|sigmoid|activation", re.IGNORECASE)
STRAIGHT = re.compile(r"^(leaky)?relu$", re.IGNORECASE)
#: Each factor of a product of two has half of its gradient.
HALF = 0.5


class LackingError(Exception):
    """A model has nothing for a rule to act on."""


def columns(model: Model, rule: str, temperature: float) -> list[dict[str, Any]]:
    """Where a rule acts: what `nnattr.engine.rules.Column` is told, in plain values.

    Args:
        model: as `nnattr.load` gives it.
        rule: its name.
        temperature: of the rule ``softmax``.

    Raises:
        LackingError: the model has nothing that it could act on.
        ArchError: it has, and nnattr does not know where.
    """
    return [{"rule": rule, **one} for one in FOUND[rule](model, temperature)]


def _norms(model: Model, _: float) -> list[dict[str, Any]]:
    found = _inside(model, "", lambda name, part: is_norm(name, part) and not list(part.children()))
    final = [] if model.spec.final_norm is None else [[model.spec.final_norm]]
    if not found and not final:
        raise LackingError("it has no norms")
    return [{"how": "held", "paths": paths} for paths in [*found, *final]]


def _activations(model: Model, _: float) -> list[dict[str, Any]]:
    root = _mlp(model)
    found = _inside(model, root, lambda name, part: _is_activation(part))
    if not found:
        raise ArchError(f"{model.name} ({model.architecture}) has no activation modules in its MLP")
    parts = [model.module.get_submodule(path) for paths in found for path in paths]
    if all(STRAIGHT.search(type(part).__name__) for part in parts):
        raise LackingError("its activations are straight lines, whose gradient is the rule")
    return [{"how": "identity", "paths": paths} for paths in found]


def _products(model: Model, _: float) -> list[dict[str, Any]]:
    root, out = _mlp(model), _paths(model, str(model.spec.mlp_proj))
    attention = f"{model.spec.layers}.0.{model.spec.attn_proj.rpartition('.')[0]}."
    linears = [
        paths
        for paths in _inside(model, root, lambda _, part: _width(part) is not None)
        if paths != out and not paths[0].startswith(attention)
    ]
    made = sum(_width(model.module.get_submodule(paths[0])) or 0 for paths in linears)
    if made == model.d_mlp:
        raise LackingError("its MLP is no product of a gate and another projection")
    acts = _inside(model, root, lambda _, part: _is_activation(part))
    if made != 2 * model.d_mlp or len(acts) != 1:
        raise ArchError(
            f"the MLP of {model.name} ({model.architecture}) is neither one projection nor two of "
            "which one gates the other"
        )
    where = {"how": "scaled", "paths": out, "side": "input", "factor": HALF}
    return [{**where, "acts": acts[0], "linears": linears}]


def _attention(model: Model, _: float) -> list[dict[str, Any]]:
    found = []
    for site in ("q", "k"):
        places = model.places(site)  # type: ignore[arg-type]
        for paths, factor in _by_module(model, places):
            found.append({"how": "scaled", "paths": paths, "side": "output", "factor": factor})
    z = [path for path, *_ in model.places("z")]
    return [*found, {"how": "scaled", "paths": z, "side": "input", "factor": HALF}]


def _softmax(model: Model, temperature: float) -> list[dict[str, Any]]:
    paths = [inside[0] for inside in attention_paths(model)]
    return [{"how": "softened", "paths": paths, "factor": temperature}]


def _patterns(model: Model, _: float) -> list[dict[str, Any]]:
    return [{"how": "detached", "paths": [inside[0] for inside in attention_paths(model)]}]


#: The rules by name, and what finds their places.
FOUND: dict[str, Callable[[Model, float], list[dict[str, Any]]]] = {
    "norms": _norms,
    "activations": _activations,
    "products": _products,
    "attention": _attention,
    "softmax": _softmax,
    "patterns": _patterns,
}


def _by_module(model: Model, places: list[tuple[Any, ...]]) -> Iterator[tuple[list[str], Any]]:
    """The modules that make queries, or keys, and what half of these is there."""
    *_, part = places[0]
    if part is None:
        yield [path for path, *_ in places], HALF
        return
    groups, first, last = part
    width = _width(model.module.get_submodule(places[0][0]))
    factor = torch.ones(groups, (width or 0) // groups)
    factor[:, first:last] = HALF
    yield [path for path, *_ in places], factor.flatten()


def _mlp(model: Model) -> str:
    """The part of a layer that its MLP's modules are in."""
    if model.spec.mlp_out is None:
        raise LackingError("its layers are attention alone")
    if model.spec.mlp_proj is None:
        raise ArchError(
            f"the MLP of {model.name} ({model.architecture}) is not one output projection (a "
            "mixture of experts?)"
        )
    return model.spec.mlp_proj.rpartition(".")[0]


def _inside(model: Model, root: str, wanted: Callable[[str, Any], bool]) -> list[list[str]]:
    """The modules of this kind below a part of the layers: of each name, layer by layer."""
    found: dict[str, list[str]] = {}
    for layer in _paths(model, root):
        for name, part in model.module.get_submodule(layer).named_modules():
            if name and wanted(name, part):
                found.setdefault(name, []).append(f"{layer}.{name}")
    return list(found.values())


def _paths(model: Model, inside: str) -> list[str]:
    layers = (f"{model.spec.layers}.{layer}" for layer in range(model.n_layers))
    return [f"{layer}.{inside}" if inside else layer for layer in layers]


def _is_activation(part: Any) -> bool:
    return not list(part.children()) and bool(ACTIVATION.search(type(part).__name__))


def _width(part: Any) -> int | None:
    """How many numbers a linear module makes; None for another module."""
    return getattr(part, "out_features", getattr(part, "nf", None))
