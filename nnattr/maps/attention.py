r"""A layer's attention as one matrix per head, proven where the model is.

A head reads the residual stream through :math:`W_Q, W_K, W_V` and writes through :math:`W_O`. Under
grouped-query attention the heads of a group share :math:`W_K` and :math:`W_V`; here each head has
its own copy. That these matrices, with a turn of q and k by their position where the model is
rotary, really are the model's attention is measured on a run: the z that they give against the
model's own. Of the ways in which models turn and scale, the one that fits is taken.

Everything here travels to where the model is: torch and plain values only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.maps.linear import linear_map
from nnattr.maps.norm import Frozen, frozen
from nnattr.runs.interface import with_sinks
from nnattr.runs.places import cut, raw
from nnattr.runs.tolerance import weights_tolerance


class Rotary:
    """The rotary embedding of a layer: the module that makes its angles, or their frequencies.

    Attributes:
        path: of that module, or None.
        arguments: what it is given besides values and positions.
        frequencies: turns per position of each pair of coordinates, where there is no module.
    """

    def __init__(
        self,
        path: str | None = None,
        arguments: tuple[str, ...] = (),
        frequencies: tuple[float, ...] = (),
    ) -> None:
        self.path = path
        self.arguments = arguments
        self.frequencies = frequencies


class Form:
    """Where a layer's attention keeps its weights, and how it may make its scores.

    `nnattr.model.attention_form.layer_form` gives it in plain values.

    Attributes:
        layer: the path of the layer.
        places: where queries, keys and values are made, by ``"q"``, ``"k"`` and ``"v"``.
        output: the path of the output projection.
        needs: which of q, k and v are wanted.
        heads, kv_heads: how many heads there are, and how many of keys and values.
        d_head, d_model: their width, and that of the residual stream.
        norms: the paths of the layer's own norms; one of them may stand in front of attention.
        behind: the path of the norm behind attention, or None.
        scales: what scores may be multiplied with, the likeliest first.
        cap: what they are capped at, or None.
        rotary: how q and k may be turned by their position, or None.
        shifted: whether q and k are made of more than v: a position embedding is added for them.
        sinks: the path of the module that has each head's attention sink, or None.
    """

    def __init__(
        self,
        *,
        layer: str,
        places: dict[str, tuple[Any, ...]],
        output: str,
        needs: tuple[str, ...],
        heads: int,
        kv_heads: int,
        d_head: int,
        d_model: int,
        norms: tuple[str, ...],
        behind: str | None,
        scales: tuple[float, ...],
        cap: float | None,
        rotary: dict[str, Any] | None,
        sinks: str | None,
        shifted: bool = False,
    ) -> None:
        self.layer = layer
        self.places = places
        self.output = output
        self.needs = needs
        self.heads = heads
        self.kv_heads = kv_heads
        self.d_head = d_head
        self.d_model = d_model
        self.norms = norms
        self.behind = behind
        self.scales = scales
        self.cap = cap
        self.rotary = None if rotary is None else Rotary(**rotary)
        self.shifted = shifted
        self.sinks = sinks


class Seen:
    """What a layer's attention saw and made in a run.

    Attributes:
        stream: the residual stream in front of it [example, pos, d_model].
        entering: what entered its projections [example, pos, d_model].
        z: what its heads made [example, pos, heads * d_head].
        projected: what the output projection made of that [example, pos, d_model].
        positions: what is added to ``entering`` for queries and keys [example, pos, d_model], or
            None.
    """

    def __init__(
        self,
        stream: Tensor,
        entering: Tensor,
        z: Tensor,
        projected: Tensor,
        positions: Tensor | None = None,
    ) -> None:
        self.stream = stream
        self.entering = entering
        self.z = z
        self.projected = projected
        self.positions = positions

    def read_by(self, name: str) -> Tensor:
        """What q, k or v are made of [example, pos, d_model]."""
        if name == "v" or self.positions is None:
            return self.entering
        return self.entering + self.positions


class Scoring:
    """How a layer makes its scores, as far as a run tells.

    Attributes:
        kind: how q and k are turned: ``"none"``, ``"halves"`` or ``"pairs"``.
        scale: what their product is multiplied with.
        alibi: the factor of a bias for distance; 0: there is none.
        gap: the largest error of z relative to its largest value.
    """

    def __init__(self, kind: str, scale: float, alibi: float, gap: float) -> None:
        self.kind = kind
        self.scale = scale
        self.alibi = alibi
        self.gap = gap


def read_attention(nn: Any, forms: list[Form]) -> list[Seen]:
    """What each layer's attention sees and makes, inside a trace."""
    found = []
    for form in forms:
        stream = nn.get(form.layer).input
        shifted = nn.get(form.places["q"][0]).input if form.shifted else None
        entering = nn.get(form.places["v"][0]).input
        positions = None if shifted is None else shifted - entering
        output = nn.get(form.output)
        found.append(Seen(stream, entering, output.input, output.output, positions))
    return found


