"""Find the parts of a decoder-only transformer in its module tree, whatever its family.

The tree says which modules there are and how wide they are, which fixes most of a spec: the list
of layers, in each the projection that takes heads x d_head to d_model, the embedding and the
unembedding. It does not say in which order a layer's parts are added up, so `candidates` gives
every arrangement that the parts allow, likely ones first, and `nnattr.model.verify.proven` keeps
the first that the live model confirms. Works on a model without weights (meta device).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, permutations, product
from typing import Any

from nnattr.arch.modules import is_norm
from nnattr.arch.spec import QKV, ArchSpec, Place
from nnattr.errors import ArchError

#: How many arrangements are offered at most.
LIMIT = 64
#: A module of this name hides behind nnsight's own attribute and cannot be addressed.
HIDDEN = {"input", "inputs", "output", "source", "skip"}

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
CROSS = re.compile(r"cross|encoder_?attn|encdec|inter_attention", re.IGNORECASE)
LINEAR = re.compile(r"linear_?att|mamba|delta|recurrent|lightning|ssm|conv|kda", re.IGNORECASE)
MLP = re.compile(r"mlp|ffn|ff\b|feed_?forward|moe|experts|fc2|block_sparse", re.IGNORECASE)
OUTWARD = re.compile(r"^(o|out|output|c|wo|dense|proj|resid)(_|$|\d)|^wo$", re.IGNORECASE)
INWARD = re.compile(r"^(w?[qkv]|query|key|value|qkv|q_|k_|v_|gate|g_|in_)", re.IGNORECASE)
EXPERTS = re.compile(r"expert|moe|router", re.IGNORECASE)
FUSED = re.compile(r"qkv|query_key_value|c_attn|in_proj|pack", re.IGNORECASE)
#: Norms of queries and keys; they matter here if they run over all heads together.
NORMS = ("q_norm", "k_norm")
#: Names of the three projections where each has a module.
SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("wq", "wk", "wv"),
    ("q", "k", "v"),
)

#: Configuration attributes that scale or cap, in the order in which they are looked for.
RESIDUAL_SCALES = ("residual_multiplier",)
LOGIT_SCALES = ("logit_scale",)
LOGIT_DIVISORS = ("logits_scaling",)
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")

EXAMPLE = (
    "If it does have one, say where: nnattr.load(..., spec=ArchSpec(layers='model.layers', "
    "embed='model.embed_tokens', final_norm='model.norm', unembed='lm_head', "
    "attn_proj='self_attn.o_proj', attn_out=Place('self_attn.o_proj', 'output'), "
    "mlp_out=Place('mlp', 'output'), resid_mid=Place('post_attention_layernorm', 'stream')))."
)


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model, by path; those of a layer are relative to it.

    Attributes:
        layers, embed, unembed: as in `ArchSpec`.
        final_norms: possible norms before the unembedding, likely first; None is always possible.
        projections: possible attention output projections, likely first.
        qkv: for each projection the queries, keys and values beside it, where they are found.
        mlp_proj: the MLP's output projection, or None.
        norms: the norms of a layer, in the order of definition.
        mlps: modules whose output may be the MLP's contribution, likely first.
    """

    layers: str
    embed: str
    unembed: str
    final_norms: tuple[str | None, ...]
    projections: tuple[str, ...]
    qkv: dict[str, QKV | None]
    mlp_proj: str | None
    norms: tuple[str, ...]
    mlps: tuple[str, ...]


def discover(module: Any) -> ArchSpec:
    """The likeliest structure of ``module``; to be proven before it is used.

    Raises:
        ArchError: the module tree lacks a part that every spec needs.
    """
    return next(candidates(module))


