"""Choosing examples honestly: what the model gets right, a record of the rest, two halves."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from nnattr.errors import TaskError
from nnattr.tasks.answers import added_tokens
from nnattr.tasks.examples import Examples
from nnattr.tasks.form import Drop, Form
from nnattr.tasks.predictions import Predictions, Predictor
from nnattr.tokens import token_texts


@dataclass(frozen=True)
class Prediction:
    """What the model says after one clean prompt.

    Attributes:
        prompt: the prompt.
        tokens: the most probable next tokens as text, best first.
        probs: their probabilities.
        log_odds: how much more probable the answers are than the wrong answers, in nats; None if
            the task lacks either.
        ids: the same tokens by their ids: two tokens may look alike.
    """

    prompt: str
    tokens: tuple[str, ...]
    probs: tuple[float, ...]
    log_odds: float | None
    ids: tuple[int, ...]


#: A token, as the text that it adds to a prompt or by its id.
Said: TypeAlias = str | int
#: What is wanted of an example; in a pair None asks nothing of that prompt.
Keep: TypeAlias = Said | tuple[Said | None, Said | None] | Callable[[Prediction], bool]


def judged(task: Examples, model: Predictor, keep: Keep) -> tuple[list[int], tuple[Drop, ...]]:
    """The examples to keep, and why the others are not; see `Task.filter`."""
    if not task.encoded_by(model.tokenizer):
        raise TaskError(
            "The task was encoded with another tokenizer than the model's; make it with "
            "tokenizer=model.tokenizer."
        )
    if keep == "correct" and task.sequence_ids:
        reasons = _not_said(task, model)
    elif keep == "correct":
        reasons = _incorrect(task, model)
    elif callable(keep):
        reasons = [_refused(one, keep, i) for i, one in enumerate(_said(task, model))]
    else:
        pair = keep if isinstance(keep, tuple) else (keep,)
        reasons = _other_tokens(task, model, pair)
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


def _refused(one: Prediction, keep: Callable[[Prediction], bool], i: int) -> str | None:
    """Why a function of the user's drops the example, or None."""
    name = getattr(keep, "__name__", repr(keep))
    try:
        return None if keep(one) else f"refused by {name}"
    except Exception as error:
        raise TaskError(
            f"keep={name} failed on example {i} ({type(error).__name__}: {error}); expected a "
            "function of one Prediction that says whether to keep it."
        ) from error


def _incorrect(task: Examples, model: Predictor) -> list[str | None]:
    """For each example why its answer is not what the model says, or None."""
    if not task.answer_ids:
        raise TaskError(
            'keep="correct" needs answers, and the task has none; give a token instead.'
        )
    reasons: list[str | None] = []
    for one, right, words in zip(_said(task, model), task.answer_ids, task.answers, strict=True):
        if one.log_odds is not None:
            wrong = f"the wrong answers are more probable ({one.log_odds:+.2f} nats)"
            reasons.append(None if one.log_odds > 0 else wrong)
        else:
            said = f"predicts {one.tokens[0]!r} ({one.probs[0]:.0%}), not {' or '.join(words)!r}"
            reasons.append(None if one.ids[0] in right else said)
    return reasons


def _said(task: Examples, model: Predictor) -> list[Prediction]:
    """What the model says after each clean prompt."""
    last = 1 + max(task.appended)
    asked = [
        right + wrong for right, wrong in zip(task.answer_ids, task.wrong_answer_ids, strict=False)
    ]
    found = model.predict(task.clean_tokens, asked=tuple(asked), last=last, task=task)
    said = []
    for i, prompt in enumerate(task.clean):
        at = last - 1 - task.appended[i]
        right = len(task.answer_ids[i]) if asked else 0
        values = found.asked[i, at, : len(asked[i])].tolist() if asked else []
        ids = found.ids[i, at].tolist()
        said.append(
            Prediction(
                prompt,
                tuple(token_texts(model.tokenizer, ids)),
                tuple(found.probs[i, at].tolist()),
                _log_sum(values[:right]) - _log_sum(values[right:]) if asked else None,
                tuple(ids),
            )
        )
    return said


def _other_tokens(
    task: Examples, model: Predictor, keep: Sequence[Said | None]
) -> list[str | None]:
    """For each example what is said in place of the tokens wanted after its prompts, or None.

    ``keep`` is for the clean prompt, and a second one for the corrupted; None wants nothing there.
    """
    if set(keep) == {None}:
        raise TaskError(f"keep is {keep!r}; expected a token for at least one of the prompts.")
    last = 1 + max(task.appended)
    prompts = (task.clean, task.corrupted)
    sides = [task.clean_tokens, *([task.corrupted_tokens] if keep[1:] not in ((), (None,)) else [])]
    reasons: list[str | None] = [None] * len(task)
    for said, tokens, texts in zip(keep, sides, prompts, strict=False):
        if said is None:
            continue
        found = model.predict(tokens, top_k=1, last=last, task=task)
        wanted = _meant(task, model.tokenizer, texts, said)
        after = f" after the {'clean' if texts is task.clean else 'corrupted'} prompt"
        for i, token in enumerate(wanted):
            best = _best(found, i, last - 1 - task.appended[i])
            if best != token and reasons[i] is None:
                shown = token_texts(model.tokenizer, [best, token])
                reasons[i] = "predicts {!r}{}, not {!r}".format(
                    shown[0], after if len(keep) > 1 else "", shown[1]
                )
    return reasons


def _meant(task: Examples, tokenizer: Any, prompts: Sequence[str], said: Said) -> list[int]:
    """The token that is meant after each prompt.

    Raises:
        TaskError: the text is not one token there, or there is no such token.
    """
    form = Form(tokenizer, task.chat)
    read = added_tokens(prompts, [said] * len(prompts), form)
    for prompt, (text, _, flaw) in zip(prompts, read, strict=True):
        if flaw:
            raise TaskError(f"keep is {said!r}, and {text!r} {flaw}, after {prompt!r}.")
    return [ids[0] for _, ids, _ in read]


def _not_said(task: Examples, model: Predictor) -> list[str | None]:
    """For each answer of several tokens, the first that the model would not say, or None."""
    last = max(map(len, task.sequence_ids))
    found = model.predict(task.clean_tokens, top_k=1, last=last, task=task)
    reasons: list[str | None] = []
    for i, wanted in enumerate(task.sequence_ids):
        said = [_best(found, i, at) for at in range(last - len(wanted), last)]
        wrong = [pair for pair in zip(said, wanted, strict=True) if pair[0] != pair[1]]
        texts = token_texts(model.tokenizer, wrong[0] if wrong else ())
        reasons.append("predicts {!r}, not {!r}".format(*texts) if wrong else None)
    return reasons


def _best(found: Predictions, example: int, at: int) -> int:
    return int(found.ids[example, at, 0])


def _log_sum(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))
