"""What a decomposition reads, a direction, and how the final residual stream is read along it.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.maps.linear import linear_map
from nnattr.maps.norm import Frozen, frozen, transpose


class Head:
    """What stands between the final residual stream and the logits.

    Attributes:
        norm: the path of the final norm, or None.
        unembed: the path of the unembedding.
        multiplier: what logits are multiplied with.
        capped: whether they are capped after that.
    """

    def __init__(self, norm: str | None, unembed: str, multiplier: float, capped: bool) -> None:
        self.norm = norm
        self.unembed = unembed
        self.multiplier = multiplier
        self.capped = capped


class Direction:
    """What is read, and where: at each position a weighted sum of logits.

    Attributes:
        tokens, weights: whose logits, and how much each counts [example, pos, token]; pos is 1
            where they are the same at all positions.
        cells: the positions that are averaged over, for each cell [cell, example, pos].
        columns: the positions that any example reads, and the last one [column].
    """

    def __init__(self, tokens: Tensor, weights: Tensor, cells: Tensor) -> None:
        self.tokens = tokens
        self.weights = weights
        self.cells = cells
        there = cells.any(0).any(0)
        there[-1] = True  # the metric is read there
        self.columns = there.nonzero()[:, 0]

    def take(self, some: slice) -> Direction:
        """The same of some of the examples."""
        return Direction(self.tokens[some], self.weights[some], self.cells[:, some])

    @property
    def from_end(self) -> Tensor:
        """The columns counted from the end: -1 is the last."""
        return self.columns - self.cells.shape[-1]

    def at(self, columns: Any, device: Any) -> tuple[Tensor, Tensor]:
        """Tokens and weights at these positions; pos may stay 1, for all."""
        both = (self.tokens, self.weights)
        first, second = (one if one.shape[1] == 1 else one[:, columns] for one in both)
        return first.to(device), second.to(device)

    def of(self, logits: Tensor, columns: Any) -> Tensor:
        """The weighted sum [example, pos] of logits [example, pos, d_vocab] at these positions."""
        tokens, weights = self.at(columns, logits.device)
        chosen = logits.gather(-1, tokens.expand(-1, logits.shape[1], -1))
        return (chosen.float() * weights).sum(-1)

    def present(self, device: Any) -> Tensor:
        """Which of the columns an example reads [example, column]."""
        return self.cells.any(0)[:, self.columns].to(device)

    def over_cells(self, values: Tensor) -> Tensor:
        """The mean over each cell's positions: [example, column, part] to [example, part, cell]."""
        chosen = self.cells[:, :, self.columns].to(values.device).float()
        shares = chosen / chosen.sum(-1, keepdim=True).clamp_min(1)
        values = values.masked_fill(~self.present(values.device)[..., None], 0)
        return torch.einsum("epu,cep->euc", values, shares)


class View:
    """How the final residual stream is read, linearly; made by `final_view`.

    Attributes:
        direction: what its parts are multiplied with [example, pos, d_model].
        bias: what is added, whatever the parts are [example, pos].
        behind: the direction behind the final norm [example, 1 or pos, d_model].
        norm: the final norm as a linear map.
        module: that norm itself, or None.
        dtype: of the model.
    """

    def __init__(
        self,
        direction: Tensor,
        bias: Tensor,
        behind: Tensor,
        norm: Frozen,
        module: Any,
        dtype: torch.dtype,
    ) -> None:
        self.direction = direction
        self.bias = bias
        self.behind = behind
        self.norm = norm
        self.module = module
        self.dtype = dtype

    def weigh(self, vectors: Tensor, each: bool) -> Tensor:
        """What the direction reads in ``vectors`` [example, pos, ..., d_model].

        ``each`` says whether the norm is that of the vectors themselves.
        """
        units = vectors.ndim == 4
        if not each:
            return (vectors * (self.direction[:, :, None] if units else self.direction)).sum(-1)
        normed = vectors
        if self.module is not None:
            normed = self.module(vectors.to(self.dtype)).float() - self.norm.bias
        return (normed * (self.behind[:, :, None] if units else self.behind)).sum(-1)


def final_view(nn: Any, end: Head, final: Tensor, direction: Direction) -> View:
    """How the direction's logits read the final residual stream [example, pos, d_model]."""
    tokens, weights = direction.at(direction.columns, final.device)
    tokens, which = tokens.unique(return_inverse=True)
    matrix, own = linear_map(nn.get(end.unembed), final.shape[-1], final, tokens)
    behind = (matrix.T[which] * weights[..., None]).sum(-2) * end.multiplier
    module = None if end.norm is None else nn.get(end.norm)
    norm = frozen(module, final)
    bias = (behind * norm.bias).sum(-1) + (own[which] * weights).sum(-1) * end.multiplier
    reads = transpose(norm, behind)
    return View(reads, bias.expand(reads.shape[:2]), behind, norm, module, final.dtype)
