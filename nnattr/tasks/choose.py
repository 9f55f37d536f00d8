"""Choosing examples honestly: what the model gets right, a record of the rest, two halves."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from nnattr.errors import TaskError
from nnattr.tasks.examples import Examples
from nnattr.tasks.form import Drop
from nnattr.tasks.predictions import Predictions, Predictor


@dataclass(frozen=True)
class Prediction:
    """What the model says after one clean prompt.

    Attributes:
        prompt: the prompt.
        tokens: the most probable next tokens as text, best first.
        probs: their probabilities.
        log_odds: how much more probable the answers are than the wrong answers, in nats; None if
            the task lacks either.
    """

    prompt: str
    tokens: tuple[str, ...]
    probs: tuple[float, ...]
    log_odds: float | None


Keep: TypeAlias = str | tuple[str, str] | Callable[[Prediction], bool]


def judged(task: Examples, model: Predictor, keep: Keep) -> tuple[list[int], tuple[Drop, ...]]:
    """The examples to keep, and why the others are not; see `Task.filter`."""
    if not task.encoded_by(model.tokenizer):
        raise TaskError(
            "The task was encoded with another tokenizer than the model's; make it with "
            "tokenizer=model.tokenizer."
        )
    if keep == "correct" and task.sequence_ids:
        reasons = _not_said(task, model)
    elif isinstance(keep, tuple):
        reasons = _contrast(task, model, keep)
    else:
        reasons = [_reason(one, keep, task, i) for i, one in enumerate(_said(task, model))]
    kept = [i for i, reason in enumerate(reasons) if reason is None]
    drops = tuple(
        Drop(prompt, reason) for prompt, reason in zip(task.clean, reasons, strict=True) if reason
    )
    if not kept:
        common = Counter(drop.why for drop in drops).most_common(3)
        raise TaskError(
            f"None of the {len(task)} examples of {task.name} is kept by keep={keep!r}: "
            + "; ".join(f"{why} ({n} times)" for why, n in common)
            + "."
        )
    return kept, drops


def halves(task: Examples, seed: int) -> tuple[list[int], list[int]]:
    """Two disjoint halves of the examples; see `Task.split`."""
    same: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    sides = [side for side in (task.clean_tokens, task.twin_tokens) if side is not None]
    for i, prompts in enumerate(zip(*(side.rows for side in sides), strict=True)):
        same.setdefault(tuple(map(tuple, prompts)), []).append(i)
    if len(same) < 2:
        raise TaskError(
            f"The {len(task)} examples of {task.name} are all the same; nothing to split."
        )
    groups = list(same.values())
    random.Random(seed).shuffle(groups)
    parts: tuple[list[int], list[int]] = ([], [])
    for group in groups:
        min(parts, key=len).extend(group)
    return sorted(parts[0]), sorted(parts[1])


def _reason(one: Prediction, keep: Any, task: Examples, i: int) -> str | None:
    """Why the example is dropped, or None."""
    if callable(keep):
        name = getattr(keep, "__name__", repr(keep))
        try:
            return None if keep(one) else f"refused by {name}"
        except Exception as error:
            raise TaskError(
                f"keep={name} failed on example {i} ({type(error).__name__}: {error}); expected a "
                "function of one Prediction that says whether to keep it."
            ) from error
    best, prob = one.tokens[0], one.probs[0]
    if keep != "correct":
        return None if best == keep else f"predicts {best!r}, not {keep!r}"
    if not task.answer_ids:
        raise TaskError(
            'keep="correct" needs answers, and the task has none; give a token instead.'
        )
    if one.log_odds is not None:
        right = one.log_odds > 0
        return None if right else f"the wrong answers are more probable ({one.log_odds:+.2f} nats)"
    words = task.answers[i]
    return None if best in words else f"predicts {best!r} ({prob:.0%}), not {' or '.join(words)!r}"


def _said(task: Examples, model: Predictor) -> list[Prediction]:
    """What the model says after each clean prompt."""
    last = 1 + max(task.appended)
    asked = [
        right + wrong for right, wrong in zip(task.answer_ids, task.wrong_answer_ids, strict=False)
    ]
    found = model.predict(task.clean_tokens, asked=tuple(asked), last=last)
    said = []
    for i, prompt in enumerate(task.clean):
        at = last - 1 - task.appended[i]
        right = len(task.answer_ids[i]) if asked else 0
        values = found.asked[i, at, : len(asked[i])].tolist() if asked else []
        said.append(
            Prediction(
                prompt,
                tuple(model.tokenizer.decode([token]) for token in found.ids[i, at].tolist()),
                tuple(found.probs[i, at].tolist()),
                _log_sum(values[:right]) - _log_sum(values[right:]) if asked else None,
            )
        )
    return said


def _contrast(task: Examples, model: Predictor, keep: tuple[str, str]) -> list[str | None]:
    """For each pair, how its predictions differ from the two wanted, or None."""
    last = 1 + max(task.appended)
    sides = {"clean": task.clean_tokens, "corrupted": task.corrupted_tokens}
    reasons: list[str | None] = [None] * len(task)
    for (side, tokens), wanted in zip(sides.items(), keep, strict=True):
        found = model.predict(tokens, top_k=1, last=last)
        for i in range(len(task)):
            best = model.tokenizer.decode([_best(found, i, last - 1 - task.appended[i])])
            if best != wanted and reasons[i] is None:
                reasons[i] = f"predicts {best!r} after the {side} prompt, not {wanted!r}"
    return reasons


def _not_said(task: Examples, model: Predictor) -> list[str | None]:
    """For each answer of several tokens, the first that the model would not say, or None."""
    last = max(map(len, task.sequence_ids))
    found = model.predict(task.clean_tokens, top_k=1, last=last)
    reasons: list[str | None] = []
    for i, wanted in enumerate(task.sequence_ids):
        said = [_best(found, i, at) for at in range(last - len(wanted), last)]
        wrong = [pair for pair in zip(said, wanted, strict=True) if pair[0] != pair[1]]
        texts = [model.tokenizer.decode([token]) for token in (wrong[0] if wrong else ())]
        reasons.append("predicts {!r}, not {!r}".format(*texts) if wrong else None)
    return reasons


def _best(found: Predictions, example: int, at: int) -> int:
    return int(found.ids[example, at, 0])


def _log_sum(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))
