"""One head's weights, brought here: for what no method of nnattr asks of them."""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr

from nnattr.arguments import checked
from nnattr.graph import Part
from nnattr.jobs.record import record
from nnattr.maps.attention import look
from nnattr.methods.weight_circuits.weight_circuit_job import attentions
from nnattr.model.attention_form import (
    layer_form,
    require,
    short_prompt,
)
from nnattr.model.heads import Head, chosen
from nnattr.model.model import Model
from nnattr.results import HeadWeights


@checked
def head(model: Model, head: Head, *, fold_norm: bool = False) -> HeadWeights:
    """A head's matrices as `ov` and `qk` use them.

    Args:
        model: as `nnattr.load` gives it.
        head: (layer, head).
        fold_norm: see `nnattr.weights.ov`; the biases stay as they are.

    Raises:
        ArchError: no such head, queries and keys that are normed after they are projected, or
            weights that do not give the model's own attention.

    Cost: the layer's weights are read where the model is, and one head's come back: four times
    ``d_model * d_head`` numbers.
    """
    ((layer, number),) = chosen(model, [head], 0)
    name = Part("head", layer, number)
    payload = {
        "ids": short_prompt(model),
        "layers": {layer: layer_form(model, layer, scores=True)},
        "norm": model.spec.final_norm,
        "fold": fold_norm,
        "distance": 0,
        "scaled": False,
        "head": number,
    }
    outcome = model.run(head_weights_job, payload, label=f"weights of {name}")
    found = outcome.values
    require(model, found["proof"])
    arrays = {f"W_{side.upper()}": (("d_model", "d_head"), found[side].numpy()) for side in "qkv"}
    arrays["W_O"] = (("d_head", "d_model"), found["o"].numpy())
    arrays |= {f"b_{side.upper()}": (("d_head",), found[f"{side} bias"].numpy()) for side in "qkv"}
    given = {"head": (layer, number), "fold_norm": fold_norm}
    made = record(model, None, method="weights.head", arguments=given, outcome=outcome)
    return HeadWeights(xr.Dataset(arrays), made, (layer, number))


def head_weights_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """The matrices and biases of one head, by the names of `attention_weights.layer_weights`."""
    with nn.trace(input_ids=payload["ids"], use_cache=False):
        with torch.no_grad():
            seen = look(nn, list(payload["layers"].values()))
            with torch.autocast(seen[0]["z"].device.type, enabled=False):
                attention, proof = attentions(nn, payload, seen)
    (weights,) = attention.values()
    names = ("q", "k", "v", "o", "q bias", "k bias", "v bias")
    one = {name: weights[name][payload["head"]].clone().cpu() for name in names}
    return {**one, "proof": proof}
