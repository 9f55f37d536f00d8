r"""What an attention module hands to transformers' common attention interface, read inside a job.

Attention that follows it calls a function, ``attention_interface(module, q, k, v, mask,
scaling=...)``, whose arguments nnsight can read from the module's source. With a soft-cap and with
a *sink* :math:`s_h`, a learned score of each head that stands for no token and takes its share of
the softmax (gpt-oss and others), the pattern is

.. math:: A_{ij} = \frac{e^{a_{ij}}}{e^{s_h} + \sum_{j'} e^{a_{ij'}}}, \qquad
          a = \mathrm{cap}(q k^T \cdot \mathrm{scaling}) + \mathrm{mask}

so that rows of heads with a sink sum to less than one. All of this travels: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.runs.places import raw


class Handed:
    """The arguments of one call.

    Attributes:
        q: queries as they meet the keys [example, head, pos, d_head].
        k, v: keys and values [example, kv_head, pos, d_head].
        mask: what is added to scores [example, 1, query_pos, key_pos], or None.
        scaling: what scores are multiplied with.
        softcap: what they are capped at, or None.
        sinks: each head's sink [head], or None.
    """

    def __init__(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.q, self.k, self.v, self.mask = arguments[1:5]
        self.scaling = named["scaling"]
        self.softcap = named.get("softcap")
        self.sinks = named.get("s_aux")

    def shared(self, value: Tensor) -> Tensor:
        """Keys or values as each head sees them, in float32 [example, head, pos, d_head]."""
        return value.float().repeat_interleave(self.q.shape[1] // value.shape[1], 1)

    def scores(self) -> Tensor:
        """What the softmax gets, with the mask, in float32 [example, head, query_pos, key_pos]."""
        scores = self.q.float() @ self.shared(self.k).transpose(-1, -2) * self.scaling
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if self.mask is not None:
            scores = scores + self.mask[..., : self.k.shape[-2]].float()
        return scores

    def pattern(self) -> Tensor:
        """The attention pattern that these give, in float32 [example, head, query_pos, key_pos]."""
        return with_sinks(self.scores(), self.sinks)


def with_sinks(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """The softmax of scores [..., head, query_pos, key_pos] beside each head's sink [head]."""
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.to(scores)[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1]


def has_sinks(nn: Any, path: str) -> bool:
    """Whether this attention module has sinks; transformers has one name for them."""
    return getattr(raw(nn.get(path)), "sinks", None) is not None


def call_in(nn: Any, path: str) -> Any:
    """The module's call of the interface, whose ``inputs`` and ``output`` a trace can read.

    None where there is no such call.
    """
    return getattr(nn.get(path).source, "attention_interface_1", None)
