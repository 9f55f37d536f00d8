r"""Queries and keys through the softmax: their change is made, and only what follows is estimated.

A saturated softmax has no slope, however much a patch would turn it. So the pattern that a patched
query or key gives is computed, and its change is multiplied with the gradient of the metric with
respect to the pattern, :math:`g_{qk} = \partial m / \partial z_q \cdot v_k` (AtP*, Kramár et al.
2024, arXiv:2403.00745):

.. math:: \hat I(q_i) = \sum_k (A'_{ik} - A_{ik}) g_{ik}, \qquad
          \hat I(k_t) = \sum_{q \ge t} \sum_k (A^{(t)}_{qk} - A_{qk}) g_{qk}

A patched query is so a patched pattern of its own row. For keys that are patched one by one each
has a softmax of its own; with a score :math:`s_t` that moves by :math:`\delta`, and
:math:`\ell = s_t - \log \sum_{j \ne t} e^{s_j}`, all of them at once are

.. math:: (\sigma(\ell + \delta) - \sigma(\ell)) (g_t - \bar g_{-t})

where :math:`\bar g_{-t}` is the mean of the other keys' gradients under their own softmax. Scores
are the model's: scaled, capped, masked, beside the head's sink, after any rotary turn.

Inside a job: torch and plain values.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from nnattr.engine.pattern_patch import require_explained
from nnattr.engine.question import Question
from nnattr.runs.interface import Handed
from nnattr.runs.rotated import LOWEST, pair, rotated


class Keys:
    """What patched keys do to a layer's softmax, for the queries from the runs' start on.

    Attributes:
        scores: of the base run [example, head, query_pos, key_pos], a sink's behind them; -inf
            where a query does not look.
        delta: how they move when all keys are patched, likewise.
        values: of the base run, as each head sees them, zeros for a sink [example, head, key_pos,
            d_head].
        spots: the keys of each spot [spot, example, key_pos].
        kv_heads: how many heads of keys there are.
    """

    def __init__(
        self, scores: Tensor, delta: Tensor, values: Tensor, spots: Tensor, kv_heads: int
    ) -> None:
        self.scores = scores
        self.delta = delta
        self.values = values
        self.spots = spots
        self.kv_heads = kv_heads

    @property
    def one_by_one(self) -> bool:
        """Whether there are several spots, each of one key at most."""
        return len(self.spots) > 1 and int(self.spots.sum(-1).max()) <= 1


def patched_by_queries(nn: Any, question: Question, own: list[Tensor], start: int) -> list[Tensor]:
    """The base run's z with the patterns that the source run's queries give, by layer."""
    patched = []
    for z, (handed, (queries, _)) in zip(own, both_handed(nn, question), strict=True):
        mine = mixture(handed, start)
        require_explained(mine, z, question.base.mask[:, start:])
        patched.append((z.float() + mixture(with_others(handed, q=queries), start) - mine).to(z))
    return patched


def key_changes(nn: Any, question: Question, own: list[Tensor], start: int) -> list[Keys]:
    """What the source run's keys do to the base run's softmax, by layer."""
    found = []
    for z, (handed, (_, keys)) in zip(own, both_handed(nn, question), strict=True):
        require_explained(mixture(handed, start), z, question.base.mask[:, start:])
        found.append(keys_of(handed, keys, question.spots, start))
    return found


def keys_of(handed: Handed, keys: Tensor, spots: Tensor, start: int) -> Keys:
    """What other keys [example, kv_head, pos, d_head] do to a layer's softmax."""
    own, theirs = (one.scores()[:, :, start:] for one in (handed, with_others(handed, k=keys)))
    unseen = own < LOWEST
    scores = own.masked_fill(unseen, float("-inf"))
    delta = (theirs - own).masked_fill(unseen, 0)
    values = handed.shared(handed.v)
    spots = spots.to(scores.device)
    if handed.sinks is not None:
        sinks = handed.sinks.to(scores)[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], -1)
        delta = torch.nn.functional.pad(delta, (0, 1))
        values = torch.nn.functional.pad(values, (0, 0, 0, 1))
        spots = torch.nn.functional.pad(spots, (0, 1))
    return Keys(scores, delta, values, spots, handed.k.shape[1])


