"""How rows join a pass at their own layer, beside those that came from below.

Inside a job and a trace: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.base import BaseRun
from nnattr.engine.packing import pack
from nnattr.engine.patches import of_base_run
from nnattr.engine.question import Layout
from nnattr.engine.rows import Rows
from nnattr.runs.places import read, write


class Joint:
    """A layer of a pass, as the rows that join there find it.

    Attributes:
        layer: which one; the number of layers stands for what is behind the last one.
        rows: those that join.
        size: how many rows share a sequence.
        n_running: how many sequences are there already.
        start: the first position of the pass.
    """

    def __init__(self, layer: int, rows: Rows, size: int, n_running: int, start: int) -> None:
        self.layer = layer
        self.rows = rows
        self.size = size
        self.n_running = n_running
        self.start = start


def join_stream(nn: Any, layout: Layout, base: BaseRun, joint: Joint, stream: Tensor) -> None:
    """Let a residual stream [sequence, pos, d] enter a layer, beside what comes from below."""
    paths = layout.layers
    if not joint.n_running:
        below = stream.clone()  # somebody's hook on a skipped layer may write into it
        for path in paths[: joint.layer]:
            skip(nn, path, below, base.layer_arity)
    if joint.layer == len(paths):
        if joint.n_running:
            append_output(nn, paths[-1], stream)
        return
    module = nn.get(paths[joint.layer])
    # it is given even what the skipped layers returned: somebody's hook may change that again
    joined = torch.cat([module.input, stream.to(module.input)]) if joint.n_running else stream
    module.input = joined


def contribute(
    nn: Any, layout: Layout, base: BaseRun, joint: Joint, unbatched: Any, value: Tensor
) -> None:
    """For joining rows attention returns what it did in the base run, plus ``value``."""
    kept = of_base_run(base.attention[joint.layer], base, joint.rows, joint.start)
    old, path = pack(kept, joint.size), layout.attention[joint.layer]
    shifted = old if layout.behind_norm else (old.float() + value).to(old)
    if joint.n_running:
        limit_batch(
            nn, path, ("attention",), joint.n_running + len(old), joint.n_running, unbatched
        )
        append_output(nn, path, shifted)
    else:
        skip(nn, path, shifted, base.attention_arity)
    if layout.behind_norm:
        norm = nn.get(layout.norms[joint.layer])
        output = norm.output
        shifted = (output[joint.n_running :].float() + value).to(output)
        norm.output = torch.cat([output[: joint.n_running], shifted])


def replace(
    nn: Any, layout: Layout, base: BaseRun, joint: Joint, unbatched: Any, value: Tensor
) -> None:
    """For joining rows the site inside the layer becomes ``value``."""
    where = layout.places[joint.layer]
    if joint.n_running:
        live = read(nn, where, value.shape[1])
        value = torch.cat([live[: joint.n_running], value.to(live)])
    write(nn, where, value)


#: What is done with an entry's value within the layer, by how a patch enters the model.
PATCH_INSIDE_LAYER = {"attention": contribute, "inside": replace}


def limit_batch(
    nn: Any, path: str, name: tuple[Any, ...], of: int, count: int, unbatched: Any
) -> None:
    """Let a module that is given ``of`` sequences work on the first ``count``, inside a trace.

    ``name`` begins the names of its arguments; see `first_sequences`.
    """
    if count < of:
        module = nn.get(path)
        module.inputs = first_sequences(module.inputs, name, of, count, unbatched)


def first_sequences(
    given: Any, name: tuple[Any, ...], of: int, count: int, unbatched: set[Any] | frozenset[Any]
) -> Any:
    """A module's arguments for the first ``count`` of ``of`` sequences.

    ``unbatched`` names arguments that are known not to be batched: their first axis could equal
    the batch size by chance. As a set, while a mode is compared with full passes, it is added to;
    as a frozenset it is what was found then.
    """
    if isinstance(given, Tensor):
        learning = isinstance(unbatched, set)
        if learning and given.ndim > 1 and len(given) not in (1, of):
            unbatched.add(name)
        fits = given.ndim > 1 and len(given) == of and name not in unbatched
        return given[:count] if fits else given
    if isinstance(given, dict):
        return {
            key: first_sequences(one, (*name, key), of, count, unbatched)
            for key, one in given.items()
        }
    if isinstance(given, tuple | list):
        found = [
            first_sequences(one, (*name, key), of, count, unbatched)
            for key, one in enumerate(given)
        ]
        return found if isinstance(given, list) else tuple(found)
    return given


def append_output(nn: Any, path: str, value: Tensor) -> None:
    """Let a module return ``value`` as further sequences, inside a trace."""
    module = nn.get(path)
    output = module.output
    first, *others = output if isinstance(output, tuple) else (output,)
    joined = torch.cat([first, value.to(first)])
    module.output = (joined, *others) if isinstance(output, tuple) else joined


def skip(nn: Any, path: str, value: Tensor, arity: int) -> None:
    """Skip a module and let it return ``value``, alone or first in a tuple of ``arity``."""
    nn.get(path).skip(value if arity == 0 else (value, *[None] * (arity - 1)))
