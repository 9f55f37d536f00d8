r"""Weight circuits: what a head does with every token of the vocabulary, read off its weights.

A head multiplies what it reads by two matrices of small rank. Put between the embedding and the
unembedding they say, with no prompt at all,

.. math:: \text{OV} = W_E W_V W_O W_U \;(\text{attended token} \to \text{logits}), \qquad
          \text{QK} = W_E W_Q W_K^\top W_E^\top \;(\text{query token} \times \text{key token})

and, one head behind another, what two heads do together: an induction head's
:math:`W_E W_Q W_K^\top (W_V W_O)_{\mathrm{prev}}^\top W_E^\top` is large on its diagonal if it
looks for the token *after* an earlier copy of its own. A head that copies has an OV circuit whose
largest entry in a row is the diagonal one, or whose eigenvalues are positive:

.. math:: \text{eigenvalue copying score} = \sum_i \lambda_i \Big/ \sum_i |\lambda_i| \in [-1, 1]

A circuit is a description; each question is one job that runs where the weights are. The matrix
[d_vocab, d_vocab] is never made, only chunks of its rows.

When it misleads: (1) norms are not in the product. A row of an OV circuit is right up to a factor
of its own, so an argmax along it is, but sizes are not comparable across rows; ``fold_norm=True``
puts the norms' *weights* in and nothing else. (2) What enters a head in a deep layer is not the
embedding; early layers, the first MLP above all, rewrite it. (3) Rotary models have no one QK
circuit: the score depends on the distance of query and key, and ``distance=0``, the default,
leaves the turn out. (4) Biases are left out: of the queries and keys, which favour keys whatever
the query is, and of the values.

Source: Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits); ARENA's "Intro to
Mechanistic Interpretability". Cost: a few seconds for a small model; ``copying_accuracy`` needs
:math:`V^2 r` multiplications for a vocabulary of :math:`V` and a rank of :math:`r`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from nnattr.arguments import Natural, checked
from nnattr.errors import ArchError
from nnattr.graph import Part
from nnattr.jobs.record import provenance_of
from nnattr.methods.weight_circuits.weight_circuit import Side, WeightCircuit
from nnattr.model.attention_form import layer_form
from nnattr.model.components import position_table
from nnattr.model.heads import Head, chosen
from nnattr.model.model import Model
from nnattr.results import WeightMatrix


@checked
def ov(
    model: Model,
    heads: Head | Sequence[Head],
    *,
    via: Head | None = None,
    fold_norm: bool = False,
) -> WeightCircuit:
    """What attending to each token does to the logits: ``W_E W_V W_O W_U``.

    Args:
        model: as `nnattr.load` gives it.
        heads: a head, ``(1, 4)`` or ``"L1H4"``, or several that attend alike: their circuits are
            summed.
        via: an earlier head whose output is attended to (V-composition): ``W_E W_OV W_OV W_U``.
        fold_norm: put the norms' weights into the product, and centre ``W_O`` (where the norms take
            the mean away) and ``W_U`` (over the vocabulary: the softmax does not see it).

    Raises:
        ArchError: no such head, ``via`` not in an earlier layer, or a family whose values are
            made in a way that nnattr does not know.

    ::

        nnattr.weights.ov(model, (1, 4)).copying_accuracy()              # one head
        nnattr.weights.ov(model, [(1, 4), (1, 10)]).copying_accuracy(5)  # two together
    """
    own = _heads(model, heads)
    through = () if via is None else (_earlier(model, via, own),)
    name = f"OV circuit of {_names(own)}"
    name += "".join(f" via {Part('head', *head)}" for head in through)
    return WeightCircuit(
        model,
        name,
        Side("embed", through, ("v", own)),
        Side("unembed", (), ("o", own)),
        fold_norm=fold_norm,
    )


@checked
def qk(
    model: Model,
    head: Head,
    *,
    query_via: Head | None = None,
    key_via: Head | None = None,
    distance: Natural = 0,
    fold_norm: bool = False,
) -> WeightCircuit:
    """How much each token as a query looks for each token as a key: ``W_E W_Q W_K^T W_E^T``.

    Args:
        model: as `nnattr.load` gives it.
        head: the head that attends.
        query_via: an earlier head whose output the query reads (Q-composition).
        key_via: an earlier head whose output the key reads (K-composition). With the previous-token
            head of an induction head this is the full induction circuit, large on its diagonal.
        distance: how many positions the key stands before the query. Only rotary models care: the
            turn that it gives is in the product. 0 leaves it out.
        fold_norm: see `ov`.

    Raises:
        ArchError: no such head; or the scores are not such a product, because queries and keys are
            normed after they are projected, or because a bias for distance is added (ALiBi). The
            latter two are known once the circuit is asked something.
    """
    own = _head(model, head)
    through = [() if via is None else (_earlier(model, via, own),) for via in (query_via, key_via)]
    name = f"QK circuit of {_names(own)}"
    for what, heads in zip(("query", "key"), through, strict=True):
        name += "".join(f", {what} via {Part('head', *one)}" for one in heads)
    query, key = (
        Side("embed", heads, (end, own)) for end, heads in zip("qk", through, strict=True)
    )
    layer_form(model, own[0][0], scores=True)  # refuse now rather than later
    return WeightCircuit(model, name, query, key, distance, fold_norm)


@checked
def position_pattern(model: Model, head: Head, *, fold_norm: bool = False) -> WeightMatrix:
    r"""Where a head would look if it saw positions alone: softmax of ``W_pos W_Q W_K^T W_pos^T``.

    .. math:: A = \mathrm{softmax}_{k \le q}(W_{pos} W_Q W_K^\top W_{pos}^\top \cdot \text{scale})

    A previous-token head that works by position has a mean near 1 on the first subdiagonal:
    ``np.diag(pattern, -1).mean()``.

    Args:
        model: a model with a table of position embeddings.
        head: which head.
        fold_norm: see `ov`; here also the norm's mean scale on a short prompt, without
            which a softmax of scores means little in a model that has norms: there a position
            embedding may be short and yet decide.

    Returns:
        the pattern with dims (query_pos, key_pos), over the whole context.

    Raises:
        ArchError: the model has no table of position embeddings (it is rotary, for example), or no
            QK circuit.
    """
    own = _head(model, head)
    if position_table(model) is None or model.context_length is None:
        raise ArchError(
            f"{model.name} ({model.architecture}) has no table of position embeddings, so no "
            "circuit between positions. If it is rotary, see nnattr.weights.qk(..., distance=...)."
        )
    query, key = (Side("positions", (), (end, own)) for end in "qk")
    name = f"position circuit of {_names(own)}"
    behind = model.spec.qk_positions is not None  # no norm stands between a position and q, k
    circuit = WeightCircuit(model, name, query, key, fold_norm=fold_norm and not behind)
    outcome = circuit.by_position()
    scores = outcome.values["block"]
    past = torch.ones_like(scores, dtype=torch.bool).tril()
    pattern = scores.masked_fill(~past, float("-inf")).softmax(-1)
    numbers = np.arange(len(pattern))
    values = xr.DataArray(
        pattern.numpy(),
        dims=("query_pos", "key_pos"),
        coords={"query_pos": numbers, "key_pos": numbers},
    )
    given = {"head": list(own[0]), "fold_norm": fold_norm}
    made = provenance_of(
        model, None, method="weights.position_pattern", arguments=given, outcome=outcome
    )
    return WeightMatrix(values.to_dataset(name="values"), made, circuit.name)


def _heads(model: Model, given: Any) -> tuple[tuple[int, int], ...]:
    """One head, as a pair or by its name, or several."""
    return tuple(chosen(model, given, 0))


def _names(heads: Sequence[tuple[int, int]]) -> str:
    return " + ".join(str(Part("head", *head)) for head in heads)


def _head(model: Model, given: Head) -> tuple[tuple[int, int]]:
    """The one head that attends."""
    (found,) = chosen(model, [given], 0)
    return (found,)


def _earlier(model: Model, via: Head, heads: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """``via``, if all heads can read what it writes."""
    (found,) = _head(model, via)
    if any(found[0] >= layer for layer, _ in heads):
        raise ArchError(
            f"{Part('head', *found)} is not in a layer before {_names(heads)}; a head can only "
            "read what heads of earlier layers wrote."
        )
    return found
