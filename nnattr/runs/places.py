"""Modules found, and activations read and replaced, inside a trace.

A place is ``(path, side, part)``, see `nnattr.arch.spec.Place`. Inside a job: torch and plain
values.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def raw(envoy: Any) -> Any:
    """The Hugging Face module that an nnsight model, or a part of one, stands for.

    nnsight has no public name for it; this is the one place that uses its private one.
    """
    return envoy._module


def cut(value: Tensor, part: tuple[int, int, int] | None) -> Tensor:
    """A part of the last axis (see `nnattr.arch.spec.Place`)."""
    if part is None:
        return value
    groups, first, last = part
    return value.unflatten(-1, (groups, -1))[..., first:last].flatten(-2)


def folds(nn: Any, where: tuple[Any, ...]) -> bool:
    """Whether batch and position are one axis of the activation at ``where``, inside a trace."""
    path, side, _ = where
    value = nn.get(path).output if side in ("output", "copied") else nn.get(path).input
    return (value[0] if isinstance(value, tuple) else value).ndim == 2


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
        if side == "input":  # what made it may have kept it for a backward pass
            module.input = own.reshape(value.shape)
        else:
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
