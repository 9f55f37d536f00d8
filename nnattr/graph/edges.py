"""Edges of a model's graph as values: what one part writes, as another reads it; and paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from nnattr.errors import ArchError
from nnattr.graph.parts import Part, parse


class Edge:
    """A sender and a receiver; written ``L3H2->L5H1.q``, ordered by sender, then receiver.

    Attributes:
        sender: the part that writes.
        receiver: the part that reads, of a head by one of its ports.
    """

    __slots__ = ("receiver", "sender")

    def __init__(self, sender: Part, receiver: Part) -> None:
        if sender.port is not None or not sender < receiver:
            raise ArchError(
                f"There is no edge from {sender} to {receiver}; expected a sender that writes (a "
                "head's name without .q, .k or .v) and a receiver that comes after it."
            )
        self.sender = sender
        self.receiver = receiver

    @property
    def order(self) -> tuple[Any, ...]:
        """What edges are sorted by."""
        return self.sender.order, self.receiver.order

    def __str__(self) -> str:
        return f"{self.sender}->{self.receiver}"

    def __repr__(self) -> str:
        return f"Edge({self})"

    def __hash__(self) -> int:
        return hash((self.sender, self.receiver))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Edge) and self.order == other.order

    def __lt__(self, other: Edge) -> bool:
        return self.order < other.order

    def __le__(self, other: Edge) -> bool:
        return self.order <= other.order

    def __gt__(self, other: Edge) -> bool:
        return self.order > other.order

    def __ge__(self, other: Edge) -> bool:
        return self.order >= other.order


def parse_edge(given: Edge | str | tuple[Any, Any]) -> Edge:
    """The edge that is meant.

    Args:
        given: an edge; its name, ``"L3H2->L5H1.q"`` or ``"a3.h2->a5.h1<q>"``; or a pair of sender
            and receiver, each as `nnattr.graph.parse` reads it.

    Raises:
        ArchError: no edge is written like this, or it would go backwards.
    """
    if isinstance(given, Edge):
        return given
    ends = _split(given)
    try:
        sender, receiver = ends
    except (TypeError, ValueError) as error:
        raise ArchError(
            f"{given!r} is not an edge; expected 'L3H2->L5H1.q' or a pair (sender, receiver)."
        ) from error
    return Edge(parse(sender), parse(receiver))


def parse_path(given: str | Sequence[Any]) -> tuple[Edge, ...]:
    """The edges of a path to the logits, the first one first.

    Args:
        given: parts one after the other, ``"L3H2 -> L5H1.k -> L9H6.q -> logits"``, or a list of
            them. A head on the way is named with what it reads by, and writes the next edge. Where
            heads share a key, ``L5H1.k`` is that head's use of it.

    Raises:
        ArchError: it is no path, it goes backwards, or it does not say by what a head reads.

    ::

        parse_path("L3H2 -> L5H1.k -> logits")  # (Edge(L3H2->L5H1.k), Edge(L5H1->logits))
    """
    given = given if isinstance(given, Iterable) else [given]
    parts = [parse(one) for one in _split(given)]
    if len(parts) < 2 or parts[-1].kind != "logits":
        raise ArchError(
            f"{given!r} is not a path; expected parts from a sender to the logits, such as "
            "'L3H2 -> L5H1.k -> L9H6.q -> logits'."
        )
    writers = [parts[0], *map(_writer, parts[1:])]
    return tuple(Edge(one, read) for one, read in zip(writers, parts[1:], strict=False))


def _split(given: Any) -> Any:
    return re.split("->|→", given) if isinstance(given, str) else given


def _writer(part: Part) -> Part:
    """What writes on where a path has come to what this part reads."""
    if part.kind == "kv" or (part.kind == "head" and part.port is None):
        head = f"L{part.layer}H{part.number}" if part.kind == "head" else f"L{part.layer}H0"
        raise ArchError(
            f"A path cannot pass through {part}: name the head that it goes on from, with what it "
            f"reads by, such as {head}.{part.port or 'q'}."
        )
    return Part(part.kind, part.layer, part.number)
