"""What is the value of this activation?

Named tensors for the sites, layers, heads and positions you choose, from one forward pass on
whatever backend the model has; or only what a function of yours makes of them, there. So one
activation never costs the download of all.

The values are those of the model as it runs: ``q`` and ``k`` as they are projected, ``rot_q`` and
``rot_k`` as they meet (after rotary turns and the norms of heads, `nnattr.runs.rotated`), patterns
from the eager implementation (`nnattr.runs.patterns`). For anything else go down to nnsight:
``with model.nn.trace(...)`` has every module of the raw model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from nnattr.errors import ArchError, TaskError
from nnattr.model.model import Model
from nnattr.model.patterns import accepted, attention_paths
from nnattr.model.prompts import Prompts, Where, asked, columns
from nnattr.model.sites import FORWARD_ORDER, SITES, SiteName
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.logits import take
from nnattr.runs.patterns import patterns
from nnattr.runs.places import read
from nnattr.runs.portions import TOKENS_PER_FORWARD
from nnattr.runs.rotated import rotated
from nnattr.tasks import Task
from nnattr.tasks.positions import spots
from nnattr.tokens import Tokens

#: What runs where the model is: the chunk's tensors by site, each [example, layer, ...].
Reduce: TypeAlias = Callable[[dict[str, Tensor]], dict[str, Tensor]]

#: Sites that no module returns, read in passes of their own.
INSIDE = {"rot_q": "head", "rot_k": "kv_head"}
FLOATS = 2**27  # numbers that one chunk of prompts may hold at a time


@overload
def capture(
    model: Model,
    prompts: Prompts,
    sites: str | Sequence[str],
    positions: Where = "each",
    *,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    reduce: None = None,
    run: Literal["clean", "corrupted"] = "clean",
) -> dict[str, xr.DataArray]: ...


@overload
def capture(
    model: Model,
    prompts: Prompts,
    sites: str | Sequence[str],
    positions: Where = "each",
    *,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    reduce: Reduce,
    run: Literal["clean", "corrupted"] = "clean",
) -> dict[str, Tensor]: ...


def capture(
    model: Model,
    prompts: Prompts,
    sites: str | Sequence[str],
    positions: Where = "each",
    *,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    reduce: Reduce | None = None,
    run: Literal["clean", "corrupted"] = "clean",
) -> Any:
    """The activations at some sites.

    Args:
        model: as `nnattr.load` gives it.
        prompts: one or several, or a task.
        sites: one or several of `nnattr.model.sites`: ``"resid_pre"``, ``"q"``, ``"k"``, ``"v"``,
            ``"z"``, ``"attn_out"``, ``"resid_mid"``, ``"neuron"``, ``"mlp_out"``,
            ``"resid_post"``; ``"rot_q"``, ``"rot_k"``; and ``"pattern"``.
        positions: ``"each"``, ``"last"``, a position counted from the prompt's first token (or from
            its end, negative), a list of them, or the name of a task's span that has equally many
            tokens in every prompt. Of patterns these are the queries; all keys come.
        layers: which; by default all.
        heads: the numbers of heads, the same in all these layers; by default all. Of keys and
            values the key/value heads that serve these.
        reduce: a module-level function of torch alone. It gets a dictionary of tensors by site, a
            chunk of prompts at a time, and returns one of tensors whose first axis is the prompts.
            It runs where the model is, and only what it returns comes down.
        run: which prompts of a task.

    Returns:
        by site a `xarray.DataArray` in float32 with the dimensions ``example``, ``layer``, ``pos``,
        and (``head`` or ``kv_head``, ``d_head``), ``neuron`` or ``d_model``; of patterns
        ``example``, ``layer``, ``head``, ``query_pos``, ``key_pos``. Coordinates of (example, pos):
        ``position`` from the prompt's first token (-1 where a shorter prompt has none; the values
        are NaN there) and ``token``. With ``reduce`` its tensors, joined over the prompts.

        ``reduce`` sees the same axes in the same order; positions that a prompt lacks are at the
        end and hold zeros.

    Raises:
        ArchError: the model has no such site, layer or head, or gives no pattern.
        BackendError: the job, or ``reduce`` in it, failed; or patterns from a sandboxed server.
        TaskError: prompts or positions that cannot be used, or a result of ``reduce`` without a
            prompt axis.

    Cost: one forward pass; two more for patterns, and two for ``rot_q`` and ``rot_k``.
    """
    names = _names(sites)
    texts, tokens = asked(model, prompts, run)
    at, present = at_positions(prompts, texts, tokens, positions)
    chosen = _numbers("layer", layers, model.n_layers)
    payload = _payload(model, names, tokens, at, present, chosen, heads)
    payload["reduce"] = reduce
    values = accepted(model, model.run(capture_job, payload, label="capture").values)["values"]
    if reduce is None:
        return {
            name: _labelled(model, name, values[name], payload, tokens, at, present)
            for name in names
        }
    for name, value in values.items():
        if value.shape[:1] != (len(tokens),):
            raise TaskError(
                f"reduce returned {name!r} of shape {tuple(value.shape)} for {len(tokens)} prompts;"
                " its first axis must be the prompts, as in what it is given."
            )
    return values


def capture_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """``values``: by site [example, layer, ...], or what ``reduce`` makes of them."""
    parts = []
    total, rows = payload["columns"].shape[0], payload["rows"]
    for start in range(0, total, rows):
        some = slice(start, start + rows)
        prompts = PromptBatch(**payload["prompts"]).take(some)
        at, present = payload["columns"][some], payload["present"][some]
        found = activations(nn, payload, prompts, at, present) if payload["reads"] else {}
        if payload["pattern"] is not None:
            every, problem = patterns(
                nn, prompts, payload["paths"], payload["pattern"], payload["options"]
            )
            if problem is not None:
                return {"refused": problem}
            found["pattern"] = queries(every, prompts.mask, at, present)
        if payload["rotated"]:
            pairs, problem = rotated(nn, prompts, payload["inside"], payload["options"])
            if problem is not None:
                return {"refused": problem}
            for name, number, wanted in payload["rotated"]:
                found[name] = meeting([pair[number] for pair in pairs], wanted, at, present)
        if payload["reduce"] is not None:
            found = payload["reduce"](found)
        parts.append({key: value.detach().cpu() for key, value in found.items()})
        tick(min(start + rows, total), total)
    return {"values": {key: torch.cat([part[key] for part in parts]) for key in parts[0]}}


def activations(
    nn: Any, ask: dict[str, Any], prompts: PromptBatch, at: Tensor, present: Tensor
) -> dict[str, Tensor]:
    """By site [example, layer, pos, ...] of one chunk, by a plain pass."""
    seen: dict[str, list[Tensor]] = {}
    width = prompts.width
    with nn.trace(**inputs(prompts, ask["options"])):
        with torch.no_grad():
            for name, where, parts, wanted in ask["reads"]:
                value = read(nn, where, width)
                value = take(value.expand(len(at), -1, -1), at).float()
                value = value * present[..., None].to(value.device)
                if parts:
                    value = value.unflatten(-1, (parts, -1))[:, :, wanted]
                seen.setdefault(name, []).append(value)
    home = seen[ask["reads"][0][0]][0].device
    return {name: torch.stack([one.to(home) for one in each], 1) for name, each in seen.items()}


def meeting(every: list[Tensor], heads: list[int], at: Tensor, present: Tensor) -> Tensor:
    """Chosen heads and positions [example, layer, pos, head, d_head] of each layer's q or k."""
    home = every[0].device
    whole = torch.stack([one[:, heads].float().to(home) for one in every], 1).transpose(2, 3)
    rows = at.to(home)[:, None, :, None, None].expand(-1, whole.shape[1], -1, *whole.shape[3:])
    return whole.gather(2, rows) * present.to(home)[:, None, :, None, None]


