"""Sets of edges as a job has them: who reads whom, by layer.

Inside a job: torch and plain values.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: A part in plain values: its kind, layer, number and port (see `nnattr.graph.parts.Part`).
#: A part of no layer writes before, and reads after, all layers.
PlainPart = tuple[str, "int | None", "int | None", "str | None"]
#: In which order parts of a layer write.
ORDER = {"input": 0, "head": 1, "mlp": 2}


class EdgeSets:
    """Several sets of edges between the same parts.

    Where heads share keys and values, and some set has an edge into the key or value of one head
    alone, every edge into a shared one counts as edges into those of all its heads.

    Attributes:
        senders: those with an edge, in the order in which they write, each (kind, layer, number).
        readers: by layer (None for the logits) and port (``"q"``, ``"k"``, ``"v"``, ``"mlp"``,
            ``"logits"``) the rows of ``sets`` of each part that reads there, by its number.
        sets: who reads whom [set, reader, sender], bool.
        apart: whether heads have keys or values of their own that share them in the model.
    """

    def __init__(
        self, senders: list[PlainPart], readers: list[PlainPart], sets: Tensor, heads: int, kv: int
    ) -> None:
        """Sort what a payload says.

        Args:
            senders: in any order.
            readers: likewise.
            sets: the edges [set, sender, reader], bool.
            heads: how many heads there are.
            kv: how many of these have keys and values of their own.
        """
        used = sets.any(-1).any(0).tolist()
        order = sorted(
            (-1 if layer is None else layer, ORDER[kind], number or 0, place)
            for place, (kind, layer, number, _) in enumerate(senders)
            if used[place]
        )
        places = [place for *_, place in order]
        self.senders = [senders[place][:3] for place in places]
        sets = sets[:, places].transpose(1, 2)
        self.apart = heads != kv and any(
            kind == "head" and port in ("k", "v", "qk") for kind, *_, port in readers
        )
        rows: dict[tuple[int | None, str, int], list[Tensor]] = {}
        for place, reader in enumerate(readers):
            for key in keys_of(reader, heads // kv, self.apart):
                if sets[:, place].any():
                    rows.setdefault(key, []).append(sets[:, place])
        self.readers: dict[tuple[int | None, str], dict[int, int]] = {}
        for row, (layer, port, number) in enumerate(rows):
            self.readers.setdefault((layer, port), {})[number] = row
        joined = [torch.stack(some).any(0) for some in rows.values()]
        self.sets = torch.stack(joined, 1) if joined else sets[:, :0]

    def __len__(self) -> int:
        return len(self.sets)

    def reading(self, layer: int | None, port: str) -> dict[int, int]:
        """The rows of ``sets`` of the parts that read by a port, by their number."""
        return self.readers.get((layer, port), {})

    def first(self, depth: int) -> int:
        """The first layer with a part that reads; the number of layers if there is none."""
        return min((layer for layer, _ in self.readers if layer is not None), default=depth)

    def writing(self, layer: int | None, kind: str) -> dict[int, int]:
        """The places among the senders of those of a layer and a kind, by their number."""
        return {
            number or 0: place
            for place, (its_kind, its_layer, number) in enumerate(self.senders)
            if its_kind == kind and its_layer == layer
        }


def keys_of(reader: PlainPart, group: int, apart: bool) -> list[tuple[int | None, str, int]]:
    """Where a part reads, as (layer, port, number): of its query and key at once it is two.

    ``group`` heads share a key; ``apart`` says that each is to have its own.
    """
    kind, layer, number, port = reader
    if port is None:
        return [(layer, kind, 0)]
    assert number is not None
    if kind == "kv" and apart:
        return [(layer, port, head) for head in range(group * number, group * (number + 1))]
    return [(layer, one, number) for one in port]
