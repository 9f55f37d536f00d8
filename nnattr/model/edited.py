"""A model in whose every run some parts are ablated, or a vector is added.

Methods take it like any model: ``generate``, ``logit_lens`` and ``attention_patterns`` show what
it does then, the patching methods which of its parts still matter. Both runs of a pair are run
under the edits.

An ablated part has the same value in both runs, so patching it alone changes nothing; parts that
only read it do what they do without it. (Vectors that steer: Turner et al. 2023, arXiv:2308.10248;
ablations: see `nnattr.ablate`.)
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nnattr.arguments import checked
from nnattr.errors import ArchError, TaskError
from nnattr.graph import Part
from nnattr.model.components import required_position_table
from nnattr.model.edit_kinds import Ablation, Given, Steering, Swap
from nnattr.model.edits import Edit
from nnattr.model.model import Model
from nnattr.model.prompts import Prompts, texts_and_tokens
from nnattr.model.sites import FORWARD_ORDER, SiteName
from nnattr.runs.portions import TOKENS_PER_FORWARD
from nnattr.tasks import Task
from nnattr.tasks.positions import Positions
from nnattr.tokens import Tokens

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


@checked
def edited(model: Model, edits: Given | Sequence[Given]) -> Model:
    """The model under edits, in this order; the one given stays as it is, and shares its weights.

    Args:
        model: as `nnattr.load` gives it; edits of an edited model come after those it has.
        edits: one or several, from `nnattr.edit.ablate`, `nnattr.edit.replace` and
            `nnattr.edit.steer`.

    Raises:
        ArchError: a part or site that the model does not have.
        TaskError: no edits, a vector of another width, a dataset that does not fit the model, or
            an edit before it.

    Cost: nothing now; each job then takes the values it needs, a forward pass over their dataset.
    """
    listed = [edits] if isinstance(edits, Given) else list(edits)
    if not listed:
        raise TaskError("No edits were given; expected one or more of nnattr.edit.")
    for one in listed:
        made = _steering(model, one) if isinstance(one, Steering) else _replacing(model, one)
        model = replace(model, edits=(*model.edits, made))
    return model


def _replacing(model: Model, given: Ablation | Swap) -> Edit:
    """An ablation, or a swap, with its places in this model."""
    if isinstance(given, Ablation) and given.of_positions:
        return _without_positions(model, given)
    keep = isinstance(given, Ablation) and given.keep
    chosen: dict[SiteName, list[Part]] = defaultdict(list)
    for part in given.parts:
        chosen[_site(part)].append(part)
    in_order = sorted(chosen, key=list(FORWARD_ORDER).index)
    masks = {site: _mask(model, site, chosen[site]) ^ keep for site in in_order}
    places = [
        _place(model, site, layer, masks[site][layer])
        for layer in range(model.n_layers)
        for site in in_order
        if masks[site][layer].any()
    ]
    names = "all but " * keep + ", ".join(part.name for part in given.parts)
    values = _swapped(model, given) if isinstance(given, Swap) else _filled(model, given)
    said = f"{names} {values.pop('said')}{_at(given.positions)}"
    return Edit(
        given=given,
        said=said,
        sites=tuple(in_order),
        places=tuple(places),
        because=f"{said}, where patches add up" if set(chosen) & set(SUMS) else "",
        positions=given.positions,
        **values,
    )


def _without_positions(model: Model, given: Ablation) -> Edit:
    """An ablation of what a table of positions gives, wherever that is added."""
    path = required_position_table(model)
    entries = torch.ones(model.module.get_submodule(path).embedding_dim, dtype=torch.bool)
    values = _filled(model, given)
    return Edit(
        given=given,
        said=f"pos_embed {values.pop('said')}",
        sites=("pos_embed",),
        # behind all layers: it is asked in every pass, whatever layers that skips
        places=((model.n_layers, (path, "output", None), False, entries),),
        **values,
    )


def _filled(model: Model, given: Ablation) -> dict[str, Any]:
    """Where an ablation's values come from, as fields of `Edit`, and in words."""
    kind, dataset = given.replacement, given.dataset
    if dataset is None:
        return {"said": f"ablated ({kind})"}
    tokens = texts_and_tokens(model, dataset, what="dataset", alone=kind != "mean")[1]
    lengths = {len(row) for row in tokens.strings}
    if kind == "mean_positional" and len(lengths) > 1:
        raise TaskError(
            f"'mean_positional' takes means position by position, and the dataset has prompts of "
            f"{min(lengths)} to {max(lengths)} tokens. Use prompts of one length, or 'mean'."
        )
    drawn = f", seed {given.seed}" if kind == "resample" else ""
    return {
        "said": f"ablated ({kind} of {_named(dataset, tokens)}{drawn})",
        "by": {"mean": "", "mean_positional": "position", "resample": "prompt"}[kind],
        "seed": given.seed if kind == "resample" else None,
        **_from(model, dataset, tokens),
    }


def _swapped(model: Model, given: Swap) -> dict[str, Any]:
    """The same of a swap."""
    run = "clean" if given.direction == "denoising" else "corrupted"
    tokens = texts_and_tokens(model, given.task, run, alone=True)[1]
    return {
        "said": f"as in the {run} run of {_named(given.task, tokens)}",
        "by": "prompt",
        **_from(model, given.task, tokens),
    }


def _from(model: Model, given: Prompts, tokens: Tokens) -> dict[str, Any]:
    """The prompts that values come from, run under the edits before."""
    return {
        "dataset": model.batch(tokens, given),
        "rows": max(1, TOKENS_PER_FORWARD // tokens.ids.shape[1]),
        "prompts": tokens,
    }


def _named(given: Prompts, tokens: Tokens) -> str:
    """Prompts in words: how many, of which task, and a digest that tells them from others."""
    many = f"{len(tokens)} prompt{'s' * (len(tokens) > 1)}"
    if isinstance(given, Task):
        return f"{many} of {given.name.partition('(')[0]} {given.hash[:8]}"
    return f"{many} {_digest(str(tokens.rows).encode())}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def _at(positions: Positions | None) -> str:
    """Positions in words; nothing for all."""
    if positions is None:
        return ""
    if isinstance(positions, str):
        return f" at the {'last position' if positions == 'last' else f'span {positions}'}"
    many = positions if isinstance(positions, Sequence) else [positions]
    return f" at position{'s' * (len(many) > 1)} {', '.join(map(str, many))}"


def _steering(model: Model, given: Steering) -> Edit:
    """A vector, with its place in this model."""
    count, size = _split(model, given.site)
    if len(given.vector) != count * size:
        raise TaskError(
            f"vector has {len(given.vector)} numbers; {given.site!r} of {model.name} has "
            f"{count * size}."
        )
    _require_layer(model, given.layer, f"layer {given.layer}")
    vector = given.vector * given.scale
    which = f"a vector {_digest(vector.numpy().tobytes())} of length {float(vector.norm()):.4g}"
    return Edit(
        given=given,
        said=f"{which} added to {given.site} of layer {given.layer}{_at(given.positions)}",
        sites=(given.site,),
        places=(_place(model, given.site, given.layer, None),),
        vector=vector,
        positions=given.positions,
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
