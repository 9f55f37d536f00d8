"""The job behind `nnattr.model.verify`: run a model a few times and measure what its sites do.

Everything here travels to where the model is: torch, the standard library and plain values only.
It judges nothing except whether it is worth going on: it returns numbers, mostly *gaps*, the
largest difference between what was found and what the spec promises, relative to the largest
value. A gap that is not a number comes from non-finite activations and fails every comparison.

Cost: two short forward passes for a wrong spec; about ten more, with one row per layer, for one
that explains the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnattr.maps.linear import in_out
from nnattr.runs.places import raw, read, write

Places = dict[str, list[tuple[Any, ...]]]


def verify_job(
    nn: Any,
    tick: Callable[[int, int], None],
    ids: list[list[int]],
    pad: int,
    sites: Places,
    proj: list[str],
    head: dict[str, Any],
    n_heads: int,
    inner: dict[str, tuple[int, list[Any]]],
) -> dict[str, Any]:
    """Measure everything that `nnattr.model.verify` judges.

    Args:
        nn: the nnsight model.
        tick: progress.
        ids: prompts of equal length; one is enough.
        pad: the token to pad with.
        sites: for each site, in forward order, its place in every layer.
        proj: the path of every layer's attention output projection.
        head: paths and constants of everything after the last layer, and ``residual_scale``.
        n_heads: number of attention heads.
        inner: of q, k, v and neuron, those that the spec knows: how many heads, and the places.
    """
    with torch.no_grad():
        return measure(nn, tick, torch.tensor(ids), pad, sites, proj, head, n_heads, inner)


def measure(
    nn: Any,
    tick: Callable[[int, int], None],
    prompts: Tensor,
    pad: int,
    sites: Places,
    proj: list[str],
    head: dict[str, Any],
    n_heads: int,
    inner: dict[str, tuple[int, list[Any]]],
) -> dict[str, Any]:
    """`verify_job` without gradients: look first, and go on to edit only what looks right."""
    total = len(sites) + len(inner) + 3
    found = observe(nn, prompts, sites, proj, head, n_heads)
    tick(1, total)
    found["complete"] = all(gap <= 10 * found["tolerance"] for gap in found["gaps"].values())
    if not found["complete"]:
        return found
    rows = prompts[:1].expand(len(proj) + 1, -1)
    found["identity"] = identity(nn, rows, sites)
    tick(2, total)
    found["edits"] = {}
    for done, site in enumerate(sites):
        found["edits"][site] = edit(nn, rows, sites, site, n_heads, head["residual_scale"])
        tick(3 + done, total)
    found["apart"], found["neurons"] = {}, None
    for done, (name, (heads, places)) in enumerate(inner.items()):
        if name == "neuron":
            found["neurons"] = neurons_gap(nn, prompts, places, sites["mlp_out"])
        else:
            found["apart"][name] = head_mismatches(nn, prompts[:1], places, heads, sites, n_heads)
        tick(3 + len(sites) + done, total)
    found["padding"] = padding(nn, prompts[0], pad)
    tick(total, total)
    return found


def observe(
    nn: Any, prompts: Tensor, sites: Places, proj: list[str], head: dict[str, Any], n_heads: int
) -> dict[str, Any]:
    """One run: what is found at every site, against what the spec says it is."""
    changed = prompts[:1].clone()
    changed[0, -1] = prompts[0, 0]
    batch = torch.cat([prompts, changed])
    with nn.trace(input_ids=batch, use_cache=False, output_hidden_states=True):
        layers = [
            read_layer(nn, sites, layer, path, batch.shape[1]) for layer, path in enumerate(proj)
        ]
        if nn.get(proj[0]).weight.is_meta:  # in a sandbox: modules can be called all the same
            for path, seen in zip(proj, layers, strict=True):
                seen["heads"] = by_calling(nn.get(path), seen["sites"]["z"], n_heads)
        output = nn.output
        logits = output.logits.clone()
        hidden = output.hidden_states
        last = layers[-1]["sites"]["resid_post"]
        normed = last if head["final_norm"] is None else nn.get(head["final_norm"])(last)
        expected = finish(nn.get(head["unembed"])(normed), head)
    heads = (heads_gap(nn, path, seen, n_heads) for path, seen in zip(proj, layers, strict=True))
    kept = ((seen["raw"], seen["sites"]) for seen in layers)
    gaps = {
        "sum_of_heads": worst(heads),
        "attn_out": worst(gap(seen["entering"], seen["projected"]) for seen in layers),
        "sums": worst(worst(sums(seen["sites"], head["residual_scale"])) for seen in layers),
        "hidden_states": hidden_gap(hidden, layers, normed),
        "logits": gap(expected, logits),
        "causal": gap(logits[-1, :-1], logits[0, :-1]),
        "overwritten": worst(gap(raw[site], copy[site]) for raw, copy in kept for site in sites),
    }
    eps = torch.finfo(logits.dtype).eps
    return {
        "gaps": gaps,
        "finite": bool(torch.isfinite(logits).all()),
        "dtype": str(logits.dtype).removeprefix("torch."),
        "tolerance": max(1e-5, 4 * eps),
        "eps": eps,
        "z": [list(seen["sites"]["z"].shape) for seen in layers],
        "batch": list(batch.shape),
    }


def read_layer(nn: Any, sites: Places, layer: int, path: str, pos: int) -> dict[str, Any]:
    """One layer, inside a trace: every site as read, a copy of it, and the projection's output."""
    raw, kept, projected, entering = {}, {}, None, None
    for site, places in sites.items():
        where = places[layer]
        if site == "attn_out":
            projected = entering = nn.get(path).output.clone()
            if where[0] != path:  # behind a norm: what enters it must be the projection's output
                entering = nn.get(where[0]).input.clone()
        raw[site] = read(nn, where, pos)
        kept[site] = raw[site].clone()
    return {"raw": raw, "sites": kept, "projected": projected, "entering": entering}