def queries(every: list[Tensor], mask: Tensor, at: Tensor, present: Tensor) -> Tensor:
    """The rows of chosen queries [example, layer, head, query_pos, key_pos].

    Key 0 is each prompt's first token; behind its last token there are zeros.
    """
    home = every[0].device
    whole = torch.stack([one.float().to(home) for one in every], 1)
    rows = at.to(home)[:, None, None, :, None].expand(*whole.shape[:3], -1, whole.shape[-1])
    chosen = whole.gather(3, rows) * present.to(home)[:, None, None, :, None]
    shifts = (~mask).sum(1).tolist()
    return torch.stack([one.roll(-shift, -1) for one, shift in zip(chosen, shifts, strict=True)])


def _names(sites: str | Sequence[str]) -> list[str]:
    """The sites asked for, each once.

    Raises:
        ArchError: there is none, or an unknown one.
    """
    names = list(dict.fromkeys([sites] if isinstance(sites, str) else sites))
    known = (*SITES, *INSIDE, "pattern")
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        said = f"Unknown site {unknown[0]!r}" if unknown else "No sites were given"
        raise ArchError(f"{said}; the sites are {', '.join(known)}.")
    return names


def _numbers(what: str, given: int | Sequence[int] | None, count: int) -> list[int]:
    """The layers or heads asked for.

    Raises:
        ArchError: the model has no such one.
    """
    numbers = range(count) if given is None else [given] if isinstance(given, int) else given
    found = [int(number) for number in numbers]
    bad = [number for number in found if not 0 <= number < count]
    if bad or not found:
        said = f"There is no {what} {bad[0]}" if bad else f"No {what} was given"
        raise ArchError(f"{said}; this model has {count} of them, counted from 0.")
    return sorted(set(found))