def candidates(module: Any) -> Iterator[ArchSpec]:
    """The structures that the module tree of ``module`` allows, likely ones first.

    Args:
        module: a Hugging Face causal language model, with or without weights.

    Raises:
        ArchError: the module tree lacks a part that every spec needs: there is no list of layers,
            or not every layer has an attention output projection.
    """
    config = module.config.get_text_config()
    found = dissect(module, config)
    constants = {
        "residual_scale": _constant(config, RESIDUAL_SCALES),
        "logit_scale": _constant(config, LOGIT_SCALES),
        "logit_divisor": _constant(config, LOGIT_DIVISORS),
        "logit_softcap": _constant(config, SOFTCAPS),
    }
    specs = (
        ArchSpec(
            layers=found.layers,
            embed=found.embed,
            final_norm=final_norm,
            unembed=found.unembed,
            attn_proj=projection,
            attn_out=attn_out,
            mlp_out=mlp_out,
            resid_mid=resid_mid,
            qkv=found.qkv[projection],
            mlp_proj=found.mlp_proj,
            **constants,
        )
        for projection, final_norm in product(found.projections, found.final_norms)
        for attn_out, mlp_out, resid_mid in _arrangements(found, projection)
    )
    return islice(specs, LIMIT)


def dissect(module: Any, config: Any) -> Anatomy:
    """The parts of ``module``.

    Raises:
        ArchError: a part that every spec needs is not there.
    """
    name = f"{type(module).__name__} (model_type {config.model_type!r})"
    n_layers, n_heads, d_model = _sizes(name, config)
    paths = {id(part): path for path, part in module.named_modules()}
    embed, unembed = (paths.get(id(part)) for part in _embeddings(module))
    if embed is None or unembed is None:
        lacking = "token embedding" if embed is None else "unembedding"
        raise ArchError(f"{name} has no {lacking} that Hugging Face knows of. {EXAMPLE}")
    lists = _lists(module, embed, n_layers)
    layers, first, projections = _layer_list(name, lists, n_heads, d_model)
    every = [{path for path, _ in layer.named_modules()} for layer in module.get_submodule(layers)]
    shared = set.intersection(*every)  # some models are dense first and then mixtures of experts
    return Anatomy(
        layers=layers,
        embed=embed,
        unembed=unembed,
        final_norms=_final_norms(module, layers),
        projections=projections,
        qkv={path: _qkv(first, path, shared) for path in projections},
        mlp_proj=_mlp_proj(first, projections[0], d_model, shared),
        norms=tuple(key for key, part in first.named_children() if is_norm(key, part)),
        mlps=_mlps(first, projections[0].partition(".")[0], d_model),
    )


def _embeddings(module: Any) -> tuple[Any, Any]:
    """The token embedding and the unembedding, as far as a module says which they are."""
    found = []
    for ask in ("get_input_embeddings", "get_output_embeddings"):
        try:
            found.append(getattr(module, ask)())
        except (AttributeError, NotImplementedError):
            found.append(None)
    return found[0], found[1]


def _sizes(name: str, config: Any) -> tuple[int, int, int]:
    """Layers, heads and d_model; refuses a model that has no attention, or not in every layer."""
    keys = ("num_hidden_layers", "num_attention_heads", "hidden_size")
    sizes: list[Any] = [getattr(config, key, None) for key in keys]
    if not all(isinstance(size, int) for size in sizes):
        stated = ", ".join(f"{key}={size!r}" for key, size in zip(keys, sizes, strict=True))
        raise ArchError(
            f"{name} has no attention heads: its configuration gives {stated}, and nnattr needs "
            "integers. Models without attention (Mamba, RWKV) cannot be analysed by head."
        )
    kinds = getattr(config, "layer_types", None) or ()
    other = sorted({kind for kind in kinds if LINEAR.search(kind)})
    if other:
        raise ArchError(
            f"{name} is a hybrid: its configuration has layers of type {', '.join(other)}. nnattr "
            "analyses models in which every layer has attention heads."
        )
    return sizes[0], sizes[1], sizes[2]


def _lists(module: Any, embed: str, n_layers: int) -> list[tuple[str, Any]]:
    """The lists that may hold the decoder layers: those nearest to the token embedding.

    A vision tower has layers too, and may have as many. From lists of another length than the
    configuration says (layers were cut) the longest is taken.
    """
    found = [
        (path, part)
        for path, part in module.named_modules()
        if type(part).__name__ in ("ModuleList", "Sequential") and len(part)
    ]
    around = embed
    while around:
        around = around.rpartition(".")[0]
        root = f"{around}." if around else ""
        near = [(path, part) for path, part in found if path.startswith(root)]
        fitting = [(path, part) for path, part in near if len(part) == n_layers]
        if fitting:
            return fitting
    return sorted(found, key=lambda one: len(one[1]))


