"""Which edges of a graph are meant: by senders and receivers, or one by one.

====================================  =============================================================
given as senders or as receivers      what it means
====================================  =============================================================
``"all"``                             every part that writes, or that reads
``"heads"``                           every head; as receivers every query, key and value
``"mlps"``                            every MLP
``"q"``, ``"k"``, ``"v"``             as receivers: every query, every key, every value
a head                                that head; as a receiver its query, its key and its value
``L5H1.qk``                           as a receiver: its query and key at once, so its pattern
``input``, ``M3``, ``L5H1.q``, ...    that part, see `nnattr.graph.Graph`
a list of these                       all of them, each once
====================================  =============================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any

import torch

from nnattr.errors import ArchError
from nnattr.graph.edges import Edge, parse_edge
from nnattr.graph.graph import Graph
from nnattr.graph.missing import ORDER, inventory, require_edge, require_part
from nnattr.graph.parts import Part, is_one, parse

#: The ports of receivers as a result's columns have them in each layer; of an MLP it is None.
COLUMNS = ("q", "k", "v", "qk", None)
#: The kinds and the ports that a class of parts means.
CLASSES: dict[str, dict[str, tuple[tuple[str, ...], tuple[str | None, ...]]]] = {
    "senders": {
        "all": (("input", "head", "mlp"), (None,)),
        "heads": (("head",), (None,)),
        "mlps": (("mlp",), (None,)),
    },
    "receivers": {
        "all": (("head", "kv", "mlp", "logits"), COLUMNS),
        "heads": (("head", "kv"), COLUMNS),
        "mlps": (("mlp",), (None,)),
        "q": (("head",), ("q",)),
        "k": (("head", "kv"), ("k",)),
        "v": (("head", "kv"), ("v",)),
    },
}


class Choice:
    """The edges that are meant, as a matrix.

    Attributes:
        senders: the rows, in the order of the forward pass; of each some edge is meant.
        receivers: the columns, likewise.
        wanted: which edges are meant, true or false, [sender, receiver].
    """

    def __init__(
        self, senders: Iterable[Part], receivers: Iterable[Part], wanted: torch.Tensor
    ) -> None:
        self.senders = tuple(senders)
        self.receivers = tuple(receivers)
        self.wanted = wanted

    def __len__(self) -> int:
        return int(self.wanted.sum())


def chosen(graph: Graph, senders: Any = "all", receivers: Any = "all", edges: Any = None) -> Choice:
    """The edges that are meant.

    Args:
        graph: of the model.
        senders: see the table above. Of a class, parts without any of the edges are left out.
        receivers: likewise.
        edges: these edges instead, each as `nnattr.graph.parse_edge` reads it; one into a head
            means those into its query, its key and its value.

    Raises:
        ArchError: nothing is meant, the model has no such part, or a part that was named has no
            edge.
    """
    if edges is not None:
        return _of_edges(graph, edges)
    writing, reading = _asked(graph, "senders", senders), _asked(graph, "receivers", receivers)
    wanted = graph.reach(list(writing), list(reading))
    rows, columns = wanted.any(1).tolist(), wanted.any(0).tolist()
    _require_edges("receivers", writing, rows)
    _require_edges("senders", reading, columns)
    if not any(rows):
        raise ArchError(f"There is no edge from {senders!r} to {receivers!r}: {ORDER}.")
    kept = torch.tensor(rows), torch.tensor(columns)
    return Choice(compress(writing, rows), compress(reading, columns), wanted[kept[0]][:, kept[1]])


def _of_edges(graph: Graph, given: Any) -> Choice:
    """The choice of single edges."""
    edges = [
        Edge(edge.sender, receiver)
        for edge in map(parse_edge, _each(given, isinstance(given, str | Edge)))
        for receiver in _ports(graph, edge.receiver)
    ]
    if not edges:
        raise ArchError("No edges were given; name at least one, such as 'L3H2->L5H1.q'.")
    for edge in edges:
        require_edge(graph, edge)
    rows = sorted({edge.sender for edge in edges})
    columns = sorted({edge.receiver for edge in edges}, key=_column)
    row, column = ({part: at for at, part in enumerate(parts)} for parts in (rows, columns))
    wanted = torch.zeros(len(rows), len(columns), dtype=torch.bool)
    wanted[[row[e.sender] for e in edges], [column[e.receiver] for e in edges]] = True
    return Choice(rows, columns, wanted)


def _each(given: Any, one: bool) -> Iterable[Any]:
    return [given] if one or not isinstance(given, Iterable) else given


def _asked(graph: Graph, role: str, given: Any) -> dict[Part, bool]:
    """The parts that are meant, in order, and whether each was named by itself."""
    known = graph.senders if role == "senders" else graph.receivers
    found: dict[Part, bool] = {}
    for one in _each(given, is_one(given)):
        if isinstance(one, str) and one in CLASSES[role]:
            kinds, ports = CLASSES[role][one]
            of_class = (part for part in known if part.kind in kinds and part.port in ports)
            found = dict.fromkeys(of_class, False) | found
        else:
            found |= dict.fromkeys(_named(graph, role, one), True)
    if not found:
        raise ArchError(f"{given!r} names no {role} of this model: {inventory(graph)}.")
    return {part: found[part] for part in sorted(found, key=_column)}


def require_names(role: str, given: Any) -> None:
    """Refuse what is neither a class of parts nor a part of any model.

    Args:
        role: ``"senders"`` or ``"receivers"``.
        given: one name or several.

    Raises:
        ArchError: saying which.
    """
    for one in _each(given, is_one(given)):
        if not (isinstance(one, str) and one in CLASSES[role]):
            _parsed(role, one)


def _parsed(role: str, given: Any) -> Part:
    try:
        return parse(given)
    except ArchError as error:
        classes = ", ".join(map(repr, CLASSES[role]))
        raise ArchError(f"{error} As {role} also {classes} are known.") from None


def _named(graph: Graph, role: str, given: Any) -> Sequence[Part]:
    """What a part means that is named by itself."""
    part = _parsed(role, given)
    parts = _ports(graph, part) if role == "receivers" else [part]
    for one in parts:
        require_part(graph, role, one)
    return parts


def _ports(graph: Graph, part: Part) -> Sequence[Part]:
    """The receivers that a part means: of a head, all that it reads."""
    return graph.ports(part) if part.kind == "head" and part.port is None else [part]


def _column(part: Part) -> tuple[Any, ...]:
    """What senders and receivers are sorted by: a layer's queries stand before its keys."""
    port = 0 if part.port is None else COLUMNS.index(part.port)
    return part.order[:2], part.kind == "mlp", port, part.number or 0


def _require_edges(others: str, parts: dict[Part, bool], some: list[bool]) -> None:
    """Refuse parts that were named and have none of the edges."""
    for (part, named), has in zip(parts.items(), some, strict=True):
        if named and not has:
            raise ArchError(f"There is no edge between {part} and any of the {others}: {ORDER}.")
