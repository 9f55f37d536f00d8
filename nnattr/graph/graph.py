"""The graph of a model: which parts write, which read, and which edges exist.

A part reads the sum of all that was written before it, so an edge exists wherever its sender has
written by the time its receiver reads. In steps of half a layer:

==============================  =======  =======
part                            reads    writes
==============================  =======  =======
``input``                                0
a head of layer ``l``           2 l      2 l + 1
the MLP of layer ``l``          2 l + 1  2 l + 2
the same in a parallel block    2 l      2 l + 2
``logits`` of ``L`` layers      2 L
==============================  =======  =======

A layer's attention and its MLP then have ``1 + l (H + 1)`` edges into each of the ``H + 2 K``
queries, keys and values, as many into the MLP, and there ``H`` more where it is not parallel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from nnattr.graph.edges import Edge
from nnattr.graph.parts import Part


class Graph:
    """The parts of one model that write or read, in the order of the forward pass, and their edges.

    Where several heads share a key and a value, the model itself has one receiver for them,
    ``L5KV0.k``. Ungrouped, every head reads a key and a value of its own, ``L5H1.k``, which the
    model does not have: that is there to compare with what others published.

    Attributes:
        layers: how many layers.
        heads: how many (query) heads a layer has.
        kv_heads: how many keys and values a layer has, each for as many heads.
        parallel: whether a layer's attention and MLP read the same stream.
        mlps: whether layers have an MLP.
        attends: whether the queries, keys and values have places where nnattr can write them;
            without, heads write and are not read into.
        ungrouped: whether every head has a key and a value of its own.
        senders: ``input``, then of every layer its heads and its MLP.
        receivers: of every layer its queries, keys, values and its MLP; then ``logits``.
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        kv_heads: int,
        *,
        parallel: bool = False,
        mlps: bool = True,
        attends: bool = True,
        ungrouped: bool = False,
    ) -> None:
        self.layers = layers
        self.heads = heads
        self.kv_heads = kv_heads
        self.parallel = parallel
        self.mlps = mlps
        self.attends = attends
        self.ungrouped = ungrouped
        each = range(layers)
        self.senders = (Part("input"), *(part for layer in each for part in self.writes(layer)))
        self.receivers = (*(part for layer in each for part in self.reads(layer)), Part("logits"))
        self._senders, self._receivers = frozenset(self.senders), frozenset(self.receivers)

    @property
    def grouped(self) -> bool:
        """Whether heads that share a key and a value read them by one receiver."""
        return self.kv_heads != self.heads and not self.ungrouped

    def writes(self, layer: int) -> list[Part]:
        """The senders of a layer: its heads, then its MLP."""
        heads = [Part("head", layer, head) for head in range(self.heads)]
        return [*heads, Part("mlp", layer)] if self.mlps else heads

    def reads(self, layer: int) -> list[Part]:
        """The receivers of a layer: all queries, all keys, all values, then its MLP."""
        by_head = [self.ports(Part("head", layer, head)) for head in range(self.heads)]
        heads = [part for of_all in zip(*by_head, strict=True) for part in of_all]
        mlp = [Part("mlp", layer)] if self.mlps else []
        return [*dict.fromkeys(heads), *mlp] if self.attends else mlp

    def ports(self, head: Part) -> tuple[Part, Part, Part]:
        """By what a head reads: its query, and its own or the shared key and value."""
        assert head.number is not None
        shared = head.number * self.kv_heads // self.heads
        kind, number = ("kv", shared) if self.grouped else ("head", head.number)
        query = Part("head", head.layer, head.number, "q")
        return query, Part(kind, head.layer, number, "k"), Part(kind, head.layer, number, "v")

    def sends(self, part: Part) -> bool:
        """Whether this is a sender of this model."""
        return part in self._senders

    def receives(self, part: Part) -> bool:
        """Whether this is a receiver; a head's query and key at once, ``L5H1.qk``, count as one."""
        whole = part if part.port != "qk" else Part("head", part.layer, part.number, "q")
        return whole in self._receivers

    def has(self, sender: Part, receiver: Part) -> bool:
        """Whether there is this edge."""
        return self.sends(sender) and self.receives(receiver) and self._reaches(sender, receiver)

    def mask(self) -> torch.Tensor:
        """Which edges exist: true or false, [sender, receiver]."""
        return self.reach(self.senders, self.receivers)

    def reach(self, senders: Sequence[Part], receivers: Sequence[Part]) -> torch.Tensor:
        """The same for these senders and receivers of this model."""
        written = torch.tensor([_written(sender) for sender in senders])
        return written[:, None] <= torch.tensor([self._read(receiver) for receiver in receivers])

    def __len__(self) -> int:
        return int(self.mask().sum())

    def edges(self) -> Iterator[Edge]:
        """All edges, by sender and then by receiver."""
        for sender in self.senders:
            for receiver in self.receivers:
                if self._reaches(sender, receiver):
                    yield Edge(sender, receiver)

    def _reaches(self, sender: Part, receiver: Part) -> bool:
        return _written(sender) <= self._read(receiver)

    def _read(self, part: Part) -> int:
        """When a part reads, in steps of half a layer."""
        layer = self.layers if part.layer is None else part.layer
        return 2 * layer + (part.kind == "mlp" and not self.parallel)


def _written(part: Part) -> int:
    """When a part has written, in steps of half a layer."""
    return 0 if part.layer is None else 2 * part.layer + 1 + (part.kind == "mlp")
