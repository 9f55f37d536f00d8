"""The metric of rows: what a user's function is told, and what it may not be.

A metric is somebody's own code. Whatever it raises is said as its error, with its line; it is one
number for each row, or one for each of its positions; and that number is the row's own, whichever
rows are beside it.

Inside a job: torch and plain values.
"""

from __future__ import annotations

import traceback

import torch
from torch import Tensor

from nnattr.engine.question import Question
from nnattr.runs.inputs import PromptBatch
from nnattr.runs.portions import RefusedError, ran_out
from nnattr.runs.tolerance import pass_tolerance


class Batch:
    """What a metric is told besides the logits; its attributes are listed in `nnattr.metrics`."""

    def __init__(self, fields: dict[str, Tensor]) -> None:
        self.__dict__.update(fields)


def measure(
    question: Question,
    prompts: PromptBatch,
    logits: Tensor,
    clean: Tensor,
    example: Tensor | None = None,
) -> Tensor:
    """The metric of each row [row], or at each of its places [row, place].

    Row *i* belongs to ``example[i]``, or to example *i*.

    Args:
        question: whose metric it is.
        prompts: of all examples.
        logits: of the rows [row, pos, token].
        clean: the clean run's at the last position [example, token].
        example: whose rows they are [row].

    Raises:
        RefusedError: the metric failed, or is not one number for each row, or for each position.
    """
    value, problem = measured(question, prompts, logits, clean, example)
    if problem:
        raise RefusedError("metric", problem)
    return value.detach()


def measured(
    question: Question,
    prompts: PromptBatch,
    logits: Tensor,
    clean: Tensor,
    example: Tensor | None = None,
) -> tuple[Tensor, str]:
    """The same, and what is wrong with it, if anything is: inside a trace nothing may be raised."""
    fields = {**question.answers, "ids": prompts.ids, "mask": prompts.mask, "clean_logits": clean}
    fields = {name: value.to(logits.device) for name, value in fields.items()}
    if example is not None:
        rows = example.to(logits.device)
        fields = {name: value[rows] for name, value in fields.items()}
    try:
        value = question.metric(logits, Batch(fields))
    except Exception as error:  # whatever a user's function may raise
        if ran_out(error):
            raise
        return torch.empty(0), failure(error, logits) + hint(logits, prompts)
    shape = logits.shape[: 1 if question.places is None else 2]
    if not isinstance(value, Tensor) or value.shape != shape or value.is_complex():
        given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        each = "" if question.places is None else f", at each of {logits.shape[1]} positions"
        said = f"expected one number for each of {len(logits)} rows{each}, got {given}"
        return torch.empty(0), said + hint(logits, prompts)
    value = value if value.is_floating_point() else value.float()
    return (value if question.places is None else at_places(question.places, value, example)), ""


def at_places(places: Tensor, value: Tensor, example: Tensor | None) -> Tensor:
    """A number per column [row, pos] as one per place [row, place]; NaN where a row has none."""
    there = (places if example is None else places[:, example]).transpose(0, 1).to(value.device)
    found = value.gather(1, there.byte().argmax(-1))
    return found.masked_fill(~there.any(-1), float("nan"))


def failure(error: Exception, logits: Tensor) -> str:
    """What a metric raised, and the line of its own code that did."""
    below = traceback.extract_tb(error.__traceback__)[1:]
    own = [frame for frame in below if "site-packages" not in frame.filename]
    lines = [f", in line {frame.lineno}: {frame.line}" for frame in own[-1:]]
    said = f"it failed on logits of shape {tuple(logits.shape)}, [row, pos, token]: "
    return f"{said}{type(error).__name__}: {error}{''.join(lines)}"


def hint(logits: Tensor, prompts: PromptBatch) -> str:
    """What a metric that serves the examples may not have expected of other rows."""
    if len(logits) == len(prompts):
        return ""
    return (
        f". It is asked about patched runs as well, which are not the {len(prompts)} examples in "
        "their order: what belongs to a row is in batch (batch.ids, batch.answers, ...)"
    )


def require_own_numbers(question: Question, logits: Tensor, clean: Tensor, metric: Tensor) -> None:
    """Refuse a metric whose number for an example depends on the other rows, or on their order.

    Patched rows come in any number and order, so its numbers would be others, without a word.

    Args:
        question: whose metric it is.
        logits: of the base run [example, pos, token].
        clean: the clean run's at the last position [example, token].
        metric: of the base run [example].
    """
    some = torch.tensor([len(question) - 1, 0, 0])
    rows = logits.detach()[some.to(logits.device)]
    rows[2] = rows[2].flip(-1)  # a run that is no example's
    found = measure(question, question.base, rows, clean, some)[:2]
    expected = metric.detach()[some[:2].to(metric.device)]
    largest = metric.detach().nan_to_num().abs().max().clamp(min=1e-2)
    near = float((pass_tolerance(logits) * largest).nan_to_num())
    if not torch.allclose(found, expected, rtol=0, atol=near, equal_nan=True):
        raise RefusedError(
            "metric",
            f"an example's number depends on the rows beside it: {found.tolist()} for the last "
            f"example and the first beside another run, {expected.tolist()} among all "
            f"{len(question)}. Compute it from that row's logits and from batch alone",
        )
    _require_own_positions(question, logits, clean, metric, near)


def _require_own_positions(
    question: Question, logits: Tensor, clean: Tensor, metric: Tensor, near: float
) -> None:
    """Refuse a metric that reads padding: it would be another one for each batch.

    The prompt with the most padding, which stands on the left, is to have its number without it, or
    with other logits there.
    Numbers for every position are not tried: where they stand is said in columns of the batch.
    """
    padding = (~question.base.mask).sum(1)
    most = padding.argmax()[None].cpu()
    pad = int(padding[most])
    if not pad or logits.shape[1] != question.base.width or question.places is not None:
        return
    row = logits.detach()[most.to(logits.device)]
    alone, problem = measured(question, question.base.cut(pad), row[:, pad:], clean, most)
    if problem:  # it needs the width of the batch, as answers of several tokens do
        row = torch.cat([row[:, :pad].flip(-1), row[:, pad:]], 1)
        alone = measure(question, question.base, row, clean, most)
    beside = metric.detach()[most.to(metric.device)]
    if not torch.allclose(alone, beside, rtol=0, atol=near, equal_nan=True):
        raise RefusedError(
            "metric",
            f"it reads padding: {alone.item()} for a prompt by itself, {beside.item()} with the "
            f"{pad} tokens before it that fill it up to the length of the others. Count positions "
            "from the end (logits[:, -1] is each prompt's last), or use batch.mask",
        )
