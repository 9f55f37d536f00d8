"""The job behind `decompose_attention`: queries and keys as sums over what the stream is made of.

One prompt at a time, without padding. Everything here travels to where the model is: torch and
plain values only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.maps.attention import (
    Form,
    Seen,
    chosen,
    identify_scores,
    layer_weights,
    norm_in_front,
    pattern,
    read_attention,
    rotate,
    rotations,
    sinks_of,
)
from nnattr.maps.heads import Proof
from nnattr.maps.norm import apply, per_unit
from nnattr.maps.parts import Split, by_head, output_map, token_part, with_added
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.places import read
from nnattr.runs.portions import Portions, RefusedError
from nnattr.runs.tolerance import attention_tolerance

#: How many of the last axes of each answer are positions.
AXES = {"query": 1, "key": 1, "spread": 0, "scores": 2, "total": 2, "pattern": 2}


class HeadQuestion:
    """Which head's scores are taken apart, and into what.

    Attributes:
        form: of its layer.
        head: its number there.
        embed: the path of the token embedding.
        reads: (name, path, side) of the parts of the residual stream, in forward order.
        parts: (name, factor) of what the stream is the sum of.
        splits: by name, those that fall apart into heads.
        added: vectors that edits add to the stream, see `nnattr.maps.parts.with_added`.
        names: of all components, those of the splits in the order of their heads, and the constant.
    """

    def __init__(
        self,
        *,
        form: dict[str, Any],
        head: int,
        embed: str,
        reads: list[tuple[str, str, str]],
        parts: list[tuple[str, float]],
        splits: list[dict[str, Any]],
        added: list[tuple[str, int, Tensor, bool]],
        names: list[str],
    ) -> None:
        self.form = Form(**form)
        self.head = head
        self.embed = embed
        self.reads = reads
        self.parts = parts
        self.splits = {one["part"]: Split(**one) for one in splits}
        self.added = added
        self.names = names


class Sums:
    """A head's queries and keys by component, ready to be multiplied.

    Attributes:
        q, k: [component, pos, d_head].
        v: the head's values [1, pos, d_head].
        scale: what products are multiplied with to be scores.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        self.q = q
        self.k = k
        self.v = v
        self.scale = scale

    def total(self) -> Tensor:
        """The head's scores [query_pos, key_pos]."""
        return self.q.sum(0) @ self.k.sum(0).T * self.scale

    def spread(self) -> Tensor:
        """The standard deviation of each pair's scores [query component, key component]."""
        return torch.stack([score_spread(q, self.k, self.scale) for q in self.q])

    def of(self, query: int, key: int) -> Tensor:
        """The scores of one pair [query_pos, key_pos]."""
        return self.q[query] @ self.k[key].T * self.scale


def decompose_attention_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """One head's scores, taken apart, for every prompt.

    Args:
        nn: the nnsight model.
        tick: progress.
        **payload: ``prompts``; ``question``, see `HeadQuestion`; ``pairs``, names of components, or
            how many of the first prompt's strongest pairs to return whole; ``portions``.

    Returns:
        what `taken_apart` gives [example, ...], NaN behind the last token of shorter prompts, and
        ``pairs``, the numbers of their components.
    """
    every, question = PromptBatch(**payload["prompts"]), HeadQuestion(**payload["question"])
    pairs, names = payload["pairs"], question.names
    portions = Portions(nn, tick, total=len(every), **{**payload["portions"], "size": 1})
    for some in portions:
        with portions.attempt():
            own = every.take(some).cut(int((~every.mask[some]).sum()))
            found, kept = taken_apart(nn, question, own, pairs)
            pairs = [(names[query], names[key]) for query, key in kept]  # the same for all prompts
            missing = every.width - own.width
            filled = {name: fill(one, AXES[name], missing) for name, one in found.items()}
            portions.keep({**filled, "pairs": kept})
            portions.tick(1, 1)
    return portions.joined()


def fill(value: Tensor, axes: int, missing: int) -> Tensor:
    """One example's value [1, ...] with NaN behind the end of its last ``axes``."""
    return torch.nn.functional.pad(value.float(), (0, missing) * axes, value=float("nan"))[None]


