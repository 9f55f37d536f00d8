r"""Composition: which heads are wired to read what which earlier heads write?

A head's output enters a later head's queries, keys or values. How much of it lands in the subspace
that is read there, compared with what two unrelated matrices of these sizes would share:

.. math:: C_K(A, B) = \frac{\|W_{OV}^A \, (W_{QK}^B)^\top\|_F}
                           {\|W_{OV}^A\|_F \, \|(W_{QK}^B)^\top\|_F}, \qquad
          W_{OV} = W_V W_O, \quad W_{QK} = W_Q W_K^\top

with :math:`W_{QK}^B` for Q-composition and :math:`W_{OV}^B` for V-composition. Random matrices of
rank :math:`r` give about :math:`1/\sqrt{d_{model}}`; the baseline is drawn with a seed and comes
with its spread.

It misleads in that it is a statement about weights: two heads may be wired and never used together,
or work together through an MLP between them. Norms stand between the two heads; their weights are
put in with ``fold_norm=True``. In rotary models keys and queries are turned by position, and the
scores here are those of no turn. A bias that all directions share (a large coordinate of the
residual stream) raises every score of a row or column.

Source: Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits). Cost: for every pair
of heads :math:`d_{model} \, r^2` multiplications; no forward pass but one of a dozen tokens.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from nnattr.arguments import Positive, Seed, checked
from nnattr.errors import ArchError
from nnattr.graph import Part
from nnattr.jobs.record import provenance_of
from nnattr.linalg import product_norm, triangle
from nnattr.maps.attention import read_attention
from nnattr.maps.heads import WeightsQuestion, head_matrices
from nnattr.model.attention_form import layer_form, short_prompt
from nnattr.model.model import Model
from nnattr.results import Composition
from nnattr.runs.portions import answered

Kind = Literal["Q", "K", "V"]
#: What each kind multiplies the earlier head's output by, and what it is multiplied by then.
FACTORS = {"Q": ("q", "k"), "K": ("k", "q"), "V": ("v", "o")}


@checked
def composition(
    model: Model, kind: Kind, *, fold_norm: bool = False, samples: Positive = 300, seed: Seed = 0
) -> Composition:
    """The composition score of every pair of heads of different layers.

    Args:
        model: as `nnattr.load` gives it.
        kind: ``"Q"``, ``"K"`` or ``"V"``: through what of the later head.
        fold_norm: put the norms' weights into the matrices (see `nnattr.weights.ov`).
        samples: how many random pairs the baseline is drawn from.
        seed: which.

    Returns:
        a `Composition`; ``.top(5)`` lists the strongest pairs, ``.plot()`` is the matrix.

    Raises:
        ArchError: the model has one layer, or its attention is not made of such matrices: with
            norms on queries and keys there is V-composition alone.
    """
    if model.n_layers < 2:
        raise ArchError(f"{model.name} has one layer, so no head reads what another wrote.")
    layers = range(model.n_layers)
    forms = {layer: layer_form(model, layer, scores=kind != "V") for layer in layers}
    payload = {
        "ids": short_prompt(model),
        "weights": {"forms": forms, "norm": model.spec.final_norm, "fold": fold_norm},
        "factors": FACTORS[kind],
    }
    outcome = model.run(composition_job, payload, label=f"{kind}-composition")
    found = outcome.values
    names = [str(Part("head", layer, head)) for layer in layers for head in range(model.n_heads)]
    scores = found["scores"].reshape(len(names), len(names)).numpy()
    values = xr.DataArray(
        scores[: -model.n_heads, model.n_heads :],
        dims=("sender", "receiver"),
        coords={"sender": names[: -model.n_heads], "receiver": names[model.n_heads :]},
        name="values",
    )
    mean, spread = random_composition(model.config.hidden_size, model.d_head, samples, seed)
    given = {"kind": kind, "fold_norm": fold_norm, "samples": samples, "seed": seed}
    made = provenance_of(
        model, None, method="weights.composition", arguments=given, outcome=outcome
    )
    return Composition(values.to_dataset(), made, kind, mean, spread, fold_norm)


@checked
def random_composition(
    d_model: Positive, d_head: Positive, samples: Positive = 300, seed: Seed = 0
) -> tuple[float, float]:
    """The mean composition score of random matrices of these sizes, and its standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(samples):
        made = torch.rand(4, d_model, d_head, generator=generator, dtype=torch.float32)
        v, o, q, k = 2 * made - 1
        scores.append(float(pairs(v[None], o.T[None], q[None], k[None])))
    return float(np.mean(scores)), float(np.std(scores))


def composition_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """``scores`` [layer, head, layer, head] of every pair, NaN where the first is not earlier."""
    question = WeightsQuestion(**payload["weights"])
    return answered(composed, nn, tick, question, payload["ids"], payload["factors"])


def composed(
    nn: Any, tick: Any, question: WeightsQuestion, ids: Tensor, factors: tuple[str, str]
) -> dict[str, Any]:
    """The same; ``factors`` are the two matrices of the later head, see `FACTORS`."""
    with nn.trace(input_ids=ids, use_cache=False):
        with torch.no_grad():
            seen = read_attention(nn, list(question.forms.values()))
            with torch.autocast(seen[0].z.device.type, enabled=False):
                matrices, proof = head_matrices(nn, question, seen)
    proof.require()
    layers = list(matrices.values())
    n, heads = len(layers), len(layers[0]["o"])
    scores = torch.full((n, heads, n, heads), float("nan"))
    near, far = factors
    with torch.no_grad():
        with torch.autocast(layers[0]["o"].device.type, enabled=False):
            for later in range(1, n):
                second = layers[later]
                reads, then = second[near], second[far].mT if far == "o" else second[far]
                for earlier in range(later):
                    first = layers[earlier]
                    there = first["o"].device
                    scores[earlier, :, later] = pairs(
                        first["v"], first["o"], reads.to(there), then.to(there)
                    ).cpu()
                tick(later, n - 1)
    return {"scores": scores}


def pairs(v: Tensor, o: Tensor, reads: Tensor, then: Tensor) -> Tensor:
    """Composition scores [sender, receiver] of ``v @ o`` with ``reads @ then.T``.

    Args:
        v: senders [sender, d_model, d_head].
        o: [sender, d_head, d_model].
        reads: receivers [receiver, d_model, d_head].
        then: [receiver, d_model, d_head].
    """
    between = torch.einsum("srm,tmq->strq", o, reads)
    whole = triangle(v)[:, None] @ between @ triangle(then).mT
    sizes = product_norm(v, o)[:, None] * product_norm(reads, then.mT)
    return torch.linalg.matrix_norm(whole) / sizes
