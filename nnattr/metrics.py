"""Metrics: one number per example, read from the logits; higher means more of the behaviour.

A metric is any function ``metric(logits, batch) -> [example]`` with ``logits`` of shape
[example, pos, d_vocab] (the last token of every prompt is position -1). ``batch`` has the
attributes

- ``answers``, ``wrong_answers``: token ids [example, word]; rows with fewer words are filled up,
  and ``answers_mask``, ``wrong_answers_mask`` say which entries count;
- ``sequence``, ``sequence_mask``: on tasks whose answers are sequences, the answer's token ids
  [example, token], aligned on the right: the last one is predicted at position -1;
- ``ids``, ``mask``: the tokens of the run [example, pos], and which are not padding;
- ``clean_logits``: the clean run's own logits at the last position [example, d_vocab].

A metric may say which tokens' logits it reads, in a class variable ``reads`` that names fields of
token ids (``("answers", "wrong_answers")``). Then only these are computed: the vocabulary of the
logits that it is given is these tokens alone, and the ids in ``batch`` count in it. Only metrics
that come out the same need apply: a difference of logits does, a probability does not.

A metric may be a number for every position rather than one: it says so in ``per_position = True``,
and returns [example, pos], NaN where it has none. Then cells are ablated or patched at once
(`ablate_together`), and the result has an axis ``pos``.

A metric that compares two answers of several tokens says so in a class variable ``contrasts``:
every example is run once with each answer behind its prompt, the metric sees one of them as
``sequence``, and the second number is taken from the first.

The classes here are such functions with a name. Metrics travel to the server: torch and the
standard library only. They compute in float32 whatever the model's dtype.

Two groups of words, say six ways to say yes and five to say no, can be compared in three ways,
which agree in sign for single words but need not for groups:

====================  ==================================  =======================================
`LogitDiff`           mean of logits                      linear, so it has a `direction`; one very
                                                          improbable word can turn its sign
`GroupLogProbDiff`    log-odds of the groups              what the model will say; unbounded
`GroupProbDiff`       difference of probabilities         the same sign, between -1 and 1; saturates
====================  ==================================  =======================================
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from operator import index
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from nnattr.axes import Logits, PerExample
from nnattr.errors import MetricError

Metric: TypeAlias = Callable[[Any, Any], Any]
#: For each example the weight of each token's logit in a linear metric.
Weights: TypeAlias = tuple[dict[int, float], ...]


@dataclass(frozen=True)
class LogitDiff:
    r"""How much the model prefers the answer to the wrong answer.

    :math:`m = \ell(\text{answer}) - \ell(\text{wrong})` at the last position, in logits; a group of
    answers counts with the mean of its logits. Linear in the residual stream up to the final norm,
    which makes it the field's usual choice (Wang et al. 2022). It does not see whether either
    answer is probable at all.
    """

    last_only: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("answers", "wrong_answers")
    reads: ClassVar[tuple[str, ...]] = ("answers", "wrong_answers")

    def __call__(self, logits: Logits, batch: Any) -> PerExample:
        """Measure each example."""
        last = logits[:, -1].float()
        right = group_mean(last, batch.answers, batch.answers_mask)
        return right - group_mean(last, batch.wrong_answers, batch.wrong_answers_mask)

    def weights(self, task: Any) -> Weights:
        """For each example what each token's logit counts: the metric as a linear function."""
        sides = zip(task.answer_ids, task.wrong_answer_ids, strict=True)
        return tuple(
            {i: 1 / len(right) for i in right} | {i: -1 / len(wrong) for i in wrong}
            for right, wrong in sides
        )


#: The same metric under the name that says what it does with groups.


@dataclass(frozen=True)
class GroupLogProbDiff:
    r"""How much more probable the group of answers is than the group of wrong answers, in nats.

    :math:`m = \log \sum_{a} p(a) - \log \sum_{w} p(w)` at the last position: the log-odds of the
    two. The normaliser cancels, so for single words it equals `LogitDiff`. Not linear for groups.
    """

    last_only: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("answers", "wrong_answers")
    reads: ClassVar[tuple[str, ...]] = ("answers", "wrong_answers")
    near: ClassVar[str] = "LogitDiff"

    def __call__(self, logits: Logits, batch: Any) -> PerExample:
        """Measure each example."""
        right, wrong = group_log_probs(logits, batch)
        return right - wrong


