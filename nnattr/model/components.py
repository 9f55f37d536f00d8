"""Which activations make up the residual stream, and how they split: names, paths, factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from nnattr.arch.spec import Place
from nnattr.errors import ArchError, TaskError
from nnattr.graph import Part, parse
from nnattr.model import sites
from nnattr.model.model import Model

Unit = Literal["accumulated", "component", "head", "neuron"]


@dataclass(frozen=True)
class Plan:
    """What a job is to read, in plain values.

    Attributes:
        reads: (name, path, side) in forward order; the last is the final residual stream, if it
            is of the whole model.
        parts: (name, factor) of what is weighed whole.
        splits: of every layer whose attention or MLP is split, what `decompose.split` needs.
        added: vectors that edits add to the stream, see `nnattr.maps.parts.with_added`.
    """

    reads: tuple[tuple[str, str, str], ...]
    parts: tuple[tuple[str, float], ...]
    splits: tuple[dict[str, Any], ...]
    added: tuple[tuple[str, int, Tensor, bool], ...] = ()


def points(model: Model) -> Plan:
    """The residual stream itself: before each layer, between attention and MLP, and at the end."""
    reads = []
    for layer in range(model.n_layers):
        reads.append(_read(Part("pre", layer), sites.place(model.spec, "resid_pre", layer)))
        if not model.spec.parallel:
            reads.append(_read(Part("mid", layer), sites.place(model.spec, "resid_mid", layer)))
    reads.append(_final(model))
    return Plan(tuple(reads), tuple((name, 1.0) for name, *_ in reads), ())


def components(
    model: Model, unit: Unit, layers: Sequence[int], *, before: int | None = None
) -> Plan:
    """What is added up to the residual stream that enters layer ``before``, or to the final one.

    ``layers`` are split into heads or neurons.

    Raises:
        ArchError: an edit of the model replaces the residual stream itself.
    """
    _require_sums(model)
    added = _added(model, model.n_layers if before is None else before)
    spec, config = model.spec, model.config
    scale = 1.0 if spec.residual_scale is None else getattr(config, spec.residual_scale)
    table = stream_positions(model)
    reads = [] if table is None else [("pos_embed", table, "output")]
    reads.append(_read(Part("embed"), sites.place(spec, "resid_pre", 0)))
    parts = [("embed", 1.0), *([] if table is None else [("pos_embed", 1.0)])]
    splits = []
    for layer in range(model.n_layers if before is None else before):
        parts += _steered(added, layer)
        for kind in ("attn", "mlp") if spec.mlp_out is not None else ("attn",):
            name = Part(kind, layer).label
            split = layer in layers and kind == ("attn" if unit == "head" else "mlp")
            path, side, _ = sites.place(spec, f"{kind}_out", layer)  # type: ignore[arg-type]
            if split:
                inside = _projection(model, unit, layer)
                reads += [(f"{name} in", inside, "input"), (f"{name} out", inside, "output")]
                splits.append(
                    {
                        "part": name,
                        "inner": f"{name} in",
                        "projected": f"{name} out",
                        "projection": inside,
                        "post": path if _post_normed(model, path, inside) else None,
                        "factor": scale,
                    }
                )
            reads.append((name, path, side))
            parts.append((name, scale))
    if before is None:
        reads.append(_final(model))
    else:
        parts += _steered(added, before)
    return Plan(tuple(reads), tuple(parts), tuple(splits), tuple(added))


def _added(model: Model, before: int) -> list[tuple[str, int, Tensor, bool]]:
    """The vectors that edits add to the residual stream in front of layer ``before``."""
    found = []
    for number, edit in enumerate(model.edits):
        if edit.vector is None or not edit.sites[0].startswith("resid"):
            continue
        layer, *_ = edit.places[0]
        first = edit.sites[0] == "resid_pre" and edit.given.layer == 0
        if first or layer < before:
            found.append((Part("steer", edit.given.layer).label, number, edit.vector, first))
    return found


def _steered(added: Sequence[tuple[str, int, Tensor, bool]], layer: int) -> list[tuple[str, float]]:
    """The component of the vectors that are added at a layer, if there is one."""
    name = Part("steer", layer).label
    return [(name, 1.0)] if any(one == name for one, *_ in added) else []


def _require_sums(model: Model) -> None:
    for edit in model.edits:
        if edit.vector is None and any(site.startswith("resid") for site in edit.sites):
            raise ArchError(
                f"With {edit.said}, the residual stream of {model.name} is not the sum of what its "
                "parts write; ask activation_patching, or edit attn_out, mlp_out or heads instead."
            )


def bias(split: str) -> str:
    """The component that a split attention or MLP layer has beside its heads or neurons."""
    part = parse(split)
    return Part(f"{part.kind} bias", part.layer).label


def chosen_layers(model: Model, unit: Unit, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers whose heads or neurons are wanted, in order.

    Raises:
        TaskError: layers were given for a unit that has none.
        ArchError: the model has no such layer.
    """
    if unit not in ("head", "neuron"):
        if layers is not None:
            raise TaskError(
                f"layers is {layers!r}, and unit={unit!r} covers the whole model; choose layers "
                "with unit='head' or 'neuron', or a part of the result with scores.sel(...)."
            )
        return ()
    sites.place(model.spec, "z" if unit == "head" else "neuron", 0)  # it must be there
    wanted = range(model.n_layers) if layers is None else sorted(set(layers))
    unknown = [layer for layer in wanted if layer not in range(model.n_layers)]
    if unknown or not len(wanted):
        raise ArchError(
            f"layers is {layers!r}; expected some of 0 to {model.n_layers - 1}, the layers of "
            f"{model.name}."
        )
    return tuple(wanted)