def both_handed(nn: Any, question: Question) -> list[tuple[Handed, tuple[Tensor, Tensor]]]:
    """What attention is handed in the base run, and the source run's queries and keys, by layer."""
    options = question.layout.options
    paths = [question.layout.pattern_paths[layer] for layer in question.layers]
    ours = rotated(nn, question.base, paths, options, kept)
    theirs = rotated(nn, question.source, paths, options, pair)
    return list(zip(ours, theirs, strict=True))


def kept(handed: Handed) -> Handed:
    """What attention was handed, out of the model's memory."""
    own = copy.copy(handed)
    own.q, own.k, own.v = handed.q.clone(), handed.k.clone(), handed.v.clone()
    own.mask = None if handed.mask is None else handed.mask.clone()
    return own


def with_others(handed: Handed, **others: Tensor) -> Handed:
    """The same with other queries or keys."""
    new = copy.copy(handed)
    for name, value in others.items():
        setattr(new, name, value)
    return new


def mixture(handed: Handed, start: int) -> Tensor:
    """The z that attention makes [example, pos, heads * d_head], from ``start`` on, in float32."""
    made = handed.pattern()[:, :, start:] @ handed.shared(handed.v)
    return made.transpose(1, 2).flatten(2)


def through_softmax(keys: Keys, slope: Tensor) -> Tensor:
    """The estimate for every spot of keys [example, kv_head, spot].

    Args:
        keys: of this layer.
        slope: the gradient at z [example, pos, heads * d_head].
    """
    heads = slope.float().unflatten(-1, (keys.scores.shape[1], -1)).transpose(1, 2)
    gradient = heads @ keys.values.mT  # of the pattern [example, head, query_pos, key_pos]
    if keys.one_by_one:
        each = one_key_at_a_time(keys.scores, keys.delta, gradient).sum(2)
        found = torch.einsum("ehk,sek->ehs", each, keys.spots.to(each))
    else:
        found = torch.stack([together(keys, gradient, spot) for spot in keys.spots], -1)
    return found.unflatten(1, (keys.kv_heads, -1)).sum(2)


def together(keys: Keys, gradient: Tensor, spot: Tensor) -> Tensor:
    """The estimate of patching all keys of a spot [example, key_pos] at once [example, head]."""
    moved = keys.scores + keys.delta * spot[:, None, None]
    change = moved.softmax(-1) - keys.scores.softmax(-1)
    return (change.nan_to_num() * gradient).sum((-1, -2))  # a row of padding looks nowhere


def one_key_at_a_time(scores: Tensor, delta: Tensor, gradient: Tensor) -> Tensor:
    """What each key's change alone does [..., query_pos, key_pos], in a shape without overflow.

    Args:
        scores: of the base run [..., query_pos, key_pos], -inf where a query does not look.
        delta: how they move, likewise; 0 there.
        gradient: of the pattern, likewise.
    """
    pattern = scores.softmax(-1)
    mean = (pattern * gradient).sum(-1, keepdim=True)
    tiny = torch.finfo(scores.dtype).tiny
    others = (mean - pattern * gradient) / (1 - pattern).clamp_min(tiny)
    rest = scores.logsumexp(-1, keepdim=True) + torch.log1p(-pattern.clamp(max=1 - 1e-6))
    # next to the largest score the others' sum cannot be told from the whole: it is made anew
    top = scores.argmax(-1, keepdim=True)
    without = scores.scatter(-1, top, float("-inf"))
    alone = without.softmax(-1).nan_to_num()
    others = others.scatter(-1, top, (alone * gradient).sum(-1, keepdim=True))
    rest = rest.scatter(-1, top, without.logsumexp(-1, keepdim=True))
    logit = scores - rest
    change = torch.sigmoid(logit + delta) - torch.sigmoid(logit)
    silent = ~torch.isfinite(scores) | ~torch.isfinite(rest)  # a key unseen, or the only one
    return (change * (gradient - others)).masked_fill(silent, 0)
