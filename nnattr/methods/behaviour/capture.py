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

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from nnattr.arguments import checked
from nnattr.errors import ArchError, TaskError
from nnattr.jobs.record import as_task, provenance_of, untold
from nnattr.methods.behaviour.capture_job import capture_job
from nnattr.model.components import contribution_norm, position_table
from nnattr.model.model import Model
from nnattr.model.patterns import attention_paths
from nnattr.model.prompts import Prompts, Run, aligned, texts_and_tokens
from nnattr.model.sites import FORWARD_ORDER, SITES
from nnattr.results import Activations
from nnattr.tasks.positions import Positions
from nnattr.tokens import Tokens

#: What runs where the model is: the chunk's tensors by site, each [example, layer, ...].
Reduce: TypeAlias = Callable[[dict[str, Tensor]], dict[str, Tensor]]

#: Sites that no module returns, read in passes of their own.
INSIDE = {"rot_q": "head", "rot_k": "kv_head"}
#: What has a number for every query and key.
LOOKS = ("pattern", "attn_scores")
#: What is added to the residual stream, and no module returns.
ADDED = ("embed", "result")
#: Into how many heads a site's last axis is split, and which of them are wanted.
Units: TypeAlias = tuple[int, list[int]]


@overload
def capture(
    model: Model,
    prompts: Prompts,
    sites: str | Sequence[str],
    *,
    positions: Positions = "each",
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    reduce: None = None,
    run: Run = "clean",
) -> Activations: ...


@overload
def capture(
    model: Model,
    prompts: Prompts,
    sites: str | Sequence[str],
    *,
    positions: Positions = "each",
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    reduce: Reduce,
    run: Run = "clean",
) -> dict[str, Tensor]: ...


@checked
def capture(
    model: Model,
    prompts: Prompts,
    sites: str | Sequence[str],
    *,
    positions: Positions = "each",
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    reduce: Reduce | None = None,
    run: Run = "clean",
) -> Activations | dict[str, Tensor]:
    """The activations at some sites.

    Args:
        model: as `nnattr.load` gives it.
        prompts: one or several, or a task.
        sites: one or several of `nnattr.model.sites`: ``"resid_pre"``, ``"q"``, ``"k"``, ``"v"``,
            ``"z"``, ``"attn_out"``, ``"resid_mid"``, ``"neuron"``, ``"mlp_out"``,
            ``"resid_post"``; and of those that no module returns (they can be read, and not
            patched): ``"rot_q"`` and ``"rot_k"``; ``"pattern"``; ``"attn_scores"``, what its
            softmax gets (scaled, capped, with the mask: -inf for keys that a query may not see);
            ``"result"``, what each head adds to the residual stream, :math:`z_h W_O^h` (through the
            norm behind attention at the run's scale, where there is one), so that the sum over
            heads and what the biases add are ``"attn_out"``; ``"embed"``, what the token's
            embedding adds to it (scaled or normed as the model does, without learned positions).
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
        `Activations`: by site a `xarray.DataArray` in float32 with the dimensions ``example``,
        ``layer``, ``pos``, and (``head`` or ``kv_head``, ``d_head``), ``neuron`` or ``d_model``; of
        patterns ``example``, ``layer``, ``head``, ``query_pos``, ``key_pos``. Coordinates of
        (example, pos): ``position`` from the prompt's first token (NaN, as the values, where a
        shorter prompt has none) and ``token``. With ``reduce`` its tensors, joined over the
        prompts: they are your own, so they come as they are, by your names.

        ``reduce`` sees the same axes in the same order; positions that a prompt lacks are at the
        end and hold zeros.

    Raises:
        ArchError: the model has no such site, layer or head, or gives no pattern.
        BackendError: the job, or ``reduce`` in it, failed; or patterns from a sandboxed server.
        TaskError: prompts or positions that cannot be used, or a result of ``reduce`` without a
            prompt axis.

    Cost: one forward pass; two more for patterns, two for ``rot_q`` and ``rot_k``, two for
    ``attn_scores``, and one for ``result`` and ``embed``. ``result`` is the largest of all: layers
    x heads x d_model numbers for each position, 0.4 MB a token for GPT-2 small, 4 MB for an 8B
    Llama; choose layers, heads and positions, or ``reduce`` it.
    """
    names = _names(sites)
    texts, tokens = texts_and_tokens(model, prompts, run)
    at, present = aligned(prompts, texts, tokens, positions)
    chosen = _numbers("layer", layers, model.n_layers)
    units, width = _units(model, heads), tokens.ids.shape[1]
    wanted = _wanted(model, names, chosen, units)
    floats = (len(wanted["reads"]) + len(chosen)) * at.shape[1] * 4 * model.n_heads * model.d_head
    floats += len({*LOOKS} & {*names}) * len(chosen) * len(units["head"][1]) * width**2
    if "result" in names:
        result = len(chosen) * len(units["head"][1]) * model.config.hidden_size
        floats += 2 * at.shape[1] * result
    payload = {
        "prompts": model.batch(tokens, prompts),
        "columns": {"at": at, "present": present},
        "wanted": wanted,
        "reduce": reduce,
        "portions": model.portions(width, floats=floats),
    }
    outcome = model.run(capture_job, payload, label="capture")
    values = {
        name.removeprefix("value "): value
        for name, value in outcome.values.items()
        if name.startswith("value ")
    }
    if reduce is None:
        found = {
            name: _labelled(name, values[name], chosen, units, tokens, at, present)
            for name in names
        }
        given = {"sites": names, "positions": positions, "run": run}
        given |= {"layers": layers, "heads": heads, **untold(prompts)}
        task = as_task(prompts, texts, tokens)
        made = provenance_of(model, task, method="capture", arguments=given, outcome=outcome)
        return Activations.from_arrays(found, made)
    for name, value in values.items():
        if value.shape[:1] != (len(tokens),):
            raise TaskError(
                f"reduce returned {name!r} of shape {tuple(value.shape)} for {len(tokens)} prompts;"
                " its first axis must be the prompts, as in what it is given."
            )
    return values


