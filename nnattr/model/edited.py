"""A model in whose every run some parts are ablated, or a vector is added.

Methods take it like any model: ``generate``, ``logit_lens`` and ``attention_patterns`` show what
it does then, the patching methods which of its parts still matter. Both runs of a pair are run
under the edits.

An ablated part has the same value in both runs, so patching it alone changes nothing; parts that
only read it do what they do without it. (Vectors that steer: Turner et al. 2023, arXiv:2308.10248;
ablations: see `nnattr.ablate`.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from nnattr.arguments import Natural, checked
from nnattr.errors import ArchError, TaskError
from nnattr.graph import Part, parse
from nnattr.model.edits import Edit
from nnattr.model.model import Model
from nnattr.model.prompts import Prompts, texts_and_tokens
from nnattr.model.sites import FORWARD_ORDER, SiteName
from nnattr.runs.portions import TOKENS_PER_FORWARD

#: Where a part is read and written, by its kind; what has a port, by that.
SITE_OF: dict[str, SiteName] = {
    "head": "z",
    "attn": "attn_out",
    "neuron": "neuron",
    "mlp": "mlp_out",
    "pre": "resid_pre",
    "mid": "resid_mid",
}
#: Sites behind which a change of attention or of neurons is added: once one of these is replaced,
#: what a patch adds there is lost, and only a whole pass knows.
SUMS = ("attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post")


@dataclass(frozen=True)
class Ablation:
    """Parts replaced in every run; made by `ablate`."""

    parts: tuple[Part, ...]
    keep: bool
    replacement: Literal["zero", "mean"]
    dataset: Prompts | None


@dataclass(frozen=True, eq=False)
class Steering:
    """A vector added in every run; made by `steer`."""

    site: SiteName
    layer: int
    vector: Tensor
    scale: float


Given: TypeAlias = Ablation | Steering
#: A part: its name, a (layer, head), or a `Part`.
PartName: TypeAlias = str | tuple[int, int] | Part


@checked
def ablate(
    parts: PartName | Sequence[PartName],
    replacement: Literal["zero", "mean"] = "zero",
    *,
    dataset: Prompts | None = None,
    keep: bool = False,
) -> Ablation:
    """Parts of the model that no longer say anything about the prompt, at every position.

    Args:
        parts: one or several: ``(layer, head)`` or ``"L1H0"``, ``"M3"``, ``"L1 attn"``, ``"L1N5"``,
            ``"L1H0.q"``, ``"L1KV0.k"``, ``"L1 pre"``.
        replacement: ``"zero"``, or ``"mean"`` over all tokens of the dataset.
        dataset: prompts for the mean, as texts, a task or tokens.
        keep: ablate every part of these kinds but these: is this set enough?

    Raises:
        TaskError: no parts, or a mean without a dataset, or the other way round.
        ArchError: something that is not the name of a part.
    """
    one = isinstance(parts, str | Part) or (
        len(parts) == 2 and all(isinstance(part, int) for part in parts)
    )
    found = tuple(parse(part) for part in ([parts] if one else parts))  # type: ignore[list-item]
    if not found:
        raise TaskError("No parts were given to ablate; name at least one.")
    if (replacement == "mean") != (dataset is not None):
        raise TaskError(
            f"replacement is {replacement!r} and dataset is {'' if dataset is None else 'not '}"
            "None; a mean needs the prompts that it is taken over, and a zero needs none."
        )
    return Ablation(found, keep, replacement, dataset)


@checked
def steer(
    layer: Natural,
    vector: Tensor | np.ndarray,
    *,
    site: SiteName = "resid_pre",
    scale: float = 1.0,
) -> Steering:
    """A vector that is added to an activation, at every position.

    Args:
        layer: of which layer.
        vector: what is added [width of the site]; of a difference of two means, for example.
        site: where; ``"resid_pre"`` is the residual stream that enters the layer.
        scale: how many times.

    Raises:
        TaskError: a vector that is not finite numbers in one row, or no longer so when scaled.
    """
    if isinstance(vector, np.ndarray) and vector.dtype.kind == "f":
        vector = torch.from_numpy(vector.astype(np.float64))  # a copy: torch takes no view reversed
    if not isinstance(vector, Tensor) or vector.ndim != 1 or not vector.is_floating_point():
        raise TaskError(
            f"vector has the shape {tuple(vector.shape)} and dtype {vector.dtype}; expected finite "
            "floating-point numbers [width of the site]."
        )
    vector = vector.detach().float().cpu().clone()
    if not (vector * scale).isfinite().all():
        raise TaskError(f"vector times scale {scale} is not finite in float32; check both.")
    return Steering(site, layer, vector, scale)


@checked
def edited(model: Model, edits: Ablation | Steering | Sequence[Ablation | Steering]) -> Model:
    """The model under edits, in this order; the one given stays as it is, and shares its weights.

    Args:
        model: as `nnattr.load` gives it; edits of an edited model come after those it has.
        edits: one or several, from `nnattr.edit.ablate` and `nnattr.edit.steer`.

    Raises:
        ArchError: a part or site that the model does not have.
        TaskError: no edits, a vector of another width, a dataset that does not fit the model.

    Cost: nothing now; each job then takes the means it needs, a forward pass over their dataset.
    """
    listed = [edits] if isinstance(edits, Ablation | Steering) else list(edits)
    if not listed:
        raise TaskError("No edits were given; expected one or more of nnattr.edit.")
    ready = (_ablation if isinstance(one, Ablation) else _steering for one in listed)
    made = [make(model, one) for make, one in zip(ready, listed, strict=True)]  # type: ignore[arg-type]
    return replace(model, edits=(*model.edits, *made))


def _ablation(model: Model, given: Ablation) -> Edit:
    """An ablation, with its places in this model."""
    chosen: dict[SiteName, list[Part]] = defaultdict(list)
    for part in given.parts:
        chosen[_site(part)].append(part)
    in_order = sorted(chosen, key=list(FORWARD_ORDER).index)
    masks = {site: _mask(model, site, chosen[site]) ^ given.keep for site in in_order}
    places = [
        _place(model, site, layer, masks[site][layer])
        for layer in range(model.n_layers)
        for site in in_order
        if masks[site][layer].any()
    ]
    names = ", ".join(part.name for part in given.parts)
    said = f"{'all but ' * given.keep}{names} ablated ({given.replacement})"
    tokens = None
    if given.dataset is not None:
        tokens = texts_and_tokens(model, given.dataset, what="dataset")[1]
    return Edit(
        said=said,
        sites=tuple(in_order),
        places=tuple(places),
        vector=None,
        dataset={} if tokens is None else tokens.tensors,
        rows=1 if tokens is None else max(1, TOKENS_PER_FORWARD // tokens.ids.shape[1]),
        because=f"{said}, where patches add up" if set(chosen) & set(SUMS) else "",
    )


def _steering(model: Model, given: Steering) -> Edit:
    """A vector, with its place in this model."""
    count, size = _split(model, given.site)
    if len(given.vector) != count * size:
        raise TaskError(
            f"vector has {len(given.vector)} numbers; {given.site!r} of {model.name} has "
            f"{count * size}."
        )
    _require_layer(model, given.layer, f"layer {given.layer}")
    norm = float(given.vector.norm() * abs(given.scale))
    return Edit(
        said=f"a vector of length {norm:.4g} added to {given.site} of layer {given.layer}",
        sites=(given.site,),
        places=(_place(model, given.site, given.layer, None),),
        vector=given.vector * given.scale,
        dataset={},
        rows=1,
        because="",
    )


def _site(part: Part) -> SiteName:
    """Where a part is read and written.

    Raises:
        TaskError: it is a part that has no such place.
    """
    site: Any = part.port or SITE_OF.get(part.kind)
    if site is None:
        kinds = "heads, their q, k and v, neurons, attention layers, MLPs and residual streams"
        raise TaskError(f"{part.name} cannot be ablated by an edit; {kinds} can.")
    return site


def _mask(model: Model, site: SiteName, parts: Sequence[Part]) -> Tensor:
    """Which entries of the site belong to these parts [layer, width], bool.

    Raises:
        ArchError: the model does not have one of them.
    """
    count, size = _split(model, site)
    found = torch.zeros(model.n_layers, count, dtype=torch.bool)
    for part in parts:
        _require_layer(model, part.layer or 0, part.name)
        if site in ("k", "v") and part.kind != "kv" and model.n_kv_heads != model.n_heads:
            shared = part.number * model.n_kv_heads // model.n_heads  # type: ignore[operator]
            raise ArchError(
                f"{part.name} shares its keys and values with other heads of {model.name}; "
                f"name L{part.layer}KV{shared}.{site}."
            )
        if (part.number or 0) >= count:
            raise ArchError(f"{model.name} has no {part.name}: a layer has {count}, from 0.")
        found[part.layer, part.number or 0] = True
    return found.repeat_interleave(size, 1)


def _require_layer(model: Model, layer: int, what: str) -> None:
    if layer >= model.n_layers:
        raise ArchError(
            f"{model.name} has no {what}: it has {model.n_layers} layers, counted from 0."
        )


def _split(model: Model, site: SiteName) -> tuple[int, int]:
    """Into how many parts a site is split, and the width of each."""
    if site in ("z", "q"):
        return model.n_heads, model.d_head
    if site in ("k", "v"):
        return model.n_kv_heads, model.d_head
    return (model.d_mlp, 1) if site == "neuron" else (1, model.config.hidden_size)


def _place(
    model: Model, site: SiteName, layer: int, mask: Tensor | None
) -> tuple[int, tuple[Any, ...], bool, Tensor | None]:
    """A place of an edit: see `Edit.places`.

    What enters a layer is what leaves the one before: it is changed there, so that both are it.
    """
    if site == "resid_pre" and layer:
        site, layer = "resid_post", layer - 1
    where = model.places(site)[layer]
    attention = f"{model.spec.layers}.{layer}.{model.spec.attn_proj.rpartition('.')[0]}"
    return layer, where, f"{where[0]}.".startswith(f"{attention}."), mask
