"""The job behind weight circuits: both sides of a circuit as thin factors, and what is asked of it.

A circuit over the vocabulary is ``left @ right.T`` with sides [d_vocab, rank]. The sides are made
where the model is; the product of them never exists, only chunks of its rows. Everything here
travels: torch and plain values only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.linalg import product_eigenvalues, product_norm, product_svd
from nnattr.maps.attention import (
    chosen,
    fitted,
    layer_weights,
    look,
    norm_in_front,
    rotations,
    turned,
    value_gap,
)
from nnattr.maps.linear import linear_map
from nnattr.maps.norm import frozen

FLOATS = 2**25  # numbers of a chunk of the circuit's rows


def circuit_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """Answer questions about one circuit.

    Args:
        nn: the nnsight model.
        tick: progress.
        **payload: ``ids`` [1, pos], a short prompt to prove the weights on; ``layers``, for each
            layer's number its form; ``left`` and ``right``, the sides, see `side`; ``distance``;
            ``scaled``, whether entries are to be attention scores as the model makes them (with
            ``fold`` at the prompt's mean scale of the norm); ``fold``; ``embed``,
            ``positions``, ``unembed``, ``norm``, paths; ``capped``; ``size`` of the vocabulary and
            ``context``; ``ask``, the questions by name with their arguments, see `answer`.

    Returns:
        the answers by name, and ``proof``, what was measured about the weights.
    """
    with nn.trace(input_ids=payload["ids"], use_cache=False):
        with torch.no_grad():
            seen = look(nn, list(payload["layers"].values()))
            with torch.autocast(seen[0]["z"].device.type, enabled=False):
                attention, proof = attentions(nn, payload, seen)
                left = side(nn, payload, attention, payload["left"], seen[0]["stream"])
                right = side(nn, payload, attention, payload["right"], seen[0]["stream"])
    with torch.no_grad():
        with torch.autocast(left.device.type, enabled=False):
            found = {
                name: answer(name, left, right, arguments, tick)
                for name, arguments in payload["ask"].items()
            }
    return {**found, "proof": proof}


def attentions(
    nn: Any, ask: dict[str, Any], seen: list[dict[str, Tensor]]
) -> tuple[dict[int, dict[str, Tensor]], dict[str, Any]]:
    """Each layer's matrices, folded and turned as asked, and what proves them."""
    found = {}
    proof = {"z": 0.0, "norms": 0.0, "alibi": 0.0, "kinds": []}
    proof["eps"] = torch.finfo(seen[0]["z"].dtype).eps
    for (layer, form), one in zip(ask["layers"].items(), seen, strict=True):
        weights = layer_weights(nn, form, one["entering"])
        if "q" in form["needs"]:
            how = fitted(nn, form, one, weights)
            proof["z"] = max(proof["z"], how["gap"])
            proof["alibi"] = max(proof["alibi"], how["alibi"])
            proof["kinds"].append(how["kind"])
            turn_apart(nn, form, one, weights, how, ask["distance"])
            weights["q"] = weights["q"] * (how["scale"] if ask["scaled"] else 1.0)
        else:
            proof["z"] = max(proof["z"], value_gap(one, weights))
        if ask["fold"]:
            proof["norms"] = max(proof["norms"], fold_layer(nn, ask, form, one, weights))
        found[layer] = weights
    return found, proof


def turn_apart(
    nn: Any,
    form: dict[str, Any],
    seen: dict[str, Tensor],
    weights: dict[str, Tensor],
    how: dict[str, Any],
    distance: int,
) -> None:
    """Turn the queries by ``distance`` positions against the keys."""
    if how["kind"] == "none" or distance == 0:
        return
    for name, position in (("q", distance), ("k", 0)):
        turns = rotations(nn, form, torch.tensor([position]), seen["entering"])
        weights[name] = turned(weights[name], chosen(how["kind"], turns))


def fold_layer(
    nn: Any,
    ask: dict[str, Any],
    form: dict[str, Any],
    seen: dict[str, Tensor],
    weights: dict[str, Tensor],
) -> float:
    """Put the norms' weights into the matrices, and centre what a LayerNorm will centre."""
    norm, gap = norm_in_front(nn, form, seen)
    typical = norm["scale"].mean() if ask["scaled"] else 1.0
    for name in form["needs"]:
        folded = typical * norm["gain"][:, None] * weights[name]
        weights[name] = folded - folded.mean(-2, keepdim=True) if norm["centred"] else folded
    if form["behind"] is not None:
        weights["o"] = weights["o"] * frozen(nn.get(form["behind"]), seen["stream"])["gain"]
    if final_norm(nn, ask, seen["stream"])["centred"]:
        weights["o"] = weights["o"] - weights["o"].mean(-1, keepdim=True)
    return gap


def final_norm(nn: Any, ask: dict[str, Any], like: Tensor) -> dict[str, Any]:
    """The norm in front of the unembedding as a linear map."""
    return frozen(None if ask["norm"] is None else nn.get(ask["norm"]), like)


def side(
    nn: Any,
    ask: dict[str, Any],
    attention: dict[int, dict[str, Tensor]],
    recipe: dict[str, Any],
    like: Tensor,
) -> Tensor:
    """One side of the circuit [row, rank].

    Args:
        nn: the nnsight model.
        ask: the job's payload.
        attention: the layers' matrices.
        recipe: ``end``, the matrix (q, k, v or o) and the heads that it is of, side by side;
            ``through``, the heads whose outputs are read instead of the embedding, first to last;
            ``rows``, ``"embed"``, ``"positions"`` or ``"unembed"``.
        like: a tensor of the residual stream's dtype and device.
    """
    name, heads = recipe["end"]
    if name == "o":
        rows = torch.cat([attention[layer]["o"][head].to(like.device) for layer, head in heads])
        return unembedded(nn, ask, rows, like)
    matrix = torch.cat([attention[layer][name][head].to(like.device) for layer, head in heads], -1)
    for layer, head in reversed(recipe["through"]):
        v, o = (attention[layer][key][head].to(like.device) for key in "vo")
        matrix = v @ (o @ matrix)
    return embedded(nn, ask, recipe["rows"], matrix, like)


def embedded(nn: Any, ask: dict[str, Any], rows: str, matrix: Tensor, like: Tensor) -> Tensor:
    """``W_E @ matrix`` or ``W_pos @ matrix`` [row, rank], the table asked for in chunks."""
    if rows == "positions":
        table = position_rows(nn, ask, like).float()
        return centred(nn, ask, table, like) @ matrix
    parts = []
    step = max(1, FLOATS // matrix.shape[0])
    for ids in torch.arange(ask["size"], device=like.device).split(step):
        table = nn.get(ask["embed"])(ids[None])[0].to(like.device).float()
        parts.append(centred(nn, ask, table, like) @ matrix)
    return torch.cat(parts)


def position_rows(nn: Any, ask: dict[str, Any], like: Tensor) -> Tensor:
    """The table of position embeddings [pos, d_model], those that positions 0, 1, ... get."""
    module, first = nn.get(ask["positions"]), ask["offset"]  # OPT leaves the first rows unused
    if module.weight.is_meta:
        return module(torch.arange(first, first + ask["context"], device=like.device)[None])[0]
    return module.weight[first : first + ask["context"]].to(like.device)


def centred(nn: Any, ask: dict[str, Any], table: Tensor, like: Tensor) -> Tensor:
    """The rows without their mean, where norms are folded and take it away anyway."""
    if not (ask["fold"] and final_norm(nn, ask, like)["centred"]):
        return table
    return table - table.mean(-1, keepdim=True)


def unembedded(nn: Any, ask: dict[str, Any], rows: Tensor, like: Tensor) -> Tensor:
    """``(rows @ W_U).T`` [d_vocab, rank], a chunk of the vocabulary at a time."""
    if ask["fold"]:
        norm = final_norm(nn, ask, like)
        rows = norm["gain"] * (rows - rows.mean(-1, keepdim=True) if norm["centred"] else rows)
    module = nn.get(ask["unembed"])
    step = ask["size"] if module.weight.is_meta else max(1, FLOATS // rows.shape[-1])
    parts = []
    for ids in torch.arange(ask["size"], device=like.device).split(step):
        matrix, _ = linear_map(module, rows.shape[-1], like, ids)
        parts.append((rows @ matrix).T)
    found = ask["multiplier"] * torch.cat(parts)
    return found - found.mean(0) if ask["fold"] and not ask["capped"] else found


def answer(name: str, left: Tensor, right: Tensor, arguments: Any, tick: Any) -> Any:
    """What one question about the circuit ``left @ right.T`` has for an answer."""
    if name == "copying":
        return copying(left, right, arguments["top_k"], arguments["by"], tick)
    if name == "eigenvalues":
        return product_eigenvalues(left, right.T).cpu()
    if name == "norm":
        return float(product_norm(left, right.T))
    if name == "directions":
        return directions(left, right, **arguments)
    rows, columns = (
        slice(None) if ids is None else torch.tensor(ids, device=left.device)
        for ids in (arguments["rows"], arguments["columns"])
    )
    return (left[rows] @ right[columns].T).cpu()


def copying(left: Tensor, right: Tensor, top_k: int, by: str, tick: Any) -> float:
    """The share of rows (or columns) whose own entry is among the ``top_k`` largest."""
    if by == "column":
        left, right = right, left
    hits, total = 0, len(left)
    numbers = torch.arange(total, device=left.device)
    for ids in numbers.split(max(1, FLOATS // total)):
        values = left[ids] @ right.T
        own = values.gather(1, ids[:, None])
        hits += int(((values > own).sum(1) < top_k).sum())
        tick(int(ids[-1]) + 1, total)
    return hits / total


def directions(left: Tensor, right: Tensor, k: int, tokens: int) -> dict[str, Tensor]:
    """The strongest singular directions, and the rows and columns at either end of each.

    Returns:
        ``values`` [rank], all singular values; for ``rows`` and ``columns`` the numbers
        [direction, end, token] and ``... weight``, the entries of the singular vectors. The two
        ends are the positive and the negative one: a row's and a column's end of one sign belong
        together.
    """
    u, s, vh = product_svd(left, right.T)
    found = {"values": s.cpu()}
    for name, vectors in (("rows", u.T[:k]), ("columns", vh[:k])):
        best = [(sign * vectors).topk(min(tokens, vectors.shape[1]), -1) for sign in (1, -1)]
        found[name] = torch.stack([end.indices for end in best], 1).cpu()
        ends = [sign * end.values for sign, end in zip((1, -1), best, strict=True)]
        found[f"{name} weight"] = torch.stack(ends, 1).cpu()
    return found