def _names(sites: str | Sequence[str]) -> list[str]:
    """The sites asked for, each once.

    Raises:
        ArchError: there is none, or an unknown one.
    """
    names = list(dict.fromkeys([sites] if isinstance(sites, str) else sites))
    known = (*SITES, *INSIDE, *LOOKS, *ADDED)
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


def _units(model: Model, heads: int | Sequence[int] | None) -> dict[str | None, Units]:
    """Into what a site's last axis is split: how many there are, and which are wanted.

    Raises:
        ArchError: the model has no such head.
    """
    wanted = _numbers("head", heads, model.n_heads)
    shared = model.n_heads // model.n_kv_heads
    return {
        None: (0, []),
        "head": (model.n_heads, wanted),
        "kv_head": (model.n_kv_heads, sorted({head // shared for head in wanted})),
    }


def _wanted(
    model: Model, names: list[str], layers: list[int], units: dict[str | None, Units]
) -> dict[str, Any]:
    """What the job reads, see `nnattr.methods.behaviour.capture_job.Wanted`."""
    places = {
        name: (model.places(name), unit) for name, unit in FORWARD_ORDER.items() if name in names
    }
    heads, paths = units["head"][1], attention_paths(model)
    return {
        "reads": [
            (name, own[layer], *units[unit])
            for layer in layers
            for name, (own, unit) in places.items()
        ],
        "patterns": [heads if layer in layers else [] for layer in range(model.n_layers)]
        if "pattern" in names
        else None,
        "rotated": [
            (name, number, units[unit][1])
            for number, (name, unit) in enumerate(INSIDE.items())
            if name in names
        ],
        "pattern_paths": paths,
        "rotated_paths": [paths[layer] for layer in layers],
        "scores": heads if "attn_scores" in names else None,
        "embed": (model.places("resid_pre")[0], position_table(model))
        if "embed" in names
        else None,
        "results": [_split(model, layer) for layer in layers] if "result" in names else [],
        "heads": units["head"],
        "options": {"logits_to_keep": 1} if model.accepts("logits_to_keep") else {},
    }


def _split(model: Model, layer: int) -> dict[str, Any]:
    """Where a layer's attention falls apart into heads: see `nnattr.maps.parts.Split`."""
    projection = model.places("z")[layer][0]
    post = contribution_norm(model, layer)
    names = {"part": "attn_out", "inner": "z", "projected": "result"}
    return {**names, "projection": projection, "post": post, "factor": 1.0}


def _labelled(
    name: str,
    values: Tensor,
    layers: list[int],
    units: dict[str | None, Units],
    tokens: Tokens,
    at: Tensor,
    present: Tensor,
) -> xr.DataArray:
    """The values of a site with names, and NaN where a prompt has no such position."""
    own = (at - torch.tensor(tokens.padding)[:, None]).double()
    own = own.masked_fill(~present, float("nan")).tolist()
    strings = [
        [row[int(i)] if i >= 0 else "" for i in some]
        for row, some in zip(tokens.strings, own, strict=True)
    ]
    pos = "query_pos" if name in LOOKS else "pos"
    coords: dict[str, Any] = {
        "example": np.arange(len(tokens)),
        "layer": layers,
        "position": (("example", pos), own),
        "token": (("example", pos), np.array(strings, dtype=object)),
    }
    nan = float("nan")
    if name in LOOKS:
        lengths = torch.tensor([len(row) for row in tokens.strings])
        keys = torch.arange(values.shape[-1]) < lengths[:, None]
        known = (present[:, :, None] & keys[:, None])[:, None, None]
        dims = ("example", "layer", "head", pos, "key_pos")
        coords["head"] = units["head"][1]
        return xr.DataArray(values.masked_fill(~known, nan).numpy(), dims=dims, coords=coords)
    if name == "embed":
        del coords["layer"]
        values = values.masked_fill(~present[..., None], nan)
        return xr.DataArray(values.numpy(), dims=("example", pos, "d_model"), coords=coords)
    if name == "result":
        coords["head"] = units["head"][1]
        values = values.masked_fill(~present[:, None, :, None, None], nan)
        dims = ("example", "layer", pos, "head", "d_model")
        return xr.DataArray(values.numpy(), dims=dims, coords=coords)
    unit = {**FORWARD_ORDER, **INSIDE}[name]
    last = ("neuron",) if name == "neuron" else ("d_model",)
    dims = ("example", "layer", pos, *((unit, "d_head") if unit else last))
    if unit:
        coords[unit] = units[unit][1]
    known = present[:, None, :].reshape(len(at), 1, -1, *[1] * (values.ndim - 3))
    return xr.DataArray(values.masked_fill(~known, nan).numpy(), dims=dims, coords=coords)
