"""How what attention or an MLP adds to the residual stream falls apart into heads or neurons.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.maps.linear import linear_map
from nnattr.maps.norm import Frozen, frozen
from nnattr.runs.inputs import PromptBatch
from nnattr.runs.portions import RefusedError
from nnattr.runs.tolerance import weights_tolerance


class Split:
    """A layer's attention that is split into heads, or its MLP into neurons.

    Attributes:
        part: the name of what all of it adds up to.
        inner, projected: the names of what enters its output projection and of what leaves it.
        projection: the path of that projection.
        post: the path of the norm behind it, or None.
        factor: what it is multiplied with before it is added to the residual stream.
    """

    def __init__(
        self,
        part: str,
        inner: str,
        projected: str,
        projection: str,
        post: str | None,
        factor: float,
    ) -> None:
        self.part = part
        self.inner = inner
        self.projected = projected
        self.projection = projection
        self.post = post
        self.factor = factor


def with_added(
    seen: dict[str, Tensor],
    prompts: PromptBatch,
    added: list[tuple[str, int, Tensor, bool]],
    columns: Tensor,
) -> dict[str, Tensor]:
    """What was read of the residual stream's parts, with vectors that edits add as their own.

    Args:
        seen: by name [example, pos, d_model]; ``"embed"`` is what enters the first layer.
        prompts: what was run.
        added: of each vector the name of its component, the edit's number, the vector [d_model],
            and whether it is added in front of the first layer, where ``"embed"`` has it in.
        columns: the positions that were read.
    """
    found = dict(seen)
    for name, edit, vector, first in added:
        there = prompts.changed(edit)[:, columns, None].to(seen["embed"].device)
        value = vector.to(there.device) * there
        found[name] = found[name] + value if name in found else value
        if first:
            found["embed"] = found["embed"] - value
    return found


def token_part(
    nn: Any, path: str, prompts: PromptBatch, stream: Tensor, positions: Tensor
) -> Tensor:
    """The residual stream in front of the first layer without the position embeddings.

    Args:
        nn: the nnsight model.
        path: of the token embedding.
        prompts: the tokens that ``stream`` is of.
        stream: what enters the first layer [example, pos, d_model].
        positions: what the table of position embeddings gave [1 or example, pos, d_model].

    Raises:
        RefusedError: what is left is not the token's embedding times a number, so the table was
            not added to the stream, or not alone.
    """
    left = stream - positions.to(stream.device)
    tokens = nn.get(path)(prompts.ids.to(left.device)).to(left.device).float()
    own = prompts.mask.to(left.device)
    left_own, tokens_own = left[own].float(), tokens[own]
    factor = (left_own * tokens_own).sum() / (tokens_own * tokens_own).sum()
    gap = float((left_own - factor * tokens_own).abs().max() / stream[own].float().abs().max())
    if gap > weights_tolerance(stream.dtype):  # no number is left to what follows
        raise RefusedError(
            "arch",
            "what enters the first layer is not the token embedding and the position embedding: "
            f"they differ by {gap:.1e} of its size. If positions are added to what queries and "
            "keys are made of alone (shortformer), say so in a spec: qk_positions=.",
        )
    return left


def output_map(
    nn: Any, split: Split, width: int, projected: Tensor
) -> tuple[Tensor, Tensor, Frozen]:
    """The projection's matrix [in, d_model] and bias [d_model], and the norm behind it.

    Args:
        nn: the nnsight model.
        split: of which layer.
        width: of what enters the projection.
        projected: what left it in this run [example, pos, d_model].
    """
    weight, own = linear_map(nn.get(split.projection), width, projected)
    return weight, own, frozen(None if split.post is None else nn.get(split.post), projected)


def by_head(inner: Tensor, weight: Tensor, heads: int) -> Tensor:
    """What each head makes of its own z [example, pos, head, d_model]."""
    z, matrices = inner.unflatten(-1, (heads, -1)), weight.unflatten(0, (heads, -1))
    return torch.einsum("ephd,hdm->ephm", z, matrices)