def layer_weights(nn: Any, form: Form, like: Tensor) -> dict[str, Tensor]:
    """Every head's matrices, in float32.

    Returns:
        for each name of ``form.needs``, of q, k and v, the matrix [head, d_model, d_head] and,
        as ``q bias`` and so on, the bias [head, d_head]; ``o`` [head, d_head, d_model] and
        ``o bias`` [d_model].
    """
    found = {}
    for name in form.needs:
        path, _, part = form.places[name]
        heads = form.heads if name == "q" else form.kv_heads
        weight, bias = linear_map(nn.get(path), form.d_model, like)
        weight = cut(weight, part).unflatten(-1, (heads, -1)).movedim(-2, 0)
        bias = cut(bias, part).unflatten(-1, (heads, -1))
        shared = form.heads // heads
        found[name] = weight.repeat_interleave(shared, 0)
        found[f"{name} bias"] = bias.repeat_interleave(shared, 0)
    weight, bias = linear_map(nn.get(form.output), form.heads * form.d_head, like)
    return {**found, "o": weight.unflatten(0, (form.heads, -1)), "o bias": bias}


def project(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """Every head's q, k or v [example, head, pos, d_head] of what enters attention."""
    made = torch.einsum("epm,hmd->ehpd", x.float(), weights[name])
    return made + weights[f"{name} bias"][:, None]


def norm_in_front(nn: Any, form: Form, seen: Seen) -> tuple[Frozen, float]:
    """The norm between the residual stream and attention, and its gap."""
    stream, entering = seen.stream, seen.entering.float()
    size = entering.abs().max()
    best, least = None, float((stream.float() - entering).abs().max() / size)
    for path in form.norms:
        gap = float((nn.get(path)(stream).float() - entering).abs().max() / size)
        if gap < least:
            best, least = path, gap
    module = None if best is None else nn.get(best)
    return frozen(module, stream), least


def rotations(nn: Any, form: Form, positions: Tensor, like: Tensor) -> list[tuple[Any, ...]]:
    """The turns that the model may give q and k at ``positions``: (kind, cos, sin) [pos, pair].

    The first is none at all; then, where there is a rotary embedding, the two ways of pairing the
    coordinates.
    """
    kinds: list[tuple[Any, ...]] = [("none", None, None)]
    rotary = form.rotary
    if rotary is None:
        return kinds
    positions = positions.to(like.device)
    if rotary.path is None:
        angles = positions[:, None] * torch.tensor(rotary.frequencies, device=like.device)
        cos, sin = angles.cos(), angles.sin()
    else:
        cos, sin = angles_of(nn.get(rotary.path), positions, rotary.arguments)
    return [*kinds, ("halves", cos, sin), ("pairs", cos, sin)]


def angles_of(module: Any, positions: Tensor, arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Cosine and sine [pos, pair] as a rotary module makes them: in either order, once or twice.

    At position 0 no angle is turned, and at 1 no two pairs by the same.
    """
    asked = torch.cat([torch.arange(2, device=positions.device), positions])
    x = torch.zeros(1, len(asked), 1, device=positions.device)
    cos, sin = (one[0].float() for one in module(x, asked[None], *arguments))
    if cos[0].abs().max() < sin[0].abs().max():
        cos, sin = sin, cos
    half = cos.shape[-1] // 2
    if alike(sin[1, :half], sin[1, half:]):
        picked = slice(0, half)
    elif alike(sin[1, 0::2], sin[1, 1::2]):
        picked = slice(0, None, 2)
    else:
        picked = slice(None)
    return cos[2:, picked], sin[2:, picked]


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether these are the same values, one by one."""
    return a.shape == b.shape and bool((a - b).abs().max() < 1e-4)


def rotate(x: Tensor, rotation: tuple[Any, ...]) -> Tensor:
    """``x`` [..., pos, d_head] turned by its position."""
    kind, cos, sin = rotation
    if kind == "none":
        return x
    size = 2 * cos.shape[-1]
    head, rest = x[..., :size], x[..., size:]
    if kind == "halves":
        a, b = head[..., : size // 2], head[..., size // 2 :]
        parts = [a * cos - b * sin, b * cos + a * sin]
        return torch.cat([*parts, rest], -1)
    a, b = head[..., 0::2], head[..., 1::2]
    parts = [a * cos - b * sin, b * cos + a * sin]
    return torch.cat([torch.stack(parts, -1).flatten(-2), rest], -1)


def identify_scores(nn: Any, form: Form, seen: Seen, weights: dict[str, Tensor]) -> Scoring:
    """How this layer makes its attention scores: the candidate that reproduces the model's z.

    Where none does, the nearest without a bias for distance: a bias is only believed where it fits.
    """
    x = seen.entering
    q, k, v = (project(seen.read_by(name), weights, name) for name in ("q", "k", "v"))
    z = seen.z.float().unflatten(-1, (form.heads, -1)).movedim(-2, 1)
    turns = rotations(nn, form, torch.arange(x.shape[1]), x)
    bias = slopes(form.heads, x.shape[1], x.device)
    found: list[Scoring] = []
    sinks = sinks_of(nn, form)
    for alibi in (0.0, 1.0, "scale"):  # a bias for distance only if nothing fits without one
        for rotation in turns[:1] if alibi else turns:
            raw = rotate(q, rotation) @ rotate(k, rotation).mT
            for scale in form.scales:
                factor = scale if alibi == "scale" else alibi
                made = pattern(raw * scale + factor * bias, form.cap, sinks) @ v
                gap = float((made - z).abs().max() / z.abs().max())
                found.append(Scoring(rotation[0], scale, factor, gap))
        best = min(found, key=lambda one: one.gap)
        if best.gap <= weights_tolerance(x.dtype):
            return best
    return min((one for one in found if not one.alibi), key=lambda one: one.gap)


def output_gap(seen: Seen, weights: dict[str, Tensor]) -> float:
    """The largest error of what the output projection makes of z."""
    made = seen.z.float() @ weights["o"].flatten(0, 1) + weights["o bias"]
    projected = seen.projected.float().reshape(made.shape)
    return float((made - projected).abs().max() / projected.abs().max())


def sinks_of(nn: Any, form: Form) -> Tensor | None:
    """Each head's attention sink [head], where there are any and the weights are here."""
    sinks = None if form.sinks is None else raw(nn.get(form.sinks)).sinks
    return None if sinks is None or sinks.is_meta else sinks.detach()


def value_gap(form: Form, seen: Seen, weights: dict[str, Tensor]) -> float:
    """The largest error of the first position's z, which can only be its own value.

    Or a share of it, where the head has a sink.
    """
    made = project(seen.entering[:, :1], weights, "v")[..., 0, :]
    z = seen.z[:, 0].float().unflatten(-1, made.shape[-2:])
    if form.sinks is not None:
        made = made * ((z * made).sum(-1, keepdim=True) / (made * made).sum(-1, keepdim=True))
    return float((made - z).abs().max() / z.abs().max())


def chosen(kind: str, turns: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The turn of this kind."""
    return next(rotation for rotation in turns if rotation[0] == kind)


def pattern(scores: Tensor, cap: float | None, sinks: Tensor | None = None) -> Tensor:
    """The attention that scores [..., head, query_pos, key_pos] become, each query seeing its past.

    Args:
        scores: before the soft-cap.
        cap: what they are capped at, or None.
        sinks: each head's sink [head], or None.
    """
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    seen = torch.ones_like(scores[0, 0], dtype=torch.bool).tril()
    return with_sinks(scores.masked_fill(~seen, float("-inf")), sinks)


def slopes(heads: int, pos: int, device: Any) -> Tensor:
    """The bias of ALiBi [head, 1, key_pos]: a slope for each head times the key's position."""
    powers = 2 ** (torch.tensor(heads).float().log2().floor())
    steps = torch.arange(1, heads + 1)
    each = 2 ** (-8 * steps / powers)
    each = each.where(steps <= powers, 2 ** (-4 * (2 * (steps - powers) - 1) / powers))
    return each.to(device)[:, None, None] * torch.arange(pos, device=device)
