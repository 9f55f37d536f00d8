"""Sites: names for the activations that a method can read or replace.

======================  ====================================================  ==============
site                    what it is                                            split into
======================  ====================================================  ==============
``z``                   the *input* of the attention output projection         heads
``attn_out``            attention's contribution to the residual stream       -
``mlp_out``             the MLP's contribution to the residual stream         -
``resid_pre``           the residual stream entering a layer                  -
``resid_mid``           between attention and MLP (not in parallel blocks)    -
``resid_post``          the residual stream leaving a layer                   -
======================  ====================================================  ==============

A site becomes a `Place` per layer, a path and a side, which is all that travels to a server.
``read`` and ``write`` run inside a trace, here or there: torch and plain values only.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor

from nnattr.arch.spec import ArchSpec, Place
from nnattr.errors import ArchError

SiteName = Literal["z", "attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post"]
SITES: tuple[str, ...] = get_args(SiteName)


def place(spec: ArchSpec, site: SiteName, layer: int) -> Place:
    """Where ``site`` of ``layer`` is found in a model with this ``spec``.

    Raises:
        ArchError: an unknown site, or one that the family does not have.
    """
    inside = {
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
        raise ArchError(
            f"This model has no {site!r}: its attention and MLP read the same residual stream "
            "(parallel blocks). Use 'resid_pre', 'attn_out' or 'mlp_out'."
        )
    path = f"{spec.layers}.{layer}" + (f".{found.path}" if found.path else "")
    return Place(path, found.side)


def read(nn: Any, where: tuple[str, str], pos: int | None = None) -> Tensor:
    """The activation at ``where``, inside a trace (ask in forward order).

    Args:
        nn: the nnsight model.
        where: the path of a module and the side (see `nnattr.arch.spec.Side`).
        pos: the number of positions in this forward pass; needed by families that fold batch and
            position into one axis (OPT's ``resid_mid`` and ``mlp_out``), harmless elsewhere.

    The result is part of the graph: gradients with respect to it are those of the site.
    """
    path, side = where
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
    return value


def write(nn: Any, where: tuple[str, str], value: Tensor) -> None:
    """Replace the activation at ``where``, inside a trace; other parts of a tuple stay."""
    path, side = where
    module = nn.get(path)
    if side == "input":
        module.input = value
    elif side == "stream":
        module.input.copy_(value.reshape(module.input.shape))
    else:
        old = module.output
        first = old[0] if isinstance(old, tuple) else old
        value = value.reshape(first.shape)
        module.output = (value, *old[1:]) if isinstance(old, tuple) else value
