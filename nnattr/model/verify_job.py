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

from nnattr.maps.linear import matrix
from nnattr.model.verify_edits import edit, head_mismatches, identity, neurons_gap, padding
from nnattr.model.verify_gaps import Places, gap, stream_gaps, worst
from nnattr.runs.as_built import call_inside
from nnattr.runs.places import raw, read
from nnattr.runs.tolerance import structure_tolerance


class Ending:
    """What follows the last layer, as the spec says.

    Attributes:
        final_norm: the path of the norm, or None.
        unembed: the path of the unembedding.
        logit_scale, logit_divisor: what logits are multiplied with and divided by.
        logit_softcap: what they are capped at, or None.
    """

    def __init__(
        self,
        final_norm: str | None,
        unembed: str,
        logit_scale: float,
        logit_divisor: float,
        logit_softcap: float | None,
    ) -> None:
        self.final_norm = final_norm
        self.unembed = unembed
        self.logit_scale = logit_scale
        self.logit_divisor = logit_divisor
        self.logit_softcap = logit_softcap

    def finish(self, logits: Tensor) -> Tensor:
        """What the model does to the unembedding's output: multiply, divide, cap."""
        logits = logits * self.logit_scale / self.logit_divisor
        cap = self.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)


class Claims:
    """What the spec says of the model.

    Attributes:
        sites: for each site, in forward order, its place in every layer.
        projections: the path of every layer's attention output projection.
        ending: what follows the last layer.
        residual_scale: what a branch is multiplied with before it is added to the stream.
        n_heads: how many attention heads there are.
        inner: of q, k, v and neuron, those that the spec knows: how many heads, and the places.
    """

    def __init__(
        self,
        sites: Places,
        projections: list[str],
        ending: dict[str, Any],
        residual_scale: float,
        n_heads: int,
        inner: dict[str, tuple[int, list[Any]]],
    ) -> None:
        self.sites = sites
        self.projections = projections
        self.ending = Ending(**ending)
        self.residual_scale = residual_scale
        self.n_heads = n_heads
        self.inner = inner


class SeenLayer:
    """What one layer held in a run.

    Attributes:
        as_read: every site as it was read, which later edits would change.
        sites: copies of these.
        projected: what left attention's output projection.
        entering: what entered the norm behind it, or the same.
        heads: the sum of what the projection makes of the heads one by one, where that is known by
            calling it, else None.
    """

    def __init__(
        self,
        as_read: dict[str, Tensor],
        sites: dict[str, Tensor],
        projected: Tensor,
        entering: Tensor,
        heads: Tensor | None = None,
    ) -> None:
        self.as_read = as_read
        self.sites = sites
        self.projected = projected
        self.entering = entering
        self.heads = heads


def verify_job(nn: Any, tick: Callable[[int, int], None], **payload: Any) -> dict[str, Any]:
    """Measure everything that `nnattr.model.verify` judges.

    Args:
        nn: the nnsight model.
        tick: progress.
        **payload: ``ids``, prompts of equal length, one is enough; ``pad``, the token to pad with;
            ``claims``, see `Claims`.
    """
    with torch.no_grad():
        prompts = torch.tensor(payload["ids"])
        return measure(nn, tick, prompts, payload["pad"], Claims(**payload["claims"]))


def measure(
    nn: Any, tick: Callable[[int, int], None], prompts: Tensor, pad: int, claims: Claims
) -> dict[str, Any]:
    """`verify_job` without gradients: look first, and go on to edit only what looks right."""
    sites, n_heads, scale = claims.sites, claims.n_heads, claims.residual_scale
    total = len(sites) + len(claims.inner) + 3
    found = observe(nn, prompts, claims)
    tick(1, total)
    found["complete"] = all(gap <= 10 * found["tolerance"] for gap in found["gaps"].values())
    if not found["complete"]:
        return found
    rows = prompts[:1].expand(len(claims.projections) + 1, -1)
    found["identity"] = identity(nn, rows, sites)
    tick(2, total)
    found["edits"] = {}
    for done, site in enumerate(sites):
        found["edits"][site] = edit(nn, rows, sites, site, n_heads, scale)
        tick(3 + done, total)
    found["apart"], found["neurons"] = {}, None
    for done, (name, (heads, places)) in enumerate(claims.inner.items()):
        if name == "neuron":
            found["neurons"] = neurons_gap(nn, prompts, places, sites["mlp_out"])
        else:
            found["apart"][name] = head_mismatches(nn, prompts[:1], places, heads, sites, n_heads)
        tick(3 + len(sites) + done, total)
    found["padding"] = padding(nn, prompts[0], pad)
    tick(total, total)
    return found


