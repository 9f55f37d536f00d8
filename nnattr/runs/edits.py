"""A model in whose every run some activations are changed: parts ablated, vectors added.

`edited` wraps the nnsight model, so that whatever a job traces runs under the edits and reads what
they leave; nothing is done to the model itself. An edit is applied where its activation is made,
before the job reads or writes there. Means are taken in the job, on the model as the edits before
leave it.

Inside a job: torch and plain values.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.places import read, write

#: What nnsight says where a generation has no further step for an edit, as the last one has not.
ENDED = ".*was never reached: the loop asked for a step the run did not make"


class Change:
    """What one edit does at one place.

    Attributes:
        layer: the layer it is in.
        where: the place (see `nnattr.arch.spec.Place`).
        inside: whether that is within the layer's attention.
        mask: which entries of the activation are replaced [width], bool; None where ``value`` is
            added to all of them.
        value: what they become, or what is added [width].
    """

    def __init__(
        self, layer: int, where: tuple[Any, ...], inside: bool, mask: Tensor | None, value: Tensor
    ) -> None:
        self.layer = layer
        self.where = where
        self.inside = inside
        self.mask = mask
        self.value = value


class Edited:
    """An nnsight model under edits; all else is the model's own.

    Attributes:
        nn: the model whose traces replay them.
        first: the first layer of the pass at hand that is not skipped.
        attends: whether the attention of that layer is run.
        because: why rows cannot enter between layers under these edits; empty if they can.
    """

    def __init__(self, nn: Any, because: str) -> None:
        self.nn = nn
        self.first = 0
        self.attends = True
        self.because = because

    def __getattr__(self, name: str) -> Any:
        return getattr(self.nn, name)

    def reaches(self, change: Change) -> bool:
        """Whether the pass at hand runs the place of a change."""
        if change.layer == self.first and change.inside:
            return self.attends
        return change.layer >= self.first


def edited_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """Another job, under edits."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=ENDED)
        return payload["job"](edited(nn, payload["edits"]), tick, **payload["asked"])


def edited(nn: Any, edits: list[dict[str, Any]]) -> Edited:
    """The model under edits, applied in this order.

    Args:
        nn: the nnsight model.
        edits: of each the ``places`` it changes, as plain values [layer, where, inside, mask], the
            ``vector`` it adds [width] or None, the ``dataset`` of a mean (ids and mask, or empty),
            how many of its prompts are run at a time (``rows``), and ``because`` (see `Edited`).
    """
    found = Edited(nn, next((edit["because"] for edit in edits if edit["because"]), ""))
    for edit in edits:
        for change in changes(found, edit):
            found.nn = changed(found, change)
    return found


def changes(nn: Any, edit: dict[str, Any]) -> list[Change]:
    """What an edit does at each of its places."""
    places = edit["places"]
    if edit["vector"] is not None:
        values = [edit["vector"]] * len(places)
    elif edit["dataset"]:
        prompts = PromptBatch(**edit["dataset"])
        values = means(nn, [where for _, where, *_ in places], prompts, edit["rows"])
    else:
        values = [torch.zeros(1)] * len(places)
    return [
        Change(layer, where, inside, mask, value)
        for (layer, where, inside, mask), value in zip(places, values, strict=True)
    ]


def changed(model: Edited, change: Change) -> Any:
    """The nnsight model in whose every pass, and every step of a generation, this is done."""
    nn = model.nn
    with nn.edit() as (tracer, found):
        if model.reaches(change):  # a loop that waits for nothing would not end
            for _ in tracer.iter[:]:
                apply(nn, change)
    return found


def apply(nn: Any, change: Change) -> None:
    """Make a change, inside a trace."""
    live = read(nn, change.where, 1)  # places that fold batch and position are left folded
    value = change.value.to(live)
    new = (
        live + value
        if change.mask is None
        else torch.where(change.mask.to(live.device), value, live)
    )
    write(nn, change.where, new)


def begin_at(nn: Any, layer: int = 0, attends: bool = True) -> None:
    """Say that the next passes skip what is below a layer; nothing to a model without edits."""
    if isinstance(nn, Edited):
        nn.first, nn.attends = layer, attends


def why_whole(nn: Any) -> str:
    """Why patched rows need whole passes under a model's edits; empty if they do not."""
    return nn.because if isinstance(nn, Edited) else ""


def means(nn: Any, places: list[tuple[Any, ...]], prompts: PromptBatch, size: int) -> list[Tensor]:
    """The mean over all tokens of the prompts, padding left out, at each place [width].

    Args:
        nn: the nnsight model.
        places: in forward order.
        prompts: the dataset.
        size: how many are run at a time.
    """
    total = [torch.zeros(1)] * len(places)
    for start in range(0, len(prompts), size):
        some = prompts.take(slice(start, start + size))
        with nn.trace(**inputs(some)):
            with torch.no_grad():
                sums = [
                    masked(read(nn, place, some.width), some.mask).sum((0, 1)) for place in places
                ]
        total = [old.to(new) + new for old, new in zip(total, sums, strict=True)]
    return [value / prompts.mask.sum() for value in total]


def masked(value: Tensor, mask: Tensor) -> Tensor:
    """The activations [prompt, pos, width] in float32, those of padding as zeros."""
    return value.float() * mask.to(value.device)[..., None]