@dataclass(frozen=True)
class GroupProbDiff:
    r"""The probability of the group of answers minus that of the wrong answers, between -1 and 1.

    :math:`m = \sum_{a} p(a) - \sum_{w} p(w)` at the last position. Saturates, as `Prob` does.
    """

    last_only: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("answers", "wrong_answers")
    near: ClassVar[str] = "LogitDiff"

    def __call__(self, logits: Logits, batch: Any) -> PerExample:
        """Measure each example."""
        right, wrong = group_log_probs(logits, batch)
        return right.exp() - wrong.exp()


@dataclass(frozen=True)
class LogProb:
    r"""The log-probability of the answer (of the whole group of answers, where it is one), in nats.

    :math:`m = \log \sum_{a} p(a)` at the last position.
    """

    last_only: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("answers",)

    def __call__(self, logits: Logits, batch: Any) -> PerExample:
        """Measure each example."""
        return group_log_prob(logits[:, -1].float(), batch.answers, batch.answers_mask)


@dataclass(frozen=True)
class Prob:
    """The probability of the answer (or of the group of answers), between 0 and 1.

    Saturates: near 0 and 1 its gradient vanishes, and attribution patching underestimates.
    """

    last_only: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("answers",)

    def __call__(self, logits: Logits, batch: Any) -> PerExample:
        """Measure each example."""
        return group_log_prob(logits[:, -1].float(), batch.answers, batch.answers_mask).exp()


@dataclass(frozen=True)
class SequenceLogProb:
    r"""The log-probability of an answer of several tokens, said in one go, in nats.

    :math:`m = \sum_t \log p(a_t \mid \text{prompt}, a_1 \ldots a_{t-1})`, teacher-forced: the task
    (``Task.from_pairs(..., sequences=True)``) holds the answer after the prompt, the same one in
    both runs. Longer answers are less probable; ``per_token=True`` takes the mean over the tokens
    instead, for tasks whose answers differ in length.
    """

    per_token: bool = False
    last_only: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("sequence_ids",)

    def __post_init__(self) -> None:
        _require_bool(self, self.per_token)

    def __call__(self, logits: Logits, batch: Any) -> PerExample:
        """Measure each example."""
        return sequence_log_prob(logits, batch, self.per_token)


@dataclass(frozen=True)
class SequenceLogProbDiff:
    r"""How much more probable one answer of several tokens is than another, in nats.

    :math:`m = \sum_t \log p(a_t \mid \text{prompt}, a_{<t}) - \sum_t \log p(w_t \mid
    \text{prompt}, w_{<t})`, teacher-forced: the task (``Task.from_pairs(..., sequences=True)``)
    has answers and wrong answers. For minimal pairs of sentences, as in BLiMP, the prompt is what
    the two have in common (`Task.from_sentences`), so :math:`m` is the difference of the
    sentences' log-probabilities. ``per_token=True`` takes means over the tokens instead.

    Each example is run twice, once with each answer, at twice the cost; `__call__` measures one of
    them.
    """

    per_token: bool = False
    last_only: ClassVar[bool] = False
    contrasts: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("sequence_ids", "wrong_sequence_ids")

    def __post_init__(self) -> None:
        _require_bool(self, self.per_token)

    def __call__(self, logits: Logits, batch: Any) -> PerExample:
        """Measure each example with the answer that stands behind it."""
        return sequence_log_prob(logits, batch, self.per_token)


@dataclass(frozen=True)
class KL:
    r"""The divergence of the run from the clean run at the last position, in nats.

    :math:`m = \sum_v p_{clean}(v) \log (p_{clean}(v) / p(v))`; 0 for the clean run itself. Its
    gradient at the clean run is 0, so attribution patching in the noising direction says 0
    everywhere; use denoising there.
    """

    last_only: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, logits: Logits, batch: Any) -> PerExample:
        """Measure each example."""
        run = logits[:, -1].float().log_softmax(-1)
        clean = batch.clean_logits.float().log_softmax(-1)
        return (clean.exp() * (clean - run)).sum(-1)


