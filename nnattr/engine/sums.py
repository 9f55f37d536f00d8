"""Whether a run's residual stream is the sum of what its parts write, which edges rest on.

A hook on a layer, or on an attention module behind its output projection, changes what parts write
on its way to those that read it: an edge is then not what its sender writes.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from nnattr.runs.portions import RefusedError
from nnattr.runs.tolerance import weights_tolerance


def require_sums(
    mask: Tensor,
    streams: Sequence[Tensor],
    *writes: Sequence[Tensor],
    scale: float,
    edited: Sequence[int] = (),
) -> None:
    """Refuse a run in which a layer adds something else to the stream than its parts write.

    Args:
        mask: which positions are a prompt's own [example, pos].
        streams: what enters each layer, and what leaves the last one [example, pos, d].
        writes: what attention, and the MLP, write, by layer [example, pos, d]; may be empty.
        scale: what these are multiplied with before they are added.
        edited: layers with edits of nnattr's own, which are left out with those before them: of
            edits of the stream only those come here that add the same to both runs.

    Raises:
        RefusedError: saying by how much, and in which layer.
    """
    for layer, (before, after) in enumerate(pairwise(streams)):
        if layer in edited or layer + 1 in edited:
            continue
        added = sum(one[layer].float() for one in writes if one)
        gap = (after.float() - before.float() - scale * added).abs().amax(-1)
        size = after.float().abs().amax(-1)
        share = float((gap / size.clamp_min(1e-30))[mask.to(gap.device)].max())
        if share > weights_tolerance(after.dtype):  # NaN is the metric's to refuse
            raise RefusedError(
                "arch",
                "the residual stream is not the sum of what parts write, so it has no edges: what "
                f"layer {layer} adds differs from what its attention and MLP write by {share:.1e} "
                "of its size. A hook, or a module of another class, stands between them; "
                "activation_patching does not mind.",
            )
