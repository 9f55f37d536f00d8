"""A model in whose every run some activations are changed: parts ablated, vectors added.

`edited` wraps the nnsight model, so that whatever a job traces runs under the edits and reads what
they leave; nothing is done to the model itself. An edit is applied where its activation is made,
before the job reads or writes there. Means, and values of other runs, are taken in the job, on the
model as the edits before leave it.

An edit that is not the same at all tokens is told of every pass what that reads
(`nnattr.runs.marks`), and refuses one that does not say.

Inside a job: torch and plain values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.logits import take
from nnattr.runs.marks import Reads, spread
from nnattr.runs.places import folds, read, write
from nnattr.runs.portions import RefusedError

#: What nnsight says where a generation has no further step for an edit, as the last one has not.
ENDED = ".*was never reached: the loop asked for a step the run did not make"
#: Why a pass is refused that does not say what it reads.
UNTOLD = (
    "it runs the model on tokens of its own, and an edit is at chosen positions or of single "
    "prompts; ask the model without that edit"
)


class Change:
    """What one edit does at one place.

    Attributes:
        edit: its number.
        layer: the layer it is in.
        where: the place (see `nnattr.arch.spec.Place`).
        inside: whether that is within the layer's attention.
        mask: which entries of the activation are replaced [width], bool; None where ``value`` is
            added to all of them.
        value: what they become, or what is added [width]; or of each token [1 or prompt, pos,
            replaced entry], from its own first token on.
        marked: whether it is told which tokens it changes.
    """

    def __init__(
        self,
        *,
        edit: int,
        layer: int,
        where: tuple[Any, ...],
        inside: bool,
        mask: Tensor | None,
        value: Tensor,
        marked: bool,
    ) -> None:
        self.edit = edit
        self.layer = layer
        self.where = where
        self.inside = inside
        self.mask = mask
        self.value = value
        self.marked = marked


class Edited:
    """An nnsight model under edits; all else is the model's own.

    Attributes:
        nn: the model whose traces replay them.
        first: the first layer of the pass at hand that is not skipped.
        attends: whether the attention of that layer is run.
        reads: what the pass at hand reads, if it was said.
        marked: whether some edit needs to be told.
        layers: those that some edit changes.
        because: why rows cannot enter between layers under these edits; empty if they can.
    """

    def __init__(self, nn: Any, because: str) -> None:
        self.nn = nn
        self.first = 0
        self.attends = True
        self.reads: Reads | None = None
        self.marked = False
        self.layers: set[int] = set()
        self.because = because

    def __getattr__(self, name: str) -> Any:
        return getattr(self.nn, name)

    def trace(self, *given: Any, reads: Reads | None = None, **named: Any) -> Any:
        """A trace of a pass that reads this (`nnattr.runs.inputs.inputs` says it).

        Raises:
            RefusedError: an edit needs to be told, and was not.
        """
        if self.marked and reads is None:
            raise RefusedError("arch", UNTOLD)
        self.reads = reads
        return self.nn.trace(*given, **named)

    def reaches(self, change: Change) -> bool:
        """Whether the pass at hand runs the place of a change."""
        if change.layer == self.first and change.inside:
            return self.attends
        return change.layer >= self.first


class Further:
    """A model under edits, in whose traces something more is replayed.

    Attributes:
        model: the model under edits, which is told what a pass reads.
        nn: the model whose traces replay all of it.
    """

    def __init__(self, model: Edited, nn: Any) -> None:
        self.model = model
        self.nn = nn

    def __getattr__(self, name: str) -> Any:
        return getattr(self.nn, name)

    def trace(self, *given: Any, reads: Reads | None = None, **named: Any) -> Any:
        """A trace of a pass that reads this: see `Edited.trace`."""
        self.model.reads = reads
        return self.nn.trace(*given, **named)


def further(model: Any, nn: Any) -> Any:
    """The model of `model` with ``nn``'s traces: the latter, unless there are edits."""
    if isinstance(model, Edited):
        return Further(model, nn)
    return Further(model.model, nn) if isinstance(model, Further) else nn


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
            ``vector`` it adds [width] or None, the ``dataset`` that values come from (ids and mask,
            or empty), ``by`` what these are kept (see `values_of`), how many prompts are run at a
            time (``rows``), whether it is ``marked`` and ``because`` (see `Edited`).
    """
    found = Edited(nn, next((edit["because"] for edit in edits if edit["because"]), ""))
    for number, edit in enumerate(edits):
        for change in changes(found, number, edit):
            found.nn = changed(found, change)
            found.layers.add(change.layer)
        found.marked = found.marked or edit["marked"]
    return found


def changes(nn: Any, number: int, edit: dict[str, Any]) -> list[Change]:
    """What an edit does at each of its places."""
    places = edit["places"]
    return [
        Change(
            edit=number,
            layer=layer,
            where=where,
            inside=inside,
            mask=mask,
            value=value,
            marked=edit["marked"],
        )
        for (layer, where, inside, mask), value in zip(places, values_of(nn, edit), strict=True)
    ]


def values_of(nn: Any, edit: dict[str, Any]) -> list[Tensor]:
    """What an edit adds at each of its places, or what it puts there: see `Change.value`.

    Of a dataset that is the mean over all tokens; ``by`` ``"position"`` the mean at each position;
    ``by`` ``"prompt"`` the values of each prompt at each position.
    """
    places = edit["places"]
    if edit["vector"] is not None:
        return [edit["vector"]] * len(places)
    if not edit["dataset"]:
        return [torch.zeros(1)] * len(places)
    prompts = PromptBatch(**edit["dataset"])
    if not edit["by"]:
        return means(nn, [where for _, where, *_ in places], prompts, edit["rows"])
    found = chunks(nn, [where for _, where, *_ in places], prompts, edit["rows"], from_first_token)
    tables = [
        torch.cat(parts)[..., mask.to(parts[0].device)]
        for parts, (*_, mask) in zip(zip(*found, strict=True), places, strict=True)
    ]
    if edit["by"] == "prompt":
        return tables
    count = prompts.mask.sum(1)[:, None] > torch.arange(prompts.width)  # [prompt, own position]
    return [
        table.float().sum(0, keepdim=True) / count.sum(0).to(table.device)[..., None]
        for table in tables
    ]


def changed(model: Edited, change: Change) -> Any:
    """The nnsight model in whose every pass, and every step of a generation, this is done."""
    nn = model.nn
    with nn.edit() as (tracer, found):
        if model.reaches(change):  # a loop that waits for nothing would not end
            for step in tracer.iter[:]:
                apply(nn, change, model.reads, step)
    return found


def apply(nn: Any, change: Change, reads: Reads | None, step: int) -> None:
    """Make a change, inside a trace."""
    folded = change.marked and folds(nn, change.where)
    live = read(nn, change.where, 1)  # places that fold batch and position are left folded
    adds, value = change.mask is None, change.value.to(live)
    there = torch.tensor(True) if change.mask is None else change.mask
    there = there.to(live.device)
    if change.marked and reads is not None:
        chosen, source, own = reads.of(change.edit, live.shape, folded, step)
        there = there & chosen[..., None].to(live.device)
        if value.ndim > 1:
            value = spread(value, source, own, change.mask)
    write(nn, change.where, torch.where(there, live + value if adds else value, live))


def generating(nn: Any, prompts: PromptBatch) -> None:
    """Say that the next trace continues these prompts; nothing to a model without edits."""
    if isinstance(nn, Edited) and prompts.marks is not None:
        nn.reads = Reads(prompts.marks, 0, prompts.width, grows=True)


def begin_at(nn: Any, layer: int = 0, attends: bool = True) -> None:
    """Say that the next passes skip what is below a layer; nothing to a model without edits."""
    if isinstance(nn, Edited):
        nn.first, nn.attends = layer, attends


def why_whole(nn: Any) -> str:
    """Why patched rows need whole passes under a model's edits; empty if they do not."""
    return nn.because if isinstance(nn, Edited) else ""


