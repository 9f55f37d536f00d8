"""Where a layer's attention keeps its weights and how it may make its scores, in plain values.

What is found here is a guess from names and configuration; `nnattr.maps.attention` holds
it against a run. What cannot be a product of weights is refused before anything runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from nnattr.arch.modules import is_norm
from nnattr.errors import ArchError
from nnattr.model import sites
from nnattr.model.components import contribution_norm
from nnattr.model.model import Model

PROMPT = 12  # tokens of the short prompt that weights are proven on


def short_prompt(model: Model) -> torch.Tensor:
    """A few different tokens [1, pos], to prove weights on."""
    return (torch.arange(1, PROMPT + 1) * 37 % model.vocab_size)[None]


def layer_form(model: Model, layer: int, *, scores: bool) -> dict[str, Any]:
    """Where the weights of one layer's attention are.

    Args:
        model: as `nnattr.load` gives it.
        layer: which layer.
        scores: whether queries and keys are wanted, not values alone.

    Raises:
        ArchError: the family's projections are unknown, or its scores are not a product of weights.
    """
    places = {name: model.places(name)[layer] for name in ("q", "k", "v")}  # type: ignore[arg-type]
    root = f"{model.spec.layers}.{layer}"
    assert model.spec.qkv is not None
    path = f"{root}.{model.spec.qkv.v.rpartition('.')[0]}"
    attention = model.module.get_submodule(path)
    if scores:
        _refuse_inner_norms(model, attention)
    return {
        "layer": root,
        "places": places,
        "output": sites.place(model.spec, "z", layer).path,
        "needs": ("q", "k", "v") if scores else ("v",),
        "heads": model.n_heads,
        "kv_heads": model.n_kv_heads,
        "d_head": model.d_head,
        "d_model": model.config.hidden_size,
        "norms": _norms(model, root),
        "behind": contribution_norm(model, layer),
        "scales": _scales(model, attention, layer),
        "cap": getattr(model.config, "attn_logit_softcapping", None),
        "rotary": _rotary(model, layer),
        "shifted": model.spec.qk_positions is not None,
        "sinks": None if getattr(attention, "sinks", None) is None else path,
    }


def _refuse_inner_norms(model: Model, attention: Any) -> None:
    """Raise where queries and keys are normed after they are projected."""
    inside = [name for name, part in attention.named_modules() if name and is_norm(name, part)]
    if inside:
        raise ArchError(
            f"{model.name} ({model.architecture}) norms its queries and keys inside attention "
            f"({', '.join(inside)}), so its scores are not a product of weights: there is no QK "
            "circuit, no Q- or K-composition, and q and k do not fall apart into components. "
            "nnattr.weights.ov and V-composition exist; use activation_patching with site='q' or "
            "'k' for effects."
        )


def _norms(model: Model, root: str) -> tuple[str, ...]:
    """The norms that are a layer's own parts: one of them may stand in front of attention."""
    layer = model.module.get_submodule(root)
    return tuple(f"{root}.{name}" for name, part in layer.named_children() if is_norm(name, part))


def _scales(model: Model, attention: Any, layer: int) -> tuple[float, ...]:
    """What the scores may be multiplied by, the likeliest first."""
    root = model.d_head**-0.5
    said = [getattr(attention, name, None) for name in ("scaling", "softmax_scale")]
    if getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        said.append(root / (layer + 1))
    numbers = [float(value) for value in said if isinstance(value, int | float)]
    return tuple(dict.fromkeys([*numbers, root, 1.0]))


def _rotary(model: Model, layer: int) -> dict[str, Any] | None:
    """The rotary embedding: the module that makes its angles, or their frequencies."""
    config = model.config
    for path, part in model.module.named_modules():
        if "rotaryembedding" in type(part).__name__.lower():
            kinds: Sequence[str] = getattr(config, "layer_types", None) or ()
            wants = "layer_type" in inspect.signature(type(part).forward).parameters
            return {"path": path, "arguments": (kinds[layer],) if wants and kinds else ()}
    size = getattr(config, "rotary_dim", None)
    if size:
        return {"frequencies": tuple(10000.0 ** (-2 * i / size) for i in range(size // 2))}
    return None
