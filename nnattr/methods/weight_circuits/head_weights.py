"""One head's weights, brought here: for what no method of nnattr asks of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnattr.graph import Part
from nnattr.linalg import FactoredMatrix
from nnattr.maps.attention import read_attention
from nnattr.maps.heads import WeightsQuestion, head_matrices
from nnattr.methods.attention_form import layer_form, short_prompt
from nnattr.model.heads import Head, chosen
from nnattr.model.model import Model
from nnattr.runs.portions import answered


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """The four matrices of a head, in float32, for vectors on their left: ``x @ W_Q``.

    Under grouped-query attention ``W_K`` and ``W_V`` are those of the head's group.

    Attributes:
        W_Q, W_K, W_V: [d_model, d_head].
        W_O: [d_head, d_model].
        b_Q, b_K, b_V: biases [d_head]; zero where the model has none.
        head: (layer, head).
    """

    W_Q: Float[Tensor, "d_model d_head"] = field(repr=False)
    W_K: Float[Tensor, "d_model d_head"] = field(repr=False)
    W_V: Float[Tensor, "d_model d_head"] = field(repr=False)
    W_O: Float[Tensor, "d_head d_model"] = field(repr=False)
    b_Q: Float[Tensor, " d_head"] = field(repr=False)  # noqa: N815  the field's names
    b_K: Float[Tensor, " d_head"] = field(repr=False)  # noqa: N815  the field's names
    b_V: Float[Tensor, " d_head"] = field(repr=False)  # noqa: N815  the field's names
    head: tuple[int, int]

    @property
    def ov(self) -> FactoredMatrix:
        """``W_V @ W_O``: what the head writes for what it attends to."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def qk(self) -> FactoredMatrix:
        """``W_Q @ W_K.T``: the score of a query (left) and a key (right), without turn or scale."""
        return FactoredMatrix(self.W_Q, self.W_K.T)


def head_weights(model: Model, head: Head, *, fold_norm: bool = False) -> HeadWeights:
    """A head's matrices as `ov_circuit` and `qk_circuit` use them.

    Args:
        model: as `nnattr.load` gives it.
        head: (layer, head).
        fold_norm: see `nnattr.ov_circuit`; the biases stay as they are.

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
    found = model.run(head_weights_job, payload, label=f"weights of {name}").values
    matrices = {f"W_{name.upper()}": found[name] for name in "qkvo"}
    biases = {f"b_{name.upper()}": found[f"{name} bias"] for name in "qkv"}
    return HeadWeights(**matrices, **biases, head=(layer, number))


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
