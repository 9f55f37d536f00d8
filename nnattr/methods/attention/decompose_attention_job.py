"""The job behind `decompose_attention`: queries and keys as sums over what the stream is made of.

One prompt at a time, without padding. Everything here travels to where the model is: torch and
plain values only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.maps.attention import (
    chosen,
    fitted,
    layer_weights,
    look,
    norm_in_front,
    pattern,
    rotations,
    turned,
)
from nnattr.maps.linear import linear_map
from nnattr.maps.norm import apply, frozen, per_unit
from nnattr.runs.places import read


def attention_parts_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """One head's scores, taken apart, for every prompt.

    Args:
        nn: the nnsight model.
        tick: progress.
        **payload: ``prompts``, ids [1, pos] each; ``head``, its number in the layer of ``form``;
            ``reads``, (key, path, side) of the parts in forward order; ``parts``, (key, factor) of
            those that stay whole; ``splits`` of those that fall apart into heads (see
            `nnattr.model.components.Plan`); ``names`` of all components; ``pairs``,
            names of components, or how many of the first prompt's strongest pairs to return whole.

    Returns:
        ``examples``, for each prompt what `take_apart` gives.
    """
    found = []
    for done, ids in enumerate(payload["prompts"]):
        found.append(one_prompt(nn, payload, ids))
        names = payload["names"]
        payload["pairs"] = [(names[i], names[j]) for i, j in found[0]["pairs"]]  # the same for all
        tick(done + 1, len(payload["prompts"]))
    return {"examples": found}


def one_prompt(nn: Any, ask: dict[str, Any], ids: Tensor) -> dict[str, Any]:
    """The same for one prompt."""
    with nn.trace(input_ids=ids, use_cache=False):
        with torch.no_grad():
            parts = {
                key: read(nn, (path, side, None), ids.shape[1]).float()
                for key, path, side in ask["reads"]
            }
            (seen,) = look(nn, [ask["form"]])
            with torch.autocast(seen["z"].device.type, enabled=False):
                found = take_apart(nn, ask, parts, seen)
    return found


def take_apart(
    nn: Any, ask: dict[str, Any], parts: dict[str, Tensor], seen: dict[str, Tensor]
) -> dict[str, Any]:
    """The head's q and k by component, and its scores by pair of components, inside the trace.

    Returns:
        ``query`` and ``key`` [component, pos], the lengths of the
        parts; ``spread`` [query component, key component], the standard deviation of the pair's
        scores over the entries that are seen; ``pairs`` and ``scores`` [pair, query_pos, key_pos],
        and ``total`` [query_pos, key_pos], NaN where a key comes after its query; ``pattern``
        [query_pos, key_pos]; ``proof``.
    """
    form, head = ask["form"], ask["head"]
    vectors = components(nn, ask, parts, seen["stream"])
    stream = seen["stream"].float()
    proof: dict[str, Any] = {"eps": torch.finfo(seen["z"].dtype).eps}
    proof["stream"] = float((vectors.sum(0) - stream[0]).abs().max() / stream.abs().max())
    norm, proof["norms"] = norm_in_front(nn, form, seen)
    weights = layer_weights(nn, form, seen["entering"])
    how = fitted(nn, form, seen, weights)
    proof.update(z=how["gap"], alibi=how["alibi"])
    turns = rotations(nn, form, torch.arange(stream.shape[1]), stream)
    entering = apply(norm, vectors)
    both = {}
    for name in ("q", "k"):
        matrix, bias = weights[name][head], weights[f"{name} bias"][head]
        constant = (norm["bias"] @ matrix + bias).expand(1, stream.shape[1], -1)
        both[name] = turned(torch.cat([entering @ matrix, constant]), chosen(how["kind"], turns))
    total = both["q"].sum(0) @ both["k"].sum(0).T * how["scale"]
    spread = torch.stack([spreads(q, both["k"], how["scale"]) for q in both["q"]])
    pairs = wanted(ask["pairs"], ask["names"], spread)
    maps = [both["q"][i] @ both["k"][j].T * how["scale"] for i, j in pairs]
    future = torch.ones_like(total, dtype=torch.bool).triu(1)
    scores = torch.stack([*maps, total]).masked_fill(future, float("nan")).cpu()
    v = seen["entering"].float() @ weights["v"][head] + weights["v bias"][head]
    attention = pattern(total[None, None], form["cap"])
    z = seen["z"].float().unflatten(-1, (form["heads"], -1))[:, :, head]
    made = attention[0] @ v
    proof["sum"] = float((made - z).abs().max() / seen["z"].abs().max())
    return {
        "query": both["q"].norm(dim=-1).cpu(),
        "key": both["k"].norm(dim=-1).cpu(),
        "spread": spread.cpu(),
        "pairs": pairs,
        "scores": scores[:-1],
        "total": scores[-1],
        "pattern": attention[0, 0].cpu(),
        "proof": proof,
    }


def components(nn: Any, ask: dict[str, Any], parts: dict[str, Tensor], like: Tensor) -> Tensor:
    """What the residual stream is the sum of: vectors [component, pos, d_model]."""
    if "pos_embed" in parts:
        parts["embed"] = parts["embed"] - parts["pos_embed"]
    splits = {one["part"]: one for one in ask["splits"]}
    vectors = []
    for key, factor in ask["parts"]:
        if key not in splits:
            vectors.append(factor * parts[key].expand(like.shape))
            continue
        one = splits[key]
        heads = ask["form"]["heads"]
        inner, projected = parts[one["inner"]], parts[one["projected"]].to(like.dtype)
        weight, own = linear_map(nn.get(one["projection"]), inner.shape[-1], projected)
        post = frozen(nn.get(one["post"]) if one["post"] else None, projected)
        results = torch.einsum(
            "ephd,hdm->ephm", inner.unflatten(-1, (heads, -1)), weight.unflatten(0, (heads, -1))
        )
        vectors += list((factor * apply(per_unit(post), results)).unbind(2))
        vectors.append((factor * (apply(post, own) + post["bias"])).expand(like.shape))
    return torch.cat([vector.to(like.device) for vector in vectors])


def spreads(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The standard deviation [key component] of one query part's scores, where keys are seen."""
    scores = torch.einsum("qd,ckd->cqk", q, k) * scale
    seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).tril()
    return scores[:, seen].std(-1, unbiased=False)


def wanted(pairs: Any, names: list[str], spread: Tensor) -> list[tuple[int, int]]:
    """The pairs (query component, key component) whose scores are returned whole."""
    if not isinstance(pairs, int):
        return [(names.index(query), names.index(key)) for query, key in pairs]
    order = spread.flatten().argsort(descending=True)[:pairs].tolist()
    return [divmod(at, len(names)) for at in order]
