"""What senders change of the residual stream where another run's write takes their own's place.

Where nothing but a matrix follows a head's z, its write is its own, and a reader's change is a sum
over its senders. Where a norm follows, or a projection that is more than a matrix, a layer's heads
that a reader takes from the other run are taken together: the change is what attention contributes
with them from the other run, less what it contributes.

Inside a job and a trace: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnattr.engine.edge_sets import EdgeSets
from nnattr.engine.wiring import Wiring
from nnattr.maps.linear import matrix
from nnattr.runs.as_built import call_inside


class Mixed:
    """A layer whose heads do not write one by one.

    Attributes:
        layer: which one.
        places: of its heads among the senders.
        heads: which heads these are.
        live, other: z in the run at hand and with all positions that count from the other run
            [set * example, pos, heads * d_head].
    """

    def __init__(
        self, layer: int, places: list[int], heads: list[int], live: Tensor, other: Tensor
    ) -> None:
        self.layer = layer
        self.places = places
        self.heads = heads
        self.live = live
        self.other = other


class Moved:
    """The senders' changes in a run, filled in layer by layer.

    Attributes:
        edges: whose senders.
        where: at which positions they count [example, pos, 1].
        rows: how many rows the run has, one for each set and example.
        change: of what each sender adds [set, sender, example * pos * d], in float32; of those
            that have not written yet, and of mixed layers' heads, zero.
        mixed: the layers whose heads do not write one by one.
    """

    def __init__(self, edges: EdgeSets, sets: Tensor, where: Tensor, like: Tensor) -> None:
        """Begin with nothing.

        Args:
            edges: the sets.
            sets: those of them that are run [set, reader, sender].
            where: at which positions senders change [example, pos], bool.
            like: a residual stream of the examples [example, pos, d].
        """
        self.edges = edges
        self.sets = sets.to(like.device)
        self.where = where[..., None].to(like.device)
        self.shape = like.shape
        self.change = torch.zeros(
            len(sets), len(edges.senders), like.numel(), device=like.device, dtype=torch.float32
        )
        self.mixed: list[Mixed] = []
        self.filled = 0

    def put(self, place: int, live: Tensor, other: Tensor, scale: float) -> None:
        """What one sender adds: live [set * example, pos, d], and in the other run [example, ...].

        ``scale`` is what both are multiplied with on their way to the stream.
        """
        change = (other.float() - live.float().unflatten(0, (len(self.sets), -1))) * scale
        self.change[:, place] = (change * self.where).flatten(1)
        self.filled = max(self.filled, place + 1)

    def attended(self, nn: Any, wiring: Wiring, layer: int, live: Tensor, other: Tensor) -> None:
        """What a layer's heads add: their z [set * example, pos, d], and in the other run."""
        places = self.edges.writing(layer, "head")
        if not places:
            return
        heads = list(places)
        other = other.repeat(len(self.sets), 1, 1)
        other = torch.where(self.where.repeat(len(self.sets), 1, 1), other, live)
        weight = None if wiring.behind[layer] else matrix(nn.get(wiring.z[layer][0]))
        if weight is None:
            self.mixed.append(Mixed(layer, list(places.values()), heads, live.clone(), other))
            return
        moved = (other - live).unflatten(-1, (wiring.heads, -1))[..., heads, :]
        parts = weight.detach().unflatten(0, (wiring.heads, -1))[heads]
        written = torch.bmm(moved.flatten(0, 1).transpose(0, 1), parts).float() * wiring.scale
        first, last = min(places.values()), max(places.values()) + 1
        written = written.unflatten(1, (len(self.sets), -1)).flatten(2)
        self.change[:, first:last] = written.transpose(0, 1)
        self.filled = last

    def of(self, nn: Any, wiring: Wiring, rows: list[int]) -> Tensor:
        """What readers' inputs change by [reader, set * example, pos, d], in float32.

        ``rows`` are the readers' rows of the sets.
        """
        wanted = self.sets[:, rows]
        summed = torch.bmm(wanted[..., : self.filled].float(), self.change[:, : self.filled])
        found = summed.transpose(0, 1).reshape(len(rows), -1, *self.shape[1:])
        for layer in self.mixed:
            found += self.of_mixed(nn, wiring, layer, wanted[..., layer.places])
        return found

    def of_mixed(self, nn: Any, wiring: Wiring, layer: Mixed, wanted: Tensor) -> Tensor:
        """The same, of a mixed layer's heads ``wanted`` [set, reader, head]."""
        kinds, which = wanted.transpose(0, 1).flatten(1).unique(dim=0, return_inverse=True)
        before = contribution(nn, wiring, layer.layer, layer.live)
        found = []
        for kind in kinds.unflatten(1, wanted.shape[::2]):
            chosen = torch.zeros(len(self.sets), wiring.heads, dtype=torch.bool)
            chosen[:, layer.heads] = kind.cpu()
            chosen = chosen.repeat_interleave(layer.live.shape[-1] // wiring.heads, 1)
            chosen = chosen.repeat_interleave(self.shape[0], 0)[:, None].to(layer.live.device)
            z = torch.where(chosen, layer.other, layer.live)
            after = contribution(nn, wiring, layer.layer, z) if kind.any() else before
            found.append((after.float() - before.float()) * wiring.scale)
        return torch.stack(found)[which]


def contribution(nn: Any, wiring: Wiring, layer: int, z: Tensor) -> Tensor:
    """What attention contributes for these z [row, pos, heads * d_head], before any scale."""
    made = call_inside(nn.get(wiring.z[layer][0]), z)
    behind = wiring.behind[layer]
    return made if behind is None else nn.get(behind)(made)
