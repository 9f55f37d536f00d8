"""Sites: names for the activations that a method can read or replace.

======================  ====================================================  ==============
site                    what it is                                            split into
======================  ====================================================  ==============
``q``                   the queries, as projected: before any rotary turn       heads
``k``, ``v``            the keys and the values, likewise                     key/value heads
``z``                   the *input* of the attention output projection         heads
``attn_out``            attention's contribution to the residual stream       -
``neuron``              the *input* of the MLP's output projection             neurons
``mlp_out``             the MLP's contribution to the residual stream         -
``resid_pre``           the residual stream entering a layer                  -
``resid_mid``           between attention and MLP (not in parallel blocks)    -
``resid_post``          the residual stream leaving a layer                   -
======================  ====================================================  ==============

Rotary embeddings turn each position's q and k by a fixed rotation, the same in both runs of an
aligned pair. So a patch of q before it is the patch of q behind it, and a gradient times a change
is the same number on both sides: the sites are read where every family has them, before.

A site becomes a `Place` per layer, a path and a side, which is all that travels to a server; it is
read and written there by `nnattr.runs.places`.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from nnattr.arch.spec import QKV, ArchSpec, Place
from nnattr.errors import ArchError

SiteName = Literal[
    "q", "k", "v", "z", "attn_out", "neuron", "mlp_out", "resid_pre", "resid_mid", "resid_post"
]
SITES: tuple[str, ...] = get_args(SiteName)
#: The sites in the order in which a forward pass meets them; and of what they hold several vectors.
FORWARD_ORDER: dict[SiteName, str | None] = {
    "resid_pre": None,
    "q": "head",
    "k": "kv_head",
    "v": "kv_head",
    "z": "head",
    "attn_out": None,
    "resid_mid": None,
    "neuron": None,
    "mlp_out": None,
    "resid_post": None,
}

#: Why a family may lack a site, and what to use instead.
WHY_NOT = {
    "neuron": "its MLP is not one output projection (a mixture of experts?). Use 'mlp_out'",
    "resid_mid": "its attention and MLP read the same residual stream (parallel blocks). Use "
    "'resid_pre', 'attn_out' or 'mlp_out'",
    **dict.fromkeys(
        ("q", "k", "v"),
        "its attention makes queries, keys and values in a way that nnattr does not know. Use 'z'",
    ),
}
#: The same where layers are attention alone.
ALONE = {
    "neuron": "its layers are attention alone and have no MLP. Use 'z', or 'attn_out'",
    "mlp_out": "its layers are attention alone and have no MLP. Use 'attn_out'",
    "resid_mid": "its layers are attention alone, so nothing stands between attention and the "
    "layer's end. Use 'resid_post'",
}


def place(spec: ArchSpec, site: SiteName, layer: int) -> Place:
    """Where ``site`` of ``layer`` is found in a model with this ``spec``.

    Raises:
        ArchError: an unknown site, or one that the family does not have.
    """
    q, k = (None, None) if spec.qkv is None else spec.qkv.norms or spec.qkv[:2]
    inside = {
        "q": q and Place(q, "output"),
        "k": k and Place(k, "output"),
        "v": spec.qkv and Place(spec.qkv.v, "output"),
        "neuron": spec.mlp_proj and Place(spec.mlp_proj, "input"),
        "z": Place(spec.attn_proj, "input"),
        "attn_out": spec.attn_out,
        "mlp_out": spec.mlp_out,
        "resid_pre": Place("", "input"),
        "resid_mid": spec.resid_mid,
        "resid_post": Place("", "output"),
    }
    if site not in inside:
        raise ArchError(f"Unknown site {site!r}; the sites are {', '.join(SITES)}.")
    found = inside[site]
    if found is None:
        alone = spec.mlp_out is None and site in ALONE
        raise ArchError(f"This model has no {site!r}: {(ALONE if alone else WHY_NOT)[site]}.")
    path = f"{spec.layers}.{layer}" + (f".{found.path}" if found.path else "")
    return Place(path, found.side)


def part(qkv: QKV, site: str, n_heads: int, n_kv_heads: int, d_head: int) -> Any:
    """Which part of its module's output ``site`` (q, k or v) is: see `Place`."""
    if qkv.packing == "separate":
        return None
    groups = n_kv_heads if qkv.packing == "groups" else 1
    sizes = [n * d_head // groups for n in (n_heads, n_kv_heads, n_kv_heads)]
    number = "qkv".index(site)
    return groups, sum(sizes[:number]), sum(sizes[: number + 1])
