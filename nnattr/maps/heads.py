"""The matrices of heads as a question wants them: with norms folded in, and turned by position.

They are held against the model's own attention in the same run, and refused where they do not give
it. Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.maps.attention import (
    Form,
    Scoring,
    Seen,
    chosen,
    identify_scores,
    layer_weights,
    norm_in_front,
    output_gap,
    rotate,
    rotations,
    value_gap,
)
from nnattr.maps.norm import Frozen, frozen
from nnattr.runs.as_built import around, as_built
from nnattr.runs.logits import require_number
from nnattr.runs.places import raw
from nnattr.runs.portions import RefusedError
from nnattr.runs.tolerance import weights_tolerance


class WeightsQuestion:
    """Whose matrices are wanted, and how.

    Attributes:
        forms: of each layer, by its number.
        norm: the path of the final norm, or None.
        fold: whether the norms' weights are put into the matrices.
        distance: by how many positions queries are turned against keys.
        scaled: whether queries are multiplied so that their products with keys are scores (with
            ``fold`` at the run's mean scale of the norm).
    """

    def __init__(
        self,
        forms: dict[int, dict[str, Any]],
        norm: str | None,
        fold: bool,
        distance: int = 0,
        scaled: bool = False,
    ) -> None:
        self.forms = {layer: Form(**form) for layer, form in forms.items()}
        self.norm = norm
        self.fold = fold
        self.distance = distance
        self.scaled = scaled


class Proof:
    """What a run says of the matrices.

    Attributes:
        dtype: of the model.
        outputs: the largest error of the heads' outputs, relative to the largest value.
        norms: the same of the norms in front of attention, where they are folded.
        scorings: how the layers make their scores, where queries and keys are wanted.
    """

    def __init__(
        self, dtype: torch.dtype, outputs: float, norms: float, scorings: list[Scoring]
    ) -> None:
        self.dtype = dtype
        self.outputs = outputs
        self.norms = norms
        self.scorings = scorings

    @property
    def alibi(self) -> bool:
        """Whether scores get a bias for the distance of query and key."""
        return any(scoring.alibi for scoring in self.scorings)

    def require(self) -> None:
        """Refuse weights that do not give the model's own attention."""
        limit = weights_tolerance(self.dtype)
        for what, gap in (("heads' outputs", self.outputs), ("norm in front", self.norms)):
            require_number(gap)
            if gap > limit:
                raise RefusedError(
                    "arch",
                    "attention is not the product of weights that nnattr takes it for: the "
                    f"{what} differ by {gap:.1e} of their size, and at most {limit:.0e} is "
                    "allowed. Scores are made in a way that nnattr does not know (in a sliding "
                    "window shorter than the prompts, say); activation_patching needs no such "
                    "knowledge.",
                )


def head_matrices(
    nn: Any, question: WeightsQuestion, seen: list[Seen]
) -> tuple[dict[int, dict[str, Tensor]], Proof]:
    """Each layer's matrices, see `nnattr.maps.attention.layer_weights`, and what proves them.

    Args:
        nn: the nnsight model.
        question: whose, and how.
        seen: what `nnattr.maps.attention.read_attention` read of these layers.
    """
    found, outputs, norms, scorings = {}, 0.0, 0.0, []
    for (layer, form), one in zip(question.forms.items(), seen, strict=True):
        require_nothing_around(nn, form)
        weights = layer_weights(nn, form, one.entering)
        outputs = max(outputs, output_gap(one, weights))
        if "q" in form.needs:
            scoring = identify_scores(nn, form, one, weights)
            outputs = max(outputs, scoring.gap)
            scorings.append(scoring)
            turn_apart(nn, form, one, weights, scoring.kind, question.distance)
            weights["q"] = weights["q"] * (scoring.scale if question.scaled else 1.0)
        else:
            outputs = max(outputs, value_gap(form, one, weights))
        if question.fold:
            norms = max(norms, fold_norms(nn, question, form, one, weights))
        found[layer] = weights
    return found, Proof(seen[0].z.dtype, outputs, norms, scorings)


def require_nothing_around(nn: Any, form: Form) -> None:
    """Refuse a layer in which more than its modules' weights comes between z and the stream."""
    for module in around(nn, form.output):
        if module is not raw(nn) and not as_built(module):
            raise RefusedError(
                "arch",
                f"somebody's hook, or a forward of its own, is on the {type(module).__name__} that "
                f"{form.output} is a part of: what heads write goes through it, and no matrix has "
                "that. Take it off for questions about weights; activation_patching runs it.",
            )


def turn_apart(
    nn: Any, form: Form, seen: Seen, weights: dict[str, Tensor], kind: str, distance: int
) -> None:
    """Turn the queries by ``distance`` positions against the keys."""
    if kind == "none" or distance == 0:
        return
    for name, position in (("q", distance), ("k", 0)):
        turns = rotations(nn, form, torch.tensor([position]), seen.entering)
        weights[name] = rotate(weights[name], chosen(kind, turns))


def fold_norms(
    nn: Any, question: WeightsQuestion, form: Form, seen: Seen, weights: dict[str, Tensor]
) -> float:
    """Put the norms' weights into the matrices, and centre what a LayerNorm will centre.

    Returns the gap of the norm in front.
    """
    norm, gap = norm_in_front(nn, form, seen)
    typical = norm.scale.mean() if question.scaled else 1.0
    for name in form.needs:
        folded = typical * norm.gain[:, None] * weights[name]
        weights[name] = folded - folded.mean(-2, keepdim=True) if norm.centred else folded
    if form.behind is not None:
        weights["o"] = weights["o"] * frozen(nn.get(form.behind), seen.stream).gain
    if final_norm(nn, question.norm, seen.stream).centred:
        weights["o"] = weights["o"] - weights["o"].mean(-1, keepdim=True)
    return gap


def final_norm(nn: Any, path: str | None, like: Tensor) -> Frozen:
    """The norm in front of the unembedding as a linear map."""
    return frozen(None if path is None else nn.get(path), like)
