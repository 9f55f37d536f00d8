"""One head's weights, brought here: for what no method of nnattr asks of them."""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr
from torch import Tensor

from nnattr.arguments import checked
from nnattr.graph import Part
from nnattr.jobs.record import provenance_of
from nnattr.maps.attention import read_attention
from nnattr.maps.heads import WeightsQuestion, head_matrices
from nnattr.model.attention_form import layer_form, short_prompt
from nnattr.model.heads import Head, chosen
from nnattr.model.model import Model
from nnattr.results import HeadWeights
from nnattr.runs.portions import answered


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
        "weights": {
            "forms": {layer: layer_form(model, layer, scores=True)},
            "norm": model.spec.final_norm,
            "fold": fold_norm,
        },
        "head": number,
    }
    outcome = model.run(head_weights_job, payload, label=f"weights of {name}")
    found = outcome.values
    arrays = {f"W_{side.upper()}": (("d_model", "d_head"), found[side].numpy()) for side in "qkv"}
    arrays["W_O"] = (("d_head", "d_model"), found["o"].numpy())
    arrays |= {f"b_{side.upper()}": (("d_head",), found[f"{side} bias"].numpy()) for side in "qkv"}
    given = {"head": (layer, number), "fold_norm": fold_norm}
    made = provenance_of(model, None, method="weights.head", arguments=given, outcome=outcome)
    return HeadWeights(xr.Dataset(arrays), made, (layer, number))


def head_weights_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """The matrices and biases of one head, as `nnattr.maps.attention.layer_weights` names them."""
    question = WeightsQuestion(**payload["weights"])
    return answered(matrices_of, nn, question, payload["ids"], payload["head"])


def matrices_of(nn: Any, question: WeightsQuestion, ids: Tensor, head: int) -> dict[str, Any]:
    """The same; ``head`` is its number in the one layer that is asked about."""
    with nn.trace(input_ids=ids, use_cache=False):
        with torch.no_grad():
            seen = read_attention(nn, list(question.forms.values()))
            with torch.autocast(seen[0].z.device.type, enabled=False):
                matrices, proof = head_matrices(nn, question, seen)
    proof.require()
    (weights,) = matrices.values()
    names = ("q", "k", "v", "o", "q bias", "k bias", "v bias")
    return {name: weights[name][head].clone().cpu() for name in names}