@dataclass(frozen=True)
class Loss:
    """Mean next-token cross-entropy over the prompt's own tokens, in nats per token.

    Higher is *worse* for the model, unlike the other metrics. ``last`` counts only that many of the
    last tokens: those of a repetition, say. ``per_position=True`` gives every token's loss at the
    position that predicts it, in place of their mean.
    """

    last: int | None = None
    per_position: bool = False
    last_only: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        _require_bool(self, self.per_position, "per_position")
        if self.last is None:
            return
        try:
            last = index(self.last)  # of any integer type
        except TypeError:
            last = 0
        if isinstance(self.last, bool) or last < 1:
            raise MetricError(
                f"Loss(last={self.last!r}) counts no tokens; expected a whole number from 1 on, or "
                "None for all."
            )
        object.__setattr__(self, "last", last)

    def __repr__(self) -> str:
        per_position = ", per_position=True" if self.per_position else ""
        return f"Loss(last={self.last}{per_position})"

    def __call__(self, logits: Logits, batch: Any) -> PerExample:
        """Measure each example, or each of its positions."""
        predicted = logits[:, :-1].float().log_softmax(-1)
        loss = -predicted.gather(-1, batch.ids[:, 1:, None])[..., 0]
        counted = batch.mask[:, 1:] & batch.mask[:, :-1]
        if self.last is not None:
            loss, counted = loss[:, -self.last :], counted[:, -self.last :]
        if self.per_position:
            found = torch.full_like(batch.mask, float("nan"), dtype=loss.dtype)
            found[:, -1 - loss.shape[1] : -1] = loss.masked_fill(~counted, float("nan"))
            return found
        return (loss * counted).sum(-1) / counted.sum(-1)


#: What to do about a task that lacks a field.
SEQUENCE_HINTS = {
    "sequence_ids": "make it with sequences=True",
    "wrong_sequence_ids": "make it with sequences=True and wrong_answers",
}

#: The metrics by name, as the command line and configuration files know them.
METRICS: dict[str, Callable[..., Metric]] = {
    "LogitDiff": LogitDiff,
    "GroupLogProbDiff": GroupLogProbDiff,
    "GroupProbDiff": GroupProbDiff,
    "SequenceLogProb": SequenceLogProb,
    "SequenceLogProbDiff": SequenceLogProbDiff,
    "LogProb": LogProb,
    "Prob": Prob,
    "KL": KL,
    "Loss": Loss,
}


def sequence_log_prob(logits: Tensor, batch: Any, per_token: bool) -> Tensor:
    """The log-probability of each example's sequence, or its mean over the tokens."""
    wanted, counted = batch.sequence, batch.sequence_mask
    predicted = logits[:, -wanted.shape[1] :].float().log_softmax(-1)
    found = (predicted.gather(-1, wanted[..., None])[..., 0] * counted).sum(-1)
    return found / counted.sum(-1) if per_token else found


