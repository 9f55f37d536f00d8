"""The two ends of edges as a job knows them: which parts write, which read, and which pairs count.

Inside a job: torch and plain values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: What a receiver reads by: a head by its query, key, value, or query and key at once.
PORTS = ("q", "k", "v", "qk", "mlp", "logits")
#: The kinds of senders.
KINDS = ("input", "head", "mlp")


class Ends:
    """Senders, receivers, and the edges between them that are asked for.

    Attributes (integers, on the CPU):
        kind: of each sender, an index into ``KINDS`` [sender].
        layer, unit: where it is, 0 for the input; which head, 0 for others [sender].
        port: of each receiver, an index into ``PORTS`` [receiver].
        at: the layer that a row of it is counted in: its own, or for the logits the last
            [receiver].
        part, parts: which part of the layer's heads changes if its input does, and how many parts
            these are counted in: heads, or key/value heads that several share [receiver].
        wanted: which edges are asked for [sender, receiver], bool.
    """

    def __init__(
        self,
        senders: list[tuple[str, int, int]],
        receivers: list[tuple[str, int, int, int]],
        wanted: Tensor,
    ) -> None:
        kinds = [KINDS.index(kind) for kind, *_ in senders]
        ports = [PORTS.index(port) for port, *_ in receivers]
        self.kind, self.port = torch.tensor(kinds), torch.tensor(ports)
        self.layer, self.unit = torch.tensor([list(where) for _, *where in senders]).unbind(1)
        self.at, self.part, self.parts = torch.tensor([list(it) for _, *it in receivers]).unbind(1)
        self.wanted = wanted

    @property
    def shape(self) -> tuple[int, int]:
        """How many senders and receivers there are."""
        return len(self.kind), len(self.port)

    def receiver(self, edge: Tensor) -> Tensor:
        """The receiver of an edge, which is counted as sender * receivers + receiver."""
        return edge % len(self.port)

    def sender(self, edge: Tensor) -> Tensor:
        """Its sender."""
        return edge.div(len(self.port), rounding_mode="floor")


class Parts:
    """Where the parts of edges are in this model; lists have an entry for each layer.

    Attributes:
        ports: the places of queries, keys and values, by name; empty where they have none.
        mlp: the places of what MLPs add to the residual stream; empty where there are none.
        added: the places of what attention adds.
        projections: the paths of attention's output projections.
        behind: the paths of the norms behind these; empty where there are none.
        parallel: whether a layer's MLP reads what its attention reads.
    """

    def __init__(self, plain: dict[str, Any]) -> None:
        self.ports: dict[str, list[tuple[Any, ...]]] = plain["ports"]
        self.mlp: list[tuple[Any, ...]] = plain["mlp"]
        self.added: list[tuple[Any, ...]] = plain["added"]
        self.projections: list[str] = plain["projections"]
        self.behind: list[str] = plain["behind"]
        self.parallel: bool = plain["parallel"]
