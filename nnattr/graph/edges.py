"""An edge of a model's graph as a value: what one part writes, as another reads it."""

from __future__ import annotations

import re
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
    ends = re.split("->|→", given) if isinstance(given, str) else given
    try:
        sender, receiver = ends
    except (TypeError, ValueError) as error:
        raise ArchError(
            f"{given!r} is not an edge; expected 'L3H2->L5H1.q' or a pair (sender, receiver)."
        ) from error
    return Edge(parse(sender), parse(receiver))
