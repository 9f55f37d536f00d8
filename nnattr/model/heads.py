"""Which heads are meant: named one by one, all of them, or the strongest of a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from nnattr.errors import ArchError, ResultError
from nnattr.graph import Part, is_one, parse
from nnattr.model.model import Model
from nnattr.results import Scores

#: (layer, head), a name such as ``"9.6"``, ``"L9H6"``, ``"a9.h6"``, or a part of a result.
Head: TypeAlias = tuple[int, int] | Sequence[int] | str | Part
#: One head or several, ``"all"`` of them, or scores whose strongest heads are meant.
Heads: TypeAlias = Head | Sequence[Head] | Scores


def chosen(model: Model, heads: Heads, k: int) -> list[tuple[int, int]]:
    """The heads as (layer, head), each once.

    Args:
        model: the heads are checked against it.
        heads: ``"all"``; a head or a list of heads; or `Scores` over layer and head,
            of which the ``k`` most positive and the ``k`` most negative cells are meant (in that
            order, zero being neither).
        k: see ``heads``.

    Raises:
        ArchError: the model has no such head.
        ResultError: the scores are not about heads, or none is different from zero.
    """
    if isinstance(heads, Scores):
        found = _strongest(heads, k)
    elif isinstance(heads, str) and heads == "all":
        found = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    else:
        found = [_parsed(one) for one in ([heads] if is_one(heads) else heads)]  # type: ignore[list-item, union-attr]
    for layer, head in found:
        if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
            raise ArchError(
                f"{model.name} has no head ({layer}, {head}): it has {model.n_layers} layers of "
                f"{model.n_heads} heads, both counted from 0."
            )
    if not found:
        raise ArchError("No heads were given; name at least one, or 'all'.")
    return list(dict.fromkeys(found))


def _strongest(scores: Scores, k: int) -> list[tuple[int, int]]:
    dims = scores.cell_dims
    if "layer" not in dims or "head" not in dims:
        raise ResultError(
            f"Heads are chosen from scores over layer and head, and these are over {dims}."
        )
    at = dims.index("layer"), dims.index("head")
    best = [cell for cell in scores.top(k, by="value") if cell.value > 0]
    worst = [cell for cell in scores.top(k, by="-value") if cell.value < 0]
    if not (best or worst):
        raise ResultError("None of these scores differs from zero, so no head stands out.")
    return [(int(cell.index[at[0]]), int(cell.index[at[1]])) for cell in (*best, *worst)]


def _parsed(head: Head) -> tuple[int, int]:
    part = parse(head)
    if part.kind != "head" or part.port is not None:
        raise ArchError(f"{head!r} is not a head; expected (9, 6), '9.6', 'L9H6' or 'a9.h6'.")
    assert part.layer is not None
    assert part.number is not None
    return part.layer, part.number