def _layer_list(
    name: str, lists: list[tuple[str, Any]], n_heads: int, d_model: int
) -> tuple[str, Any, tuple[str, ...]]:
    """The path of the decoder layers, the first of them, the projections that all have."""
    lacking: list[int] = []
    for path, layers in reversed(lists):  # in an encoder-decoder the decoder comes last
        each = [_projections(layer, n_heads, d_model) for layer in layers]
        shared = tuple(key for key in each[0] if all(key in others for others in each))
        usable = tuple(key for key in shared if not HIDDEN.intersection(key.split(".")))
        if usable:
            return path, layers[0], usable
        if shared:
            raise ArchError(
                f"{name} has its attention output projection at {shared[0]!r} of a layer: nnsight "
                "cannot address a module of that name (it is nnsight's own word)."
            )
        without = [i for i, keys in enumerate(each) if not keys]
        lacking = without if len(without) < len(each) else lacking
    if lacking:
        raise ArchError(
            f"{name} is a hybrid: layers {lacking} have no attention output projection that takes "
            f"{n_heads} heads to d_model {d_model}, the others do. nnattr analyses models in which "
            "every layer has attention heads."
        )
    raise ArchError(
        f"{name} has no per-head attention output projection: in its "
        f"{'layers' if lists else 'module tree, which has no list of layers,'} no attention module "
        f"owns one linear map from {n_heads} x d_head to d_model {d_model}, at the same path in "
        f"every layer. {EXAMPLE}"
    )


def _projections(layer: Any, n_heads: int, d_model: int) -> tuple[str, ...]:
    """Linear maps from heads x d_head to d_model in the attention of ``layer``, likely first."""
    found = []
    for path, part in layer.named_modules():
        parent, _, leaf = path.rpartition(".")
        owner = f"{parent} {type(layer.get_submodule(parent)).__name__}"
        widths = _widths(part)
        if widths is None or widths[1] != d_model or widths[0] % n_heads:
            continue
        foreign = CROSS.search(owner) or LINEAR.search(owner) or INWARD.search(leaf)
        if ATTENTION.search(owner) and not foreign:
            found.append((not OUTWARD.search(leaf), -len(found), path))
    return tuple(path for *_, path in sorted(found))


def _qkv(layer: Any, projection: str, shared: set[str]) -> QKV | None:
    """Queries, keys and values beside a projection: three linear maps, or one for all.

    The tree does not say how a fused output is packed: by blocks, until a proof says otherwise.
    """
    parent = projection.rpartition(".")[0]
    root = f"{parent}." if parent else ""
    children = layer.get_submodule(parent).named_children()
    parts = {name: part for name, part in children if f"{root}{name}" in shared}
    for names in SEPARATE:
        if all(_widths(parts.get(name)) for name in names):
            width = (_widths(parts[names[0]]) or (0, 0))[1]
            weight = getattr(parts.get(NORMS[0]), "weight", None)
            whole = weight is not None and weight.numel() == width
            norms = (f"{root}{NORMS[0]}", f"{root}{NORMS[1]}") if whole else None
            q, k, v = (f"{root}{name}" for name in names)
            return QKV(q, k, v, norms=norms)
    fused = [f"{root}{name}" for name in parts if FUSED.search(name) and _widths(parts[name])]
    return QKV(fused[0], fused[0], fused[0], "blocks") if len(fused) == 1 else None


def _mlp_proj(layer: Any, projection: str, d_model: int, shared: set[str]) -> str | None:
    """The last linear map to d_model outside attention, if all layers have it and no experts."""
    inside = projection.rpartition(".")[0] + "."
    found = [
        path
        for path, part in layer.named_modules()
        if (_widths(part) or (0, 0))[1] == d_model
        and path != projection
        and not (inside != "." and path.startswith(inside))
    ]
    several = any(EXPERTS.search(key) for key, _ in layer.named_modules())
    return found[-1] if found and found[-1] in shared and not several else None