def group_mean(logits: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """The mean logit of each example's words [example, word]."""
    found = logits.gather(-1, words).where(mask, torch.zeros((), device=logits.device))
    return found.sum(-1) / mask.sum(-1)


def group_log_prob(logits: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """The log-probability that the next token is one of each example's words."""
    found = logits.log_softmax(-1).gather(-1, words)
    return found.masked_fill(~mask, float("-inf")).logsumexp(-1)


def group_log_probs(logits: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
    """The same for the answers and for the wrong answers, at the last position."""
    last = logits[:, -1].float()
    right = group_log_prob(last, batch.answers, batch.answers_mask)
    return right, group_log_prob(last, batch.wrong_answers, batch.wrong_answers_mask)


def direction(metric: Metric, task: Any) -> Weights:
    """A linear metric as weights of logits: its direction, once they weigh the unembedding.

    A metric of your own is linear if it has a method ``weights(task)``, as `LogitDiff` has.

    Returns:
        for each example ``{token id: weight}`` of the logits at the last position.

    Raises:
        MetricError: the metric is not linear (the message names the nearest one that is), its
            ``weights`` failed or are none, or the task lacks what it needs.
    """
    if not hasattr(metric, "weights"):
        near = getattr(metric, "near", "LogitDiff")
        raise MetricError(
            f"{describe(metric)} is not linear in the logits, so no direction of the residual "
            f"stream stands for it. The nearest linear metric is {near}()."
        )
    check(metric, task)
    try:
        weights = metric.weights(task)  # type: ignore[attr-defined]
    except Exception as error:  # whatever a user's function may raise
        raise MetricError(
            f"{describe(metric)}.weights(task) failed: {type(error).__name__}: {error}"
        ) from error
    if not _are_weights(weights, len(task)):
        raise MetricError(
            f"{describe(metric)}.weights(task) is {type(weights).__name__} {str(weights)[:80]}; "
            f"expected a tuple of {len(task)} dicts, for each example {{token id: weight}}."
        )
    return weights


def _are_weights(weights: Any, n: int) -> bool:
    """Whether these are weights of logits for ``n`` examples."""
    return (
        isinstance(weights, tuple | list)
        and len(weights) == n
        and all(isinstance(row, dict) and row for row in weights)
        and all(
            isinstance(token, Integral) and isinstance(weight, Real) and math.isfinite(weight)
            for row in weights
            for token, weight in row.items()
        )
    )


def check(metric: Metric, task: Any) -> None:
    """Raise `MetricError` for an object that is not a metric, or one whose needs the task lacks."""
    if not callable(metric) or isinstance(metric, type):
        raise MetricError(
            f"{metric!r} is not a metric; pass an instance such as LogitDiff(), or a function "
            "(logits, batch) -> [example]."
        )
    if not _takes_logits_and_batch(metric):
        raise MetricError(
            f"{describe(metric)} takes {inspect.signature(metric)}, and a metric is called as "
            "metric(logits, batch): logits are [row, pos, token], batch has the answers' ids and "
            "the tokens of each row. Write it as def metric(logits, batch), whether it reads batch "
            "or not."
        )
    if task.sequence_ids and getattr(metric, "last_only", False):
        raise MetricError(
            f"{describe(metric)} reads one token after the prompt, and the task's answers are "
            "sequences; use SequenceLogProb(), or a task made without sequences=True."
        )
    for name in getattr(metric, "needs", ()):
        if not getattr(task, name):
            hint = f"; {SEQUENCE_HINTS[name]}" if name in SEQUENCE_HINTS else ""
            raise MetricError(f"{describe(metric)} needs {name}, and the task has none{hint}.")


def _takes_logits_and_batch(metric: Metric) -> bool:
    """Whether it can be called with two arguments, as far as it says what it takes."""
    try:
        inspect.signature(metric).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # it does not say
        return True
    return True


def answer_fields(task: Any) -> dict[str, Tensor]:
    """What ``batch`` holds of the task's answers, as tensors: see the module."""
    packed: dict[str, Tensor] = {}
    if task.answer_ids:
        packed["answers"], packed["answers_mask"] = _filled(task.answer_ids)
    if task.wrong_answer_ids:
        packed["wrong_answers"], packed["wrong_answers_mask"] = _filled(task.wrong_answer_ids)
    if task.sequence_ids:
        backwards = _filled([row[::-1] for row in task.sequence_ids])
        packed["sequence"], packed["sequence_mask"] = (side.flip(1) for side in backwards)
    return packed


def read_tokens(
    metric: Metric, fields: dict[str, Tensor]
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The tokens whose logits a metric reads, and the answer fields with ids that index these.

    None, and the fields as they are, for a metric that reads them all.

    Raises:
        MetricError: it says that it reads what the task does not have.
    """
    names = getattr(metric, "reads", ())
    if not names:
        return None, fields
    absent = [name for name in names if f"{name}_mask" not in fields]
    if absent:
        raise MetricError(
            f"{describe(metric)} says that it reads {', '.join(absent)}, which the task does not "
            f"have; it has {', '.join(name for name in fields if f'{name}_mask' in fields)}."
        )
    tokens = torch.cat([fields[name][fields[f"{name}_mask"]] for name in names]).unique()
    counted = {name: torch.searchsorted(tokens, fields[name]) for name in names}
    return tokens, fields | {name: ids.clamp(max=len(tokens) - 1) for name, ids in counted.items()}


def _require_bool(metric: Metric, given: Any, argument: str = "per_token") -> None:
    if not isinstance(given, bool):
        name = type(metric).__name__
        raise MetricError(f"{name}({argument}={given!r}): expected True or False.")


def _filled(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The rows as one tensor, filled up on the right with 0, and which entries are theirs."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return ids, torch.tensor([[i < len(row) for i in range(width)] for row in rows])


def describe(metric: Metric) -> str:
    """The metric's name as results record it."""
    ours = type(metric).__name__ in METRICS
    return repr(metric) if ours else getattr(metric, "__qualname__", repr(metric))