def position_table(model: Model) -> str | None:
    """The path of a table of position embeddings, wherever it is added, or None."""
    return model.spec.qk_positions or stream_positions(model)


def required_position_table(model: Model) -> str:
    """`position_table`, which is wanted.

    Raises:
        ArchError: the model has none.
    """
    table = position_table(model)
    if table is None:
        raise ArchError(
            f"{model.name} has no learned position embeddings to ablate (rotary, ALiBi or none)."
        )
    return table


def stream_positions(model: Model) -> str | None:
    """The path of a table of position embeddings that is added to the token embedding, or None.

    It stands beside the token embedding: a vision tower has a table of its own, for its patches.
    """
    spec, module = model.spec, model.module
    if spec.qk_positions is not None:
        return None
    width = getattr(module.get_submodule(spec.embed), "embedding_dim", None)
    around = spec.embed.rpartition(".")[0]
    root = f"{around}." if around else ""
    found = [
        f"{root}{name}"
        for name, part in module.get_submodule(around).named_children()
        if getattr(part, "embedding_dim", 0) == width and f"{root}{name}" != spec.embed
    ]
    return found[0] if len(found) == 1 else None


def logit_constants(model: Model) -> tuple[float, float | None]:
    """What the unembedding's output is multiplied by, and the cap of the logits if it has one."""
    spec, config = model.spec, model.config
    scale = 1.0 if spec.logit_scale is None else getattr(config, spec.logit_scale)
    divisor = 1.0 if spec.logit_divisor is None else getattr(config, spec.logit_divisor)
    cap = None if spec.logit_softcap is None else getattr(config, spec.logit_softcap)
    return float(scale / divisor), cap


def _projection(model: Model, unit: Unit, layer: int) -> str:
    """The path of the projection that heads or neurons enter."""
    return sites.place(model.spec, "z" if unit == "head" else "neuron", layer).path


def contribution_norm(model: Model, layer: int) -> str | None:
    """The path of the norm behind attention's output projection, in families that have one."""
    path = sites.place(model.spec, "attn_out", layer).path
    return path if _post_normed(model, path, _projection(model, "head", layer)) else None


def _post_normed(model: Model, place: str, projection: str) -> bool:
    """Whether a contribution is read behind a norm, which lies outside the projection's module."""
    return not (projection == place or projection.startswith(f"{place}."))


def _final(model: Model) -> tuple[str, str, str]:
    return _read(Part("final"), sites.place(model.spec, "resid_post", model.n_layers - 1))


def _read(part: Part, place: Place) -> tuple[str, str, str]:
    return part.label, place.path, place.side