def taken_apart(
    nn: Any, question: HeadQuestion, prompts: PromptBatch, pairs: list[tuple[str, str]] | int
) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
    """The head's q and k by component, and its scores by pair of components, of one prompt.

    Returns:
        ``query`` and ``key`` [component, pos], the lengths of the parts; ``spread`` [query
        component, key component], the standard deviation of the pair's scores over the entries that
        are seen; ``scores`` [pair, query_pos, key_pos] of some pairs and ``total`` [query_pos,
        key_pos], NaN where a key comes after its query; ``pattern`` [query_pos, key_pos]; and which
        pairs these are, numbers of components.
    """
    with nn.trace(**inputs(prompts)):
        with torch.no_grad():
            parts = {
                name: read(nn, (path, side, None), prompts.width).float()
                for name, path, side in question.reads
            }
            parts = with_added(parts, prompts, question.added, torch.arange(prompts.width))
            if "pos_embed" in parts:
                stream, positions = parts["embed"], parts["pos_embed"]
                own = token_part(nn, question.embed, prompts, stream, positions)
                parts["embed"] = own
            (seen,) = read_attention(nn, [question.form])
            with torch.autocast(seen.z.device.type, enabled=False):
                vectors = components(nn, question, parts, seen.stream)
                sums, proof = summed(nn, question, vectors, seen)
                total, spread = sums.total(), sums.spread()
                kept = strongest(pairs, question.names, spread)
                maps = [sums.of(query, key) for query, key in kept]
                sinks = sinks_of(nn, question.form)
                own = None if sinks is None else sinks[question.head][None]
                attention = pattern(total[None, None], question.form.cap, own)
                made = attention[0] @ sums.v
    z = seen.z.float().unflatten(-1, (question.form.heads, -1))[:, :, question.head]
    output = float((made - z).abs().max() / seen.z.abs().max())
    stream = seen.stream.float()
    gap = float((vectors.sum(0) - stream[0]).abs().max() / stream.abs().max())
    require_sum(proof, gap, output)
    future = torch.ones_like(total, dtype=torch.bool).triu(1)
    scores = torch.stack([*maps, total]).masked_fill(future, float("nan")).cpu()
    found = {
        "query": sums.q.norm(dim=-1).cpu(),
        "key": sums.k.norm(dim=-1).cpu(),
        "spread": spread.cpu(),
        "scores": scores[:-1],
        "total": scores[-1],
        "pattern": attention[0, 0].cpu(),
    }
    return found, kept


def summed(nn: Any, question: HeadQuestion, vectors: Tensor, seen: Seen) -> tuple[Sums, Proof]:
    """The head's queries and keys as sums over ``vectors`` [component, pos, d_model]."""
    form, head = question.form, question.head
    norm, norms = norm_in_front(nn, form, seen)
    weights = layer_weights(nn, form, seen.entering)
    scoring = identify_scores(nn, form, seen, weights)
    turns = rotations(nn, form, torch.arange(vectors.shape[1]), seen.stream)
    turn, entering = chosen(scoring.kind, turns), apply(norm, vectors)
    both = []
    for name in ("q", "k"):
        matrix, bias = weights[name][head], weights[f"{name} bias"][head]
        parts = [entering @ matrix]
        parts += [] if seen.positions is None else [seen.positions.float() @ matrix]
        parts.append((norm.bias @ matrix + bias).expand(1, vectors.shape[1], -1))
        both.append(rotate(torch.cat(parts), turn))
    v = seen.entering.float() @ weights["v"][head] + weights["v bias"][head]
    proof = Proof(seen.z.dtype, scoring.gap, norms, [scoring])
    return Sums(both[0], both[1], v, scoring.scale), proof


def components(nn: Any, question: HeadQuestion, parts: dict[str, Tensor], like: Tensor) -> Tensor:
    """What the residual stream is the sum of: vectors [component, pos, d_model]."""
    vectors = []
    for name, factor in question.parts:
        split = question.splits.get(name)
        if split is None:
            vectors.append(factor * parts[name].expand(like.shape))
            continue
        inner, projected = parts[split.inner], parts[split.projected].to(like.dtype)
        weight, own, post = output_map(nn, split, inner.shape[-1], projected)
        results = by_head(inner, weight, question.form.heads)
        vectors += list((factor * apply(per_unit(post), results)).unbind(2))
        vectors.append((factor * (apply(post, own) + post.bias)).expand(like.shape))
    return torch.cat([vector.to(like.device) for vector in vectors])


def score_spread(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The standard deviation [key component] of one query part's scores, where keys are seen."""
    scores = torch.einsum("qd,ckd->cqk", q, k) * scale
    seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).tril()
    return scores[:, seen].std(-1, unbiased=False)


def strongest(
    pairs: list[tuple[str, str]] | int, names: list[str], spread: Tensor
) -> list[tuple[int, int]]:
    """The pairs (query component, key component) whose scores are returned whole."""
    if not isinstance(pairs, int):
        return [(names.index(query), names.index(key)) for query, key in pairs]
    order = spread.flatten().argsort(descending=True)[:pairs].tolist()
    return [divmod(at, len(names)) for at in order]


def require_sum(proof: Proof, stream: float, output: float) -> None:
    """Refuse a head whose scores are more than the sum of these parts.

    Args:
        proof: of the layer's matrices.
        stream: the largest error of the sum of parts, relative to the residual stream.
        output: that of the head's output, relative to the layer's.
    """
    proof.require()
    if proof.alibi:
        raise RefusedError(
            "arch",
            "the model adds a bias for the distance of query and key to its scores (ALiBi), which "
            "comes from no component; the scores are more than the sum of these pairs.",
        )
    limit = attention_tolerance(proof.dtype)
    if not max(output, stream) <= limit:
        raise RefusedError(
            "arch",
            "the parts that nnattr finds do not add up: the residual stream differs by "
            f"{stream:.1e} of its size and what the head puts out by {output:.1e}, and "
            f"at most {limit:.0e} is allowed.",
        )