def edited_layers(nn: Any) -> list[int]:
    """The layers that a model's edits change; none of a model without."""
    return sorted(nn.layers) if isinstance(nn, Edited) else []


def means(nn: Any, places: list[tuple[Any, ...]], prompts: PromptBatch, size: int) -> list[Tensor]:
    """The mean over all tokens of the prompts, padding left out, at each place [width].

    Args:
        nn: the nnsight model.
        places: in forward order.
        prompts: the dataset.
        size: how many are run at a time.
    """
    found = chunks(nn, places, prompts, size, summed)
    count = prompts.mask.sum()
    return [torch.stack(parts).sum(0) / count for parts in zip(*found, strict=True)]


def chunks(
    nn: Any,
    places: list[tuple[Any, ...]],
    prompts: PromptBatch,
    size: int,
    kept: Callable[[Tensor, Tensor], Tensor],
) -> list[list[Tensor]]:
    """Of every ``size`` prompts what is ``kept(activation, mask)`` of each place, in order."""
    found = []
    for start in range(0, len(prompts), size):
        some = prompts.take(slice(start, start + size))
        with nn.trace(**inputs(some)):
            with torch.no_grad():
                here = [kept(read(nn, place, some.width), some.mask) for place in places]
        found.append(here)
    return found


def summed(value: Tensor, mask: Tensor) -> Tensor:
    """The sum over all tokens [width]."""
    return masked(value, mask).sum((0, 1))


def from_first_token(value: Tensor, mask: Tensor) -> Tensor:
    """The activations [prompt, pos, width] from each prompt's own first token on, then zeros."""
    width = mask.shape[1]
    columns = torch.arange(width) + (~mask).sum(1, keepdim=True)
    own = take(value, columns.clamp(max=width - 1))
    return own.masked_fill((columns >= width)[..., None].to(own.device), 0)


def masked(value: Tensor, mask: Tensor) -> Tensor:
    """The activations [prompt, pos, width] in float32, those of padding as zeros."""
    return value.float() * mask.to(value.device)[..., None]
