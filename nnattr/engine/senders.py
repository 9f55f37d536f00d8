r"""What each sender changes in the residual stream: what it writes in the other run, less its own.

==================  ============================================================================
sender              its change :math:`\Delta_u`
==================  ============================================================================
the input           what enters the first layer, less what does in the base run
an MLP              what it adds to the stream, likewise
a head              :math:`(z' - z) W_O`, by its own part of the output projection
a head, norms after :math:`N(A + (z' - z) W_O) - N(A)`: with :math:`A` what all heads of the base
                    run give, what the norm behind attention makes of one of them alone
==================  ============================================================================

each times what the model multiplies a branch with. Behind a norm the heads of a layer do not add
up to what attention changes: each is taken with the others as they are in the base run. A
projection or norm that is more than its weights is called.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.base import BaseRun
from nnattr.engine.ends import KINDS, Ends, Parts
from nnattr.engine.projection import projected
from nnattr.engine.question import Question
from nnattr.runs.as_built import call_inside
from nnattr.runs.portions import RefusedError
from nnattr.runs.tolerance import pass_tolerance

#: Steps of the base run, and of the other run, that this is made of (see `observe`).
BASE_STEPS = ("entering", "projected", "added", "mlp", "leaving")
OTHER_STEPS = ("entering", "added", "mlp", "leaving")


class Writes:
    """What both runs' senders write, at the positions from ``start`` on.

    Attributes:
        start: the position at which all this begins.
        z, other_z: what enters attention's output projection in both runs, by layer
            [example, pos, width].
        projected: what the base run's leaves it, by layer [example, pos, d].
        input, mlp: what the other run's input, and each layer's MLP, add more, in float32
            [example, pos, d].
        scale: what a branch is multiplied with before it is added to the residual stream.
    """

    def __init__(self, base: BaseRun, scale: float) -> None:
        ours, theirs = base.more, base.other_more
        self.start = base.start
        self.z = base.own
        self.other_z = base.other
        self.projected = ours["projected"]
        self.input = theirs["entering"][0].float() - ours["entering"][0].float()
        self.mlp = gains(base, "mlp")
        self.scale = scale


def gains(base: BaseRun, step: str) -> list[Tensor]:
    """What the other run has more at a step, by layer, in float32 [example, pos, d]."""
    both = zip(base.more.get(step, []), base.other_more.get(step, []), strict=True)
    return [other.float() - own.float() for own, other in both]


def require_sums(base: BaseRun, scale: float) -> None:
    """Refuse a model whose stream is not the sum of what its parts write, in what the runs differ.

    Somebody's hook may scale a layer's output, say: what is read behind it is then another sum.
    """
    streams = [*gains(base, "entering"), *gains(base, "leaving")]
    mlps = gains(base, "mlp") or [torch.zeros(())] * len(streams)
    size = base.more["leaving"][0].abs().max()
    for layer, added in enumerate(gains(base, "added")):
        written = scale * (added + mlps[layer].to(added))
        gap = float((streams[layer + 1] - streams[layer] - written).abs().max() / size)
        if gap > pass_tolerance(base.more["leaving"][0]):
            raise RefusedError(
                "arch",
                f"behind layer {layer} the residual stream is not the sum of what its parts write "
                f"(off by {gap:.1e} of the largest), so it has no edges. Does a hook change what "
                "leaves it, or its attention? activation_patching needs no sum.",
            )


def differing(writes: Writes, ends: Ends, heads: int) -> Tensor:
    """Where each sender writes something else in the other run [example, pos, sender], on the CPU.

    From ``writes.start`` on; ``heads`` is how many a layer has.
    """
    of_heads = {
        layer: (own != writes.other_z[layer]).unflatten(-1, (heads, -1)).any(-1).cpu()
        for layer, own in writes.z.items()
    }
    of_mlps = [(value != 0).any(-1).cpu() for value in writes.mlp]
    of_input = (writes.input != 0).any(-1).cpu()
    found = []
    for kind, layer, unit in torch.stack([ends.kind, ends.layer, ends.unit], 1).tolist():
        if KINDS[kind] == "head":
            found.append(of_heads[layer][..., unit])
        else:
            found.append(of_mlps[layer] if KINDS[kind] == "mlp" else of_input)
    return torch.stack(found, -1)


def written(
    nn: Any,
    question: Question,
    writes: Writes,
    ends: Ends,
    parts: Parts,
    sender: Tensor,
    example: Tensor,
    covered: Tensor,
    start: int,
) -> Tensor:
    """What senders change in the residual stream of the base run, in float32 [row, pos, d].

    Inside a trace, where modules can be called. For whoever needs the change of other positions or
    senders than a sweep: nothing here depends on who reads it.

    Args:
        nn: the nnsight model.
        question: of the examples of ``writes``.
        writes: of both runs.
        ends: whose senders are meant.
        parts: where they are.
        sender: which one changes, in each row [row].
        example: whose row it is [row].
        covered: the positions from ``start`` on at which it does [row, pos], bool.
        start: the first position that is wanted.
    """
    device = writes.input.device
    here = slice(start - writes.start, None)
    found = writes.input.new_zeros(*covered.shape, writes.input.shape[-1])
    example, covered = example.to(device), covered.to(device)
    place = ends.kind[sender] * (1 + int(ends.layer.max())) + ends.layer[sender]
    for one in place.unique():
        rows = (place == one).nonzero()[:, 0]
        first, some = int(sender[rows[0]]), example[rows.to(device)]
        layer, there = int(ends.layer[first]), rows.to(device)
        if KINDS[int(ends.kind[first])] == "head":
            unit = ends.unit[sender[rows]].to(device)
            value = by_heads(nn, question, writes, parts, layer, some, unit, covered[there], start)
        elif KINDS[int(ends.kind[first])] == "mlp":
            value = writes.scale * writes.mlp[layer][some, here]
        else:
            value = writes.input[some, here]
        found[there] = value
    return found.masked_fill(~covered[..., None], 0)


def by_heads(
    nn: Any,
    question: Question,
    writes: Writes,
    parts: Parts,
    layer: int,
    example: Tensor,
    unit: Tensor,
    covered: Tensor,
    start: int,
) -> Tensor:
    """The same for heads of one layer: ``unit`` says which, in each row [row]."""
    heads, here = question.layout.sizes.heads, slice(start - writes.start, None)
    own, other = (
        value[layer][:, here].unflatten(-1, (heads, -1)) for value in (writes.z, writes.other_z)
    )
    change = other[example, :, unit].float() - own[example, :, unit].float()
    change = change.masked_fill(~covered[..., None], 0)
    projection = nn.get(parts.projections[layer])
    change = projected(projection, own.flatten(-2), example, change, unit, heads)
    if parts.behind:
        before = writes.projected[layer][example, here]
        change = through_norm(nn.get(parts.behind[layer]), before, change)
    return writes.scale * change


def through_norm(norm: Any, before: Tensor, change: Tensor) -> Tensor:
    """What a norm makes more of ``before`` once ``change`` is added to it, in float32."""
    new, old = (call_inside(norm, one.to(before)) for one in (before.float() + change, before))
    return new.float() - old.float()
