"""A job whose data are classes of our own, as the engine's are: made, used and dropped inside it.

A plain class with a hand-written `__init__`, a property, a `__len__`, a method that returns its own
kind, an exception, a context that swallows it, and a generator. None is sent, none comes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class RefusedError(Exception):
    """Says why not.

    Attributes:
        reason: that.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Rows:
    """Some rows.

    Attributes:
        ids: their tokens [row, pos].
        scale: what they count.
    """

    def __init__(self, ids: Tensor, scale: float) -> None:
        self.ids = ids
        self.scale = scale

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        """How many positions they have."""
        return self.ids.shape[1]

    def take(self, some: slice) -> Rows:
        """Some of them."""
        return Rows(self.ids[some], self.scale)


class Attempts:
    """Goes through rows one by one, and keeps what is refused.

    Attributes:
        reasons: why rows were refused.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.reasons: list[str] = []

    def __iter__(self) -> Iterator[Rows]:
        """Each of them."""
        for row in range(len(self.rows)):
            yield self.rows.take(slice(row, row + 1))

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, RefusedError):
            self.reasons.append(error.reason)
        return isinstance(error, RefusedError)


def last_logits(nn: Any, rows: Rows) -> Tensor:
    """The best logit at the last position [row], scaled; a row that begins with 9 is refused."""
    with nn.trace(input_ids=rows.ids, use_cache=False):
        with torch.no_grad():
            best = nn.output.logits[:, -1].max(-1).values.clone()
    if bool((rows.ids[:, 0] == 9).any()):
        raise RefusedError(f"a row of {rows.width} begins with 9")
    return rows.scale * best


def values_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """What `last_logits` says of each row, and why it says nothing of some."""
    attempts = Attempts(Rows(payload["ids"], payload["scale"]))
    found = []
    for some in attempts:
        with attempts:
            found.append(last_logits(nn, some))
    return {"best": torch.cat(found).cpu(), "reasons": attempts.reasons}


#: What the job is given: two rows that it works on, and one that it refuses.
PAYLOAD = {"ids": torch.tensor([[3, 4, 5], [9, 4, 5], [6, 4, 5]]), "scale": 0.5}


def check(values: dict[str, Any], here: dict[str, Any]) -> None:
    """Compare what came back with what the job returns in this process."""
    assert values["reasons"] == here["reasons"] == ["a row of 3 begins with 9"]
    assert here["best"].shape == (2,)
    assert here["best"][0] != here["best"][1], "the control: rows differ"
    torch.testing.assert_close(values["best"], here["best"], rtol=1e-4, atol=1e-4)
