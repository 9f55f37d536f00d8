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

A site becomes a `Place` per layer, a path and a side, which is all that travels to a server.
``read`` and ``write`` run inside a trace, here or there: torch and plain values only.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor

from nnattr.arch.spec import QKV, ArchSpec, Place
from nnattr.errors import ArchError

SiteName = Literal[
    "q", "k", "v", "z", "attn_out", "neuron", "mlp_out", "resid_pre", "resid_mid", "resid_post"
]
SITES: tuple[str, ...] = get_args(SiteName)

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
        raise ArchError(f"This model has no {site!r}: {WHY_NOT[site]}.")
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


def cut(value: Tensor, part: tuple[int, int, int] | None) -> Tensor:
    """A part of the last axis (see `nnattr.arch.spec.Place`)."""
    if part is None:
        return value
    groups, first, last = part
    return value.unflatten(-1, (groups, -1))[..., first:last].flatten(-2)


def read(nn: Any, where: tuple[Any, ...], pos: int | None = None) -> Tensor:
    """The activation at ``where``, inside a trace (ask in forward order).

    Args:
        nn: the nnsight model.
        where: the path of a module, the side, and the part (see `nnattr.arch.spec.Place`).
        pos: the number of positions in this forward pass; needed by families that fold batch and
            position into one axis (OPT's ``resid_mid`` and ``mlp_out``), harmless elsewhere.

    The result is part of the graph: gradients with respect to it are those of the site. (Not so of
    a part: differentiate with respect to the whole, ``(path, side, None)``, and `cut`.)
    """
    path, side, part = where
    module = nn.get(path)
    value = module.output if side in ("output", "copied") else module.input
    value = value[0] if isinstance(value, tuple) else value
    folded = value.ndim == 2
    if folded and pos is None:
        raise ValueError(f"{path} folds batch and position: read it with pos=, their length.")
    if side == "copied" or folded:
        own = value.clone().unflatten(0, (-1, pos)) if folded else value.clone()
        value.copy_(own.reshape(value.shape))  # the model goes on from our copy
        value = own
    return cut(value, part)


def write(nn: Any, where: tuple[Any, ...], value: Tensor) -> None:
    """Replace the activation at ``where``, inside a trace; other parts of a tuple stay."""
    path, side, part = where
    module = nn.get(path)
    if part is not None:
        groups, first, last = part
        whole = module.output.clone()
        whole.unflatten(-1, (groups, -1))[..., first:last] = value.unflatten(-1, (groups, -1))
        module.output = whole
    elif side == "input":
        module.input = value.reshape(module.input.shape)
    elif side == "stream":
        module.input.copy_(value.reshape(module.input.shape))
    else:
        old = module.output
        first = old[0] if isinstance(old, tuple) else old
        value = value.reshape(first.shape)
        module.output = (value, *old[1:]) if isinstance(old, tuple) else value