def _widths(part: Any) -> tuple[int, int] | None:
    """(in, out) of a linear map, whichever way its weight lies; None for another module."""
    if hasattr(part, "in_features") and hasattr(part, "out_features"):
        return part.in_features, part.out_features
    if hasattr(part, "nx") and hasattr(part, "nf"):  # transformers' Conv1D
        return part.nx, part.nf
    return None


def outer_widths(part: Any) -> tuple[int, int]:
    """(in, out) of a module that is a linear map, or begins and ends with one.

    Raises:
        ArchError: there is no linear map in it.
    """
    own = _widths(part)
    linear = [own] if own else list(filter(None, map(_widths, part.modules())))
    if not linear:
        raise ArchError(
            f"A {type(part).__name__} stands where a projection should, and no linear map is in "
            "it, so how many heads or neurons it reads is not known."
        )
    return linear[0][0], linear[-1][1]


def _final_norms(module: Any, layers: str) -> tuple[str | None, ...]:
    """Norms beside the list of layers, last first, then None."""
    parent = layers.rpartition(".")[0]
    siblings = [
        f"{parent}.{key}" if parent else key
        for key, part in module.get_submodule(parent).named_children()
        if is_norm(key, part)
    ]
    likely = sorted(reversed(siblings), key=lambda path: "emb" in path)
    return (*likely, None)


def _mlps(layer: Any, attention: str, d_model: int) -> tuple[str, ...]:
    """Modules of a layer whose output may be the MLP's contribution, likely first.

    A module that adds the residual stream itself (BLOOM, MPT) leaves its last linear map.
    """
    whole, inner = [], []
    for key, part in layer.named_children():
        if key == attention or is_norm(key, part) or not any(True for _ in part.parameters()):
            continue
        widths = _widths(part)
        if widths is None:
            whole.append(key)
            maps = [
                path for path, sub in part.named_modules() if (_widths(sub) or (0, 0))[1] == d_model
            ]
            inner += [f"{key}.{path}" for path in maps[-1:]]
        elif widths[1] == d_model:
            whole.append(key)
    return (*sorted(reversed(whole), key=lambda key: not MLP.search(key)), *inner)


def _arrangements(
    found: Anatomy, projection: str
) -> Iterator[tuple[Place, Place | None, Place | None]]:
    """(attn_out, mlp_out, resid_mid) as the parts of a layer allow, likely ones first."""
    plain = Place(projection, "output")
    if not found.mlps:  # attention alone
        yield plain, None, None
        return
    serial = [
        (plain, Place(mlp, "output"), Place(mid, "stream"))
        for mlp, mid in product(found.mlps, [*found.norms[1:], *found.norms[:1]])
    ]
    parallel = [
        (plain, Place(mlp, side), None) for side, mlp in product(("output", "copied"), found.mlps)
    ]
    behind_norms = [
        (Place(attn, "output"), Place(mlp, "output"), Place(mid, "stream"))
        for attn, mlp in sorted(permutations(found.norms, 2), key=_oddity)
        for mid in (*(norm for norm in found.norms if norm not in (attn, mlp)), *found.mlps[:1])
    ]
    groups = [serial, parallel, behind_norms]
    if len(found.norms) < 2:
        groups = [parallel, serial, behind_norms]
    elif len(found.norms) > 2:
        groups = [behind_norms, serial, parallel]
    for group in groups:
        yield from group


def _oddity(pair: tuple[str, str]) -> int:
    """How unlike two norms are to the ones behind attention and behind the MLP, by their names."""
    attn, mlp = pair
    signs = ("post" in attn, "post" in mlp, ATTENTION.search(attn), MLP.search(mlp))
    return sum(not sign for sign in signs) + ("self" not in attn and "attn" not in attn)


def _constant(config: Any, names: tuple[str, ...]) -> str | None:
    """The first of ``names`` that the configuration sets."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return name
    return None