def observe(nn: Any, prompts: Tensor, claims: Claims) -> dict[str, Any]:
    """One run: what is found at every site, against what the spec says it is."""
    changed = prompts[:1].clone()
    changed[0, -1] = prompts[0, 0]
    batch = torch.cat([prompts, changed])
    paths, ending, n_heads = claims.projections, claims.ending, claims.n_heads
    with nn.trace(input_ids=batch, use_cache=False, output_hidden_states=True):
        layers = [
            read_layer(nn, claims.sites, layer, path, batch.shape[1])
            for layer, path in enumerate(paths)
        ]
        for path, seen in zip(paths, layers, strict=True):
            if matrix(nn.get(path)) is None:  # no plain weights, or a sandbox without any
                seen.heads = by_calling(nn.get(path), seen.sites["z"], n_heads)
        output = nn.output
        logits = output.logits.clone()
        hidden = getattr(output, "hidden_states", None)
        last = layers[-1].sites["resid_post"]
        normed = last if ending.final_norm is None else nn.get(ending.final_norm)(last)
        expected = ending.finish(nn.get(ending.unembed)(normed))
    heads = (heads_gap(nn, path, seen, n_heads) for path, seen in zip(paths, layers, strict=True))
    sums = (worst(stream_gaps(seen.sites, claims.residual_scale)) for seen in layers)
    again = (gap(seen.as_read[site], seen.sites[site]) for seen in layers for site in claims.sites)
    gaps = {
        "sum_of_heads": worst(heads),
        "attn_out": worst(gap(seen.entering, seen.projected) for seen in layers),
        "sums": worst(sums),
        "hidden_states": hidden_gap(hidden, [seen.sites for seen in layers], normed),
        "logits": gap(expected, logits),
        "causal": gap(logits[-1, :-1], logits[0, :-1]),
        "overwritten": worst(again),
    }
    return {
        "gaps": gaps,
        "finite": bool(torch.isfinite(logits).all()),
        "dtype": str(logits.dtype).removeprefix("torch."),
        "tolerance": structure_tolerance(logits.dtype),
        "eps": torch.finfo(logits.dtype).eps,
        "z": [list(seen.sites["z"].shape) for seen in layers],
        "batch": list(batch.shape),
    }


def read_layer(nn: Any, sites: Places, layer: int, path: str, pos: int) -> SeenLayer:
    """One layer, inside a trace: every site as read, a copy of it, and the projection's output."""
    as_read, kept = {}, {}
    projected = entering = torch.empty(0)
    for site, places in sites.items():
        where = places[layer]
        if site == "attn_out":
            projected = entering = nn.get(path).output.clone()
            if where[0] != path:  # behind a norm: what enters it must be the projection's output
                entering = nn.get(where[0]).input.clone()
        as_read[site] = read(nn, where, pos)
        kept[site] = as_read[site].clone()
    return SeenLayer(as_read, kept, projected, entering)


def heads_gap(nn: Any, path: str, seen: SeenLayer, n_heads: int) -> float:
    """How far the sum over heads of z W_O, plus the bias, is from the projection's output."""
    projection = nn.get(path)
    z, target = seen.sites["z"].double(), seen.projected.double()
    if seen.heads is not None:
        return gap(seen.heads, target)
    weight = matrix(projection)
    assert weight is not None  # else its heads were seen by calling it
    weight = weight.detach().double()
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
    bias = call_inside(projection, torch.zeros_like(z)).double()
    total = bias.clone()
    for head in torch.arange(z.shape[-1], device=z.device).chunk(n_heads):
        alone = torch.zeros_like(z)
        alone[..., head] = z[..., head]
        total += call_inside(projection, alone).double() - bias
    return total


def hidden_gap(hidden: Any, stream: list[dict[str, Tensor]], normed: Tensor) -> float:
    """How far the residual sites are from Hugging Face's ``hidden_states`` (the last is normed).

    A module of the user's own may give none; then there is nothing to hold them against.
    """
    if hidden is None:
        return 0.0
    if len(hidden) != len(stream) + 1:
        return float("inf")
    gaps = [gap(values["resid_pre"], hidden[i]) for i, values in enumerate(stream)]
    gaps += [gap(values["resid_post"], hidden[i + 1]) for i, values in enumerate(stream[:-1])]
    last = min(gap(normed, hidden[-1]), gap(stream[-1]["resid_post"], hidden[-1]))
    return worst([*gaps, last])
