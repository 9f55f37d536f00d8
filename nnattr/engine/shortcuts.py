"""The same numbers for less: GELU in one step, logits of the tokens that are read, reused memory.

Inside a job: torch and plain values.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nnattr.engine.question import Question, sandboxed
from nnattr.maps.linear import matrix
from nnattr.runs.as_built import around, as_built
from nnattr.runs.places import raw

#: In the tanh form of GELU, ``x / 2 * (1 + tanh(u))``, 2 u is so many times x + 0.044715 x^3.
TWICE = 2 * (2 / math.pi) ** 0.5


class Scratch:
    """Memory that all layers of a pass use in turn: fresh memory costs more than its use.

    Attributes:
        blocks: what there is so far, by name, dtype and device [number].
    """

    def __init__(self) -> None:
        self.blocks: dict[Any, Tensor] = {}

    def like(self, name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Memory of this shape, whatever was in it, of the dtype and on the device of ``value``."""
        kind, size = (name, value.dtype, value.device), math.prod(shape)
        if kind not in self.blocks or len(self.blocks[kind]) < size:
            self.blocks[kind] = value.new_empty(size)
        return self.blocks[kind][:size].view(shape)


def one_step_gelu(nn: Any, path: str, scratch: Scratch) -> None:
    """Compute a tanh GELU that a module writes out in eight steps in one, inside a trace.

    In float32 on a processor as ``x * sigmoid(2 u)``, which takes half of torch's own. A module
    that does more than that GELU is left alone.
    """
    module = nn.get(path)
    if not as_built(raw(module)):
        return
    x = module.input
    if x.device.type == "cpu" and x.dtype == torch.float32:
        u = scratch.like("gelu", x, x.shape)
        torch.addcmul(x.new_tensor(TWICE), x, x, value=TWICE * 0.044715, out=u)
        module.skip(u.mul_(x).sigmoid_().mul_(x))
    else:
        module.skip(torch.nn.functional.gelu(x, approximate="tanh"))


def read_logits(nn: Any, question: Question) -> Tensor:
    """The logits [row, pos, token] at the end of a trace: of the tokens that the metric reads.

    The model's own, whatever its unembedding does, and what it does to that.
    """
    tokens = question.read_tokens
    if not sandboxed(nn, question.layout):
        head = nn.get(question.layout.unembed)
        head.input = head.input.contiguous()  # a strided one would be multiplied row by row
    logits = nn.output.logits
    return logits if tokens is None else logits[..., tokens.to(logits.device)]


def read_few_logits(nn: Any, question: Question) -> Tensor:
    """`read_logits` by the rows of the unembedding that are read, where it is a plain matrix.

    For patched rows, which are many: some are held against full passes, whose logits are the
    model's own.
    """
    tokens, path = question.read_tokens, question.layout.unembed
    head = nn.get(path)
    if tokens is None or matrix(head) is None or not all(map(as_built, around(nn, path))):
        return read_logits(nn, question)
    rows = tokens.to(head.weight.device)
    bias = None if raw(head).bias is None else head.bias[rows]
    given = head.input.contiguous()
    head.skip(torch.nn.functional.linear(given, head.weight[rows], bias))
    return nn.output.logits
