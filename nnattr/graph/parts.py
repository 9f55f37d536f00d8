"""A part of a model as a value: how it is written, read and ordered.

=============================  ====================================================================
written                        what it is
=============================  ====================================================================
``input``                      what enters the first layer, as one sender
``embed``, ``pos_embed``       the token embedding and the position embedding by themselves
``L3 pre``, ``L3 mid``         the residual stream before a layer and between attention and MLP
``L3H7``                       a head: what it writes
``L3H7.q``, ``.k``, ``.v``     what a head reads, by where it reads it
``L3H7.qk``                    its query and its key at once: what its attention pattern is made of
``L3KV2.k``, ``L3KV2.v``       the same of a key/value head that several heads share
``L3 attn``, ``L3 attn bias``  a whole attention layer, and its output projection's bias
``L3N5``                       a neuron
``M3``, ``L3 mlp bias``        an MLP, and its output projection's bias
``L3 steer``                   a vector that an edit adds to the residual stream there
``final``                      the residual stream behind the last layer
``bias``, ``softcap``          what the final norm and the unembedding add, and what a cap takes
``logits``                     the end of the model
=============================  ====================================================================

Among components of the residual stream an MLP is written ``L3 mlp``, beside ``L3 attn``: that is
its `Part.label`. `parse` reads either, and other tools' ways of writing heads and MLPs.

A name of a part goes into jobs, so `Part` is a plain class on the standard library alone.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from nnattr.errors import ArchError

#: How every kind of part is written; kinds stand in the order of the forward pass.
BEFORE_LAYERS = {"input": "input", "embed": "embed", "pos_embed": "pos_embed"}
IN_LAYER = {
    "pre": "L{layer} pre",
    "kv": "L{layer}KV{number}",
    "head": "L{layer}H{number}",
    "attn": "L{layer} attn",
    "attn bias": "L{layer} attn bias",
    "mid": "L{layer} mid",
    "neuron": "L{layer}N{number}",
    "mlp": "M{layer}",
    "mlp bias": "L{layer} mlp bias",
    "steer": "L{layer} steer",
}
AFTER_LAYERS = {"final": "final", "bias": "bias", "softcap": "softcap", "logits": "logits"}
WRITTEN = {**BEFORE_LAYERS, **IN_LAYER, **AFTER_LAYERS}
#: The ports of each kind that has some; None is the part itself, which a key/value head is not.
PORTS: dict[str, tuple[str | None, ...]] = {"head": (None, "q", "k", "v", "qk"), "kv": ("k", "v")}


class Part:
    """A part of a model; equal and ordered by what it is, earlier in the forward pass being less.

    In a layer everything that attention reads comes before everything that its heads write, so
    ``a < b`` wherever what ``a`` writes can reach what ``b`` reads.

    Attributes:
        kind: one of ``WRITTEN``.
        layer: the layer, counted from 0; None before and after the layers.
        number: the head or neuron in its layer, counted from 0; None for other kinds.
        port: ``"q"``, ``"k"``, ``"v"`` or ``"qk"``, what a head reads by; None for what it writes.
            A key/value head always has one.
    """

    __slots__ = ("kind", "layer", "number", "port")

    def __init__(
        self,
        kind: str,
        layer: int | None = None,
        number: int | None = None,
        port: str | None = None,
    ) -> None:
        self.kind = kind
        self.layer = None if layer is None else int(layer)
        self.number = None if number is None else int(number)
        self.port = port
        if not _complete(self):
            raise ArchError(
                f"kind {kind!r}, layer {layer!r}, number {number!r} and port {port!r} do not make "
                f"a part; the kinds are {', '.join(WRITTEN)}, those written with an L or M are in "
                "a layer, layers, heads and neurons count from 0, and only a head has a port."
            )

    @property
    def name(self) -> str:
        """How the part is written, ``M3`` or ``L3H7.q``."""
        written = WRITTEN[self.kind].format(layer=self.layer, number=self.number)
        return written if self.port is None else f"{written}.{self.port}"

    @property
    def label(self) -> str:
        """How it is written among components: like its name, but for ``L3 mlp``."""
        return f"L{self.layer} mlp" if self.kind == "mlp" else self.name

    @property
    def order(self) -> tuple[int, ...]:
        """What parts are sorted by: stage, layer, place in the layer, number, port."""
        place = 2 * list(WRITTEN).index(self.kind) + (self.port is None)  # reads before writes
        stage = 1 if self.kind in IN_LAYER else 0 if self.kind in BEFORE_LAYERS else 2
        return stage, self.layer or 0, place, self.number or 0, PORTS["head"].index(self.port)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Part({self.name})"

    def __hash__(self) -> int:
        return hash((self.kind, self.layer, self.number, self.port))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and self.order == other.order

    def __lt__(self, other: Part) -> bool:
        return self.order < other.order

    def __le__(self, other: Part) -> bool:
        return self.order <= other.order

    def __gt__(self, other: Part) -> bool:
        return self.order > other.order

    def __ge__(self, other: Part) -> bool:
        return self.order >= other.order


def _complete(part: Part) -> bool:
    """Whether a part has what its kind needs, and nothing else."""
    if part.kind not in WRITTEN:
        return False
    counted = {"layer": part.layer, "number": part.number}
    for name, value in counted.items():
        needed = f"{{{name}}}" in WRITTEN[part.kind]
        if (value is not None) != needed or (value is not None and value < 0):
            return False
    return part.port in PORTS.get(part.kind, (None,))


#: How names are read: as they are written, and as other tools write heads and MLPs.
_READ = [
    *(
        (kind, re.compile(text.format(layer=r"(\d+)", number=r"(\d+)")))
        for kind, text in WRITTEN.items()
    ),
    ("head", re.compile(r"[aL]?(\d+)(?:\.h?|H)(\d+)")),
    ("mlp", re.compile(r"m(\d+)")),
    ("mlp", re.compile(r"L(\d+) mlp")),
]
_PORT = re.compile(r"(.+?)(?:\.(qk|[qkv])|<(qk|[qkv])>)?")


def parse(given: Part | str | Sequence[int]) -> Part:
    """The part that is meant.

    Args:
        given: a part; its name or label; for a head also ``(9, 6)``, ``"9.6"``, ``"a9.h6"``, for
            what it reads ``"a9.h6<q>"``, for an MLP ``"m9"``.

    Raises:
        ArchError: no part is written like this.

    ::

        parse((9, 6)) == parse("9.6") == parse("a9.h6") == Part("head", 9, 6)
        str(parse("a9.h6<q>"))                              # "L9H6.q"
    """
    if isinstance(given, Part):
        return given
    found = _read(given) if isinstance(given, str) else _pair(given)
    if found is None:
        raise ArchError(
            f"{given!r} is not a part of a model; expected a head as (9, 6), '9.6', 'L9H6' or "
            "'a9.h6', what it reads as 'L9H6.q', an MLP as 'M9', 'input' or 'logits'."
        )
    return found


def is_one(given: object) -> bool:
    """Whether one part is meant, and not a list of them."""
    if isinstance(given, str | Part):
        return True
    return isinstance(given, Sequence) and bool(given) and isinstance(given[0], Integral)


def _read(text: str) -> Part | None:
    """The part of this name; a name is made of its layer, its number and a port, in this order."""
    if (split := _PORT.fullmatch(text.strip())) is None:
        return None
    name, *ports = split.groups()
    port = ports[0] or ports[1]
    for kind, pattern in _READ:
        if (match := pattern.fullmatch(name)) and port in PORTS.get(kind, (None,)):
            layer, number, *_ = (*map(int, match.groups()), None, None)
            return Part(kind, layer, number, port)
    return None


def _pair(given: Any) -> Part | None:
    try:
        layer, number = (operator.index(one) for one in given)
    except (TypeError, ValueError):
        return None
    return Part("head", layer, number) if min(layer, number) >= 0 else None