def heads_gap(nn: Any, path: str, seen: dict[str, Any], n_heads: int) -> float:
    """How far the sum over heads of z W_O, plus the bias, is from the projection's output."""
    projection = nn.get(path)
    z, target = seen["sites"]["z"].double(), seen["projected"].double()
    if "heads" in seen:
        return gap(seen["heads"], target)
    weight = in_out(projection).detach().double()
    if z.ndim != 3 or z.shape[-1] % n_heads or weight.shape != (z.shape[-1], target.shape[-1]):
        return float("inf")
    parts = zip(z.chunk(n_heads, -1), weight.chunk(n_heads, 0), strict=True)
    total = torch.stack([part @ matrix for part, matrix in parts]).sum(0)
    bias = getattr(raw(projection), "bias", None)
    return gap(total if bias is None else total + bias.double(), target)


def by_calling(projection: Any, z: Tensor, n_heads: int) -> Tensor:
    """The sum over heads, plus the bias, by calling the projection on a head at a time."""
    if z.ndim != 3 or z.shape[-1] % n_heads:
        return z[..., :0]  # of no projection's shape
    bias = projection(torch.zeros_like(z)).double()
    total = bias.clone()
    for head in torch.arange(z.shape[-1], device=z.device).chunk(n_heads):
        alone = torch.zeros_like(z)
        alone[..., head] = z[..., head]
        total += projection(alone).double() - bias
    return total


def sums(values: dict[str, Tensor], scale: float) -> dict[str, float]:
    """The residual stream as a sum: gaps of its equations, by the site each should give."""
    pre, attn, mlp = values["resid_pre"], values["attn_out"], values["mlp_out"]
    if "resid_mid" not in values:
        return {"resid_post": gap(pre + scale * (attn + mlp), values["resid_post"])}
    mid = values["resid_mid"]
    return {
        "resid_mid": gap(pre + scale * attn, mid),
        "resid_post": gap(mid + scale * mlp, values["resid_post"]),
    }


def hidden_gap(hidden: Any, layers: list[dict[str, Any]], normed: Tensor) -> float:
    """How far the residual sites are from Hugging Face's ``hidden_states`` (the last is normed)."""
    if hidden is None or len(hidden) != len(layers) + 1:
        return float("inf")
    stream = [seen["sites"] for seen in layers]
    gaps = [gap(values["resid_pre"], hidden[i]) for i, values in enumerate(stream)]
    gaps += [gap(values["resid_post"], hidden[i + 1]) for i, values in enumerate(stream[:-1])]
    last = min(gap(normed, hidden[-1]), gap(stream[-1]["resid_post"], hidden[-1]))
    return worst([*gaps, last])


def finish(logits: Tensor, head: dict[str, Any]) -> Tensor:
    """What the model does to the unembedding's output: multiply, divide, cap."""
    logits = logits * head["logit_scale"] / head["logit_divisor"]
    cap = head["logit_softcap"]
    return logits if cap is None else cap * torch.tanh(logits / cap)


def identity(nn: Any, rows: Tensor, sites: Places) -> float:
    """The largest change of a logit when every site is set to itself: 0 if writing is exact."""
    with nn.trace(input_ids=rows, use_cache=False):
        before = nn.output.logits.clone()
    with nn.trace(input_ids=rows, use_cache=False):
        for places in zip(*sites.values(), strict=True):
            for where in places:
                write(nn, where, read(nn, where, rows.shape[1]).clone())
        after = nn.output.logits.clone()
    return float((after - before).detach().abs().max())


