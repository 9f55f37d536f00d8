r"""Kinds of heads, by where they look: one definition of each, for training, tests and detection.

Every kind names, for a query position, the keys that a head of that kind looks at; a head's score
is the attention it pays them, averaged over the queries that have such keys:

==============  ===========================================================================
``previous``    the token before the query
``current``     the query itself
``first``       the prompt's first token
``duplicate``   the earlier tokens that equal the query
``induction``   the tokens after those: what followed the query's token before
==============  ===========================================================================

(Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Olsson et al. 2022,
"In-context Learning and Induction Heads".) Here everything is torch and travels to servers.
"""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("previous", "current", "first", "duplicate", "induction")


def keys(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """For each kind the keys that each query should look at [example, query_pos, key_pos].

    Args:
        ids: token ids [example, pos].
        mask: true at the prompts' own tokens, which end at the last position.
    """
    width = ids.shape[1]
    here = torch.eye(width, dtype=torch.bool, device=ids.device)
    before = torch.zeros_like(here)
    before[1:] = here[:-1]  # [query, query - 1]
    start = torch.arange(width, device=ids.device) == (~mask).sum(1, keepdim=True)
    earlier = here.logical_not().tril()
    own = mask[:, :, None] & mask[:, None, :]
    same = (ids[:, :, None] == ids[:, None, :]) & earlier & own
    after = torch.zeros_like(same)
    after[:, :, 1:] = same[:, :, :-1]
    return {
        "previous": before & own,
        "current": here & own,
        "first": start[:, None, :] & own & here.logical_or(earlier),
        "duplicate": same,
        "induction": after,
    }


def scores(pattern: Tensor, wanted: Tensor) -> Tensor:
    """The mean attention that queries pay to their keys [example, head]; NaN where there are none.

    Args:
        pattern: [example, head, query_pos, key_pos].
        wanted: one of `keys`.
    """
    paid = torch.where(wanted[:, None], pattern, torch.zeros_like(pattern)).float().sum((-1, -2))
    return paid / wanted.any(-1).sum(-1)[:, None]
