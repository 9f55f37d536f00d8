"""Where the parts of a decoder-only transformer are: a frozen value per model family.

A spec names modules by their path in the raw Hugging Face model and says on which side of a
module a site is found. It holds no weights and runs nothing; ``nnattr.model.verify`` proves it on
a live model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from nnattr.errors import ArchError

#: How a place is read and written.
#:
#: ``input``   what enters the module; writing replaces it for this module alone.
#: ``output``  what leaves the module (the first part, if that is a tuple).
#: ``stream``  what enters the module *and goes around it*: the residual stream in front of a norm.
#:             Written in place, so that the path around the module sees the new value too.
#: ``copied``  an output that the model later overwrites in place (Falcon adds attention's output
#:             into the MLP's). Read as a copy that the model then goes on from.
Side = Literal["input", "output", "stream", "copied"]


#: How q, k and v share the last axis of what a module returns.
#:
#: ``separate``  each has a module of its own.
#: ``blocks``    side by side: all queries, all keys, all values.
#: ``groups``    for each key/value head its queries, its key, its value.
Packing = Literal["separate", "blocks", "groups"]


class Place(NamedTuple):
    """One side of one module: where a tensor can be read and written.

    ``part`` (groups, first, last) says which part of the last axis is meant: cut the axis into
    that many groups and take the columns from first to last of each. None is all of it.
    """

    path: str
    side: Side
    part: tuple[int, int, int] | None = None


class QKV(NamedTuple):
    """The modules in a layer whose outputs hold the queries, keys and values of all heads.

    Attributes:
        q, k, v: paths of the projections; the same path where one module makes them all.
        packing: how they share that module's output.
        norms: the norms of q and k that run over all heads together (OLMo 2), or None. Only
            behind them do the heads stand apart, so there q and k are read and written.
    """

    q: str
    k: str
    v: str
    packing: Packing = "separate"
    norms: tuple[str, str] | None = None


@dataclass(frozen=True)
class ArchSpec:
    """The map of one model family.

    Paths of ``layers``, ``embed``, ``final_norm``, ``unembed`` and ``qk_positions`` start at the
    model; all others start at one decoder layer.

    Attributes:
        layers: the list of decoder layers, e.g. ``"transformer.h"``.
        embed: the token embedding.
        final_norm: the norm before the unembedding, or None where there is none.
        unembed: the unembedding, whose output (scaled and capped) is the logits.
        attn_proj: the attention output projection in a layer; its *input* is z, all heads side by
            side. (Its output mixes the heads: a slice of it belongs to no head.)
        attn_out: where attention's contribution to the residual stream is found, after a
            post-norm if the family has one.
        mlp_out: the same for the MLP (or mixture of experts); None where layers are attention
            alone, and then ``resid_mid`` is None too.
        resid_mid: the residual stream between attention and MLP; None where both read the same
            residual stream (parallel blocks).
        qkv: the projections to queries, keys and values; None where they are not of this kind.
        mlp_proj: the MLP's output projection in a layer; its *input* is the neurons. None for
            mixtures of experts.
        qk_positions: the table of position embeddings that is added to what queries and keys are
            made of, behind the norm and in every layer, and not to the residual stream
            (shortformer); None where positions come in another way. Starts at the model.
        residual_scale: the config attribute that multiplies each contribution before it is added
            (Granite), or None.
        logit_scale: the config attribute that multiplies (Cohere) the logits, or None.
        logit_divisor: the config attribute that divides the logits (Granite), or None.
        logit_softcap: the config attribute with the final soft-cap (Gemma 2), or None.
    """

    layers: str
    embed: str
    final_norm: str | None
    unembed: str
    attn_proj: str
    attn_out: Place
    mlp_out: Place | None
    resid_mid: Place | None
    qkv: QKV | None = None
    mlp_proj: str | None = None
    qk_positions: str | None = None
    residual_scale: str | None = None
    logit_scale: str | None = None
    logit_divisor: str | None = None
    logit_softcap: str | None = None

    def __post_init__(self) -> None:
        if self.mlp_out is None and (self.resid_mid, self.mlp_proj) != (None, None):
            raise ArchError(
                "A spec without mlp_out is of layers that are attention alone: resid_mid and "
                "mlp_proj have to be None as well."
            )

    @property
    def parallel(self) -> bool:
        """Whether nothing reads what attention has just written: no MLP, or one beside it."""
        return self.resid_mid is None


def missing(spec: ArchSpec, module: Any) -> list[str]:
    """The paths of ``spec`` that ``module`` does not have."""
    names = {name for name, _ in module.named_modules(remove_duplicate=False)}
    layers = [name for name in names if name.rpartition(".")[0] == spec.layers]
    places = (spec.attn_out, spec.mlp_out, spec.resid_mid)
    inside = [spec.attn_proj, *(place.path for place in places if place is not None)]
    inside += [spec.mlp_proj] if spec.mlp_proj is not None else []
    inside += [*spec.qkv[:3], *(spec.qkv.norms or ())] if spec.qkv is not None else []
    wanted = [spec.layers, spec.embed, spec.unembed]
    wanted += [path for path in (spec.final_norm, spec.qk_positions) if path is not None]
    wanted += [f"{layer}.{path}" for layer in sorted(layers) for path in inside]
    return [path for path in wanted if path not in names]
