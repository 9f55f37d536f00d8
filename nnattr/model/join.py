"""How rows join a pass at their own layer, beside those that came from below.

``here`` is a layer of a pass: its number, the ``rows`` that join it, how many sequences are there
already (``old``), the first position (``start``), and how many rows share a sequence (``size``).

Inside a job and a trace: torch and plain values.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnattr.model.abreast import end_to_end
from nnattr.model.patched import moved, patch
from nnattr.model.sites import read, write


def laid(kept: Tensor, runs: SimpleNamespace, here: SimpleNamespace) -> Tensor:
    """What is kept of the base run, for the rows that enter here, as it enters the model."""
    skipped = here.start - runs.start
    return end_to_end(kept[here.rows[:, 0].to(kept.device), skipped:], here.size)


def entering(
    nn: Any, ask: SimpleNamespace, runs: SimpleNamespace, here: SimpleNamespace
) -> tuple[Tensor, Tensor]:
    """The residual stream of the rows that enter here, and the change or the site in its place."""
    index = int(here.rows[0, 4])
    stream = laid(runs.streams[here.layer], runs, here)
    if ask.entry in ("added", "attention"):
        new = end_to_end(moved(nn, ask, runs, index, here.rows, here.start), here.size)
    else:
        new = end_to_end(patch(ask, runs, index, here.rows, here.start)[1], here.size)
    if ask.entry in ("before", "after"):
        stream = new
    elif ask.entry == "added":
        stream = (stream.float() + ask.scale * new).to(stream)
    return stream, new


def enter(nn: Any, ask: SimpleNamespace, here: SimpleNamespace, stream: Tensor) -> None:
    """Let a residual stream enter a layer, beside what comes from below if anything does."""
    paths = ask.layer_paths
    if not here.old:
        for path in paths[: here.layer]:
            skip(nn, path, stream, ask.arity["layer"])
    if here.layer == len(paths):
        if here.old:
            beside(nn, paths[-1], stream)
        return
    module = nn.get(paths[here.layer])
    if here.old:
        module.input = torch.cat([module.input, stream.to(module.input)])
    elif here.layer == 0:
        module.input = stream


def contribute(
    nn: Any, ask: SimpleNamespace, runs: SimpleNamespace, here: SimpleNamespace, new: Tensor
) -> None:
    """Let attention return what it did in the base run, and the change, for those that enter."""
    base, path = laid(runs.attention[here.layer], runs, here), ask.attn[here.layer]
    shift = new / ask.scale if ask.site == "resid_mid" else new
    behind = ask.normed and ask.site != "z"  # a norm follows attention: add after it
    shifted = base if behind else (base.float() + shift).to(base)
    if here.old:
        keep(nn, ask, path, here.old + len(base), here.old)
        beside(nn, path, shifted)
    else:
        skip(nn, path, shifted, ask.arity["attention"])
    if behind:
        norm = nn.get(ask.norms[here.layer])
        value = norm.output
        shifted = (value[here.old :].float() + shift).to(value)
        norm.output = torch.cat([value[: here.old], shifted])


def replace(
    nn: Any, ask: SimpleNamespace, runs: SimpleNamespace, here: SimpleNamespace, new: Tensor
) -> None:
    """Write the site inside the layer, for those that enter."""
    where = ask.places[here.layer]
    if here.old:
        live = read(nn, where, new.shape[1])
        new = torch.cat([live[: here.old], new.to(live)])
    write(nn, where, new)


#: What is done inside a layer that rows enter, by how a patch enters the model.
WITHIN = {"attention": contribute, "inside": replace}


def keep(nn: Any, ask: SimpleNamespace, path: str, of: int, count: int) -> None:
    """Let a module that is given ``of`` sequences work on the first ``count``, inside a trace."""
    if count < of:
        module = nn.get(path)
        module.inputs = firsts(ask, module.inputs, of, count, (path in ask.layer_paths,))


def firsts(ask: SimpleNamespace, given: Any, of: int, count: int, name: tuple[Any, ...]) -> Any:
    """A module's arguments for the first ``count`` of ``of`` sequences.

    ``ask.whole`` are those that had another length when the engine was compared with full passes:
    in some later pass they may happen to have this one.
    """
    if isinstance(given, Tensor):
        if ask.comparing and given.ndim > 1 and len(given) not in (1, of):
            ask.whole.add(name)
        fits = given.ndim > 1 and len(given) == of and name not in ask.whole
        return given[:count] if fits else given
    if isinstance(given, dict):
        return {key: firsts(ask, one, of, count, (*name, key)) for key, one in given.items()}
    if isinstance(given, tuple | list):
        found = [firsts(ask, one, of, count, (*name, key)) for key, one in enumerate(given)]
        return found if isinstance(given, list) else tuple(found)
    return given


def beside(nn: Any, path: str, value: Tensor) -> None:
    """Let a module return ``value`` as further sequences, inside a trace."""
    module = nn.get(path)
    output = module.output
    first, *others = output if isinstance(output, tuple) else (output,)
    joined = torch.cat([first, value.to(first)])
    module.output = (joined, *others) if isinstance(output, tuple) else joined


def skip(nn: Any, path: str, value: Tensor, arity: int) -> None:
    """Skip a module and let it return ``value``, alone or first in a tuple of ``arity``."""
    nn.get(path).skip(value if arity == 0 else (value, *[None] * (arity - 1)))