def at_positions(
    prompts: Any, texts: tuple[str, ...], tokens: Tokens, positions: Where
) -> tuple[Tensor, Tensor]:
    """The columns of the padded batch [example, pos], and which of them the prompt really has.

    Raises:
        TaskError: a prompt has no such position, or a span is longer in one prompt than in another.
    """
    if isinstance(positions, str) and positions == "each":
        width = tokens.ids.shape[1]
        own = torch.arange(width) + torch.tensor(tokens.padding)[:, None]
        return own.clamp(max=width - 1), own < width
    if isinstance(positions, str) and positions != "last" and isinstance(prompts, Task):
        mask = spots(prompts, positions)[0]
        counts = sorted(set(mask.sum(1).tolist()))
        if len(counts) > 1:
            raise TaskError(
                f"The span {positions!r} has {counts[0]} tokens in one prompt and {counts[-1]} in "
                "another; capture it in tasks of one length each, or name positions."
            )
        at = mask.nonzero()[:, 1].view(len(mask), -1)
        return at, torch.ones_like(at, dtype=torch.bool)
    return columns(tokens, texts, positions)


def _payload(
    model: Model,
    names: list[str],
    tokens: Tokens,
    at: Tensor,
    present: Tensor,
    layers: list[int],
    heads: int | Sequence[int] | None,
) -> dict[str, Any]:
    """What travels."""
    wanted = _numbers("head", heads, model.n_heads)
    shared = model.n_heads // model.n_kv_heads
    parts = {
        None: (0, []),
        "head": (model.n_heads, wanted),
        "kv_head": (model.n_kv_heads, sorted({head // shared for head in wanted})),
    }
    order = FORWARD_ORDER.items()
    units: dict[SiteName, str | None] = {name: unit for name, unit in order if name in names}
    places = {name: model.places(name) for name in units}
    reads = [
        (name, places[name][layer], *parts[unit])
        for layer in layers
        for name, unit in units.items()
    ]
    width = tokens.ids.shape[1]
    size = (len(reads) + len(layers)) * at.shape[1] * 4 * model.n_heads * model.d_head
    if "pattern" in names:
        size += len(layers) * len(wanted) * width**2
    return {
        "prompts": tokens.tensors,
        "columns": at,
        "present": present,
        "reads": reads,
        "pattern": [wanted if layer in layers else [] for layer in range(model.n_layers)]
        if "pattern" in names
        else None,
        "paths": attention_paths(model),
        "rotated": [
            (name, number, parts[unit][1])
            for number, (name, unit) in enumerate(INSIDE.items())
            if name in names
        ],
        "inside": [attention_paths(model)[layer] for layer in layers],
        "options": {"logits_to_keep": 1} if model.accepts("logits_to_keep") else {},
        "rows": max(1, min(TOKENS_PER_FORWARD // width, math.ceil(FLOATS / size))),
        "layers": layers,
        "heads": wanted,
        "kv_heads": parts["kv_head"][1],
    }


def _labelled(
    model: Model,
    name: str,
    values: Tensor,
    ask: dict[str, Any],
    tokens: Tokens,
    at: Tensor,
    present: Tensor,
) -> xr.DataArray:
    """The values of a site with names, and NaN where a prompt has no such position."""
    own = torch.where(present, at - torch.tensor(tokens.padding)[:, None], -1).tolist()
    strings = [
        [row[i] if i >= 0 else "" for i in some]
        for row, some in zip(tokens.strings, own, strict=True)
    ]
    pos = "query_pos" if name == "pattern" else "pos"
    coords: dict[str, Any] = {
        "example": np.arange(len(tokens)),
        "layer": ask["layers"],
        "position": (("example", pos), own),
        "token": (("example", pos), np.array(strings, dtype=object)),
    }
    nan = float("nan")
    if name == "pattern":
        lengths = torch.tensor([len(row) for row in tokens.strings])
        keys = torch.arange(values.shape[-1]) < lengths[:, None]
        known = (present[:, :, None] & keys[:, None])[:, None, None]
        dims: tuple[str, ...] = ("example", "layer", "head", pos, "key_pos")
        coords["head"] = ask["heads"]
        return xr.DataArray(values.masked_fill(~known, nan).numpy(), dims=dims, coords=coords)
    unit = {**FORWARD_ORDER, **INSIDE}[name]
    last = ("neuron",) if name == "neuron" else ("d_model",)
    dims = ("example", "layer", pos, *((unit, "d_head") if unit else last))
    if unit:
        coords[unit] = ask["heads" if unit == "head" else "kv_heads"]
    known = present[:, None, :].reshape(len(at), 1, -1, *[1] * (values.ndim - 3))
    return xr.DataArray(values.masked_fill(~known, nan).numpy(), dims=dims, coords=coords)