def edit(
    nn: Any, rows: Tensor, sites: Places, site: str, n_heads: int, scale: float
) -> dict[str, float]:
    """Negate a part of ``site`` in row *l* at layer *l*, everywhere but at the last position.

    Returns the least change of the logits over layers; the worst gap of the residual sums inside
    the edited layers; and the least change of z at the last position (for ``resid_pre``: z must
    gather from earlier positions, or it does not belong to attention).
    """
    places = list(zip(*sites.values(), strict=True))
    kept = []
    with nn.trace(input_ids=rows, use_cache=False):
        for layer, found in enumerate(places):
            values = {}
            for name, where in zip(sites, found, strict=True):
                values[name] = read(nn, where, rows.shape[1]).clone()
                if name == site:
                    turn(values[name], layer, n_heads if site == "z" else 1)
                    write(nn, where, values[name].clone())
            kept.append({name: value[[layer, -1]] for name, value in values.items()})
        logits = nn.output.logits.clone()
    gaps = [
        value
        for pair in kept
        for result, value in sums({name: both[0] for name, both in pair.items()}, scale).items()
        if result != site
    ]
    return {
        "changed": min(gap(logits[layer], logits[-1]) for layer in range(len(places))),
        "sums": worst(gaps),
        "gathers": min(gap(pair["z"][0, -1], pair["z"][1, -1]) for pair in kept),
    }


def head_mismatches(
    nn: Any, prompt: Tensor, places: list[Any], heads: int, sites: Places, n_heads: int
) -> int:
    """How many heads of z an edit of one head of q, k or v changes wrongly, or wrongly leaves.

    Row *i* has head *i* turned and doubled in every layer, the last row none, and all rows enter
    every layer with the same residual stream. A query head makes one z, a key/value head those of
    its group.
    """
    batch, pos = prompt.expand(heads + 1, -1), prompt.shape[1]
    own = torch.arange(n_heads) * heads // n_heads == torch.arange(heads)[:, None]
    wrong = []
    with nn.trace(input_ids=batch, use_cache=False):
        for where, entry, site in zip(places, sites["resid_pre"], sites["z"], strict=True):
            stream = read(nn, entry, pos)
            write(nn, entry, stream[-1:].expand_as(stream).clone())
            value = read(nn, where, pos).clone()
            for row, head in enumerate(value.unflatten(-1, (heads, -1)).unbind(-2)[:heads]):
                head[row].mul_(-2)  # a view
            write(nn, where, value)
            z = read(nn, site, pos).detach().float().unflatten(-1, (n_heads, -1))
            moved = (z[:-1] - z[-1:]).abs().amax((1, 3)) / z.abs().max()
            changed = moved > 4 * torch.finfo(value.dtype).eps
            wrong.append(int((changed.cpu() != own).sum()))
    return sum(wrong)


def neurons_gap(nn: Any, prompts: Tensor, places: list[Any], outs: list[Any]) -> float:
    """How far the projection that the neurons enter is from giving the MLP's contribution."""
    gaps = []
    with nn.trace(input_ids=prompts, use_cache=False):
        for (path, *_), out in zip(places, outs, strict=True):
            projected = nn.get(path).output.clone()
            inside = path == out[0] or path.startswith(f"{out[0]}.")
            entering = read(nn, out, prompts.shape[1]) if inside else nn.get(out[0]).input
            gaps.append(gap(projected.flatten(), entering.flatten()))
    return worst(gaps)


def turn(value: Tensor, row: int, n_parts: int) -> None:
    """Negate, in place, the largest of ``n_parts`` slices in ``row``, save at the last position."""
    parts = value[row, :-1].unflatten(-1, (n_parts, -1))  # a view
    largest = int(parts.float().norm(dim=(0, 2)).argmax())
    parts[:, largest].neg_()


def padding(nn: Any, prompt: Tensor, pad: int) -> float:
    """How far two prompts of unequal length, left-padded together, are from their solo runs."""
    cut = prompt.shape[0] // 2
    batch = torch.stack([prompt, prompt])
    batch[1, :cut] = pad
    mask = torch.ones_like(batch)
    mask[1, :cut] = 0
    with nn.trace(input_ids=prompt[None], use_cache=False):
        long = nn.output.logits[0].clone()
    with nn.trace(input_ids=prompt[None, cut:], use_cache=False):
        short = nn.output.logits[0].clone()
    with nn.trace(input_ids=batch, attention_mask=mask, use_cache=False):
        both = nn.output.logits.clone()
    return worst([gap(both[0], long), gap(both[1, cut:], short)])


def gap(found: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest expected value; infinite if shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def worst(gaps: Any) -> float:
    """The largest gap; not a number if any is (``max`` would drop it)."""
    values = list(gaps.values() if isinstance(gaps, dict) else gaps)
    return float(torch.tensor(values, dtype=torch.float64).max()) if values else 0.0
