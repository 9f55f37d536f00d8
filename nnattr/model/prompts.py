"""Prompts made ready for a model: encoded, checked against its limits, and their positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from nnattr.errors import TaskError
from nnattr.model.model import Model
from nnattr.tasks import Task
from nnattr.tasks.contrast import before_answers
from nnattr.tasks.positions import Positions, own_positions
from nnattr.tokens import Prompt, Tokens, encode, text_of

#: Which prompts of a task.
Run: TypeAlias = Literal["clean", "corrupted"]
#: What to read: one prompt, several, those of a task, or tokens as another result holds them. A
#: prompt is a text or a list of token ids.
Prompts: TypeAlias = str | Sequence[str] | Sequence[int] | Sequence[Prompt] | Task | Tokens


def as_prompts(what: str, given: Prompt | Sequence[Prompt]) -> tuple[Prompt, ...]:
    """One prompt or several as a tuple.

    Raises:
        TaskError: there is none, or something that is neither text nor token ids.
    """
    one = isinstance(given, str) or (len(given) > 0 and all(type(part) is int for part in given))
    prompts = (given,) if one else tuple(given)
    if not prompts or not all(_is_prompt(prompt) for prompt in prompts):
        raise TaskError(f"{what} is {given!r}; expected a prompt or a list of prompts.")
    return prompts  # type: ignore[return-value]


def _is_prompt(given: Any) -> bool:
    ids = isinstance(given, list | tuple) and all(type(token) is int for token in given)
    return isinstance(given, str) or ids


def prepared(model: Model, prompts: Sequence[Prompt], room: int = 0) -> Tokens:
    """The prompts as the model sees them, with ``room`` tokens still free in its context.

    Raises:
        TaskError: a prompt that cannot be encoded or is too long.
    """
    return _usable(model, encode(model.tokenizer, prompts), room)


def texts_and_tokens(
    model: Model,
    prompts: Prompts,
    run: Run = "clean",
    *,
    what: str = "prompts",
    room: int = 0,
    alone: bool = False,
) -> tuple[tuple[str, ...], Tokens]:
    """The texts and tokens of prompts, or of one run of a task.

    Args:
        model: what is to read them.
        prompts: see `Prompts`.
        run: which prompts of a task.
        what: how messages call them.
        room: how many tokens are to stay free in the model's context.
        alone: leave out answers that stand behind a task's prompts: it is asked what comes there.

    Raises:
        TaskError: they cannot be used with this model, or the task has no such run.
    """
    if isinstance(prompts, Tokens):
        tokens = _usable(model, prompts, room)
        return tuple(text_of(model.tokenizer, row) for row in tokens.rows), tokens
    if not isinstance(prompts, Task):
        given = as_prompts(what, prompts)
        tokens = prepared(model, given, room)
        return tuple(text_of(model.tokenizer, prompt) for prompt in given), tokens
    fits(model, prompts)
    _require_room(model, prompts.width, room)
    texts, tokens = (
        (prompts.clean, prompts.clean_tokens)
        if run == "clean"
        else (prompts.corrupted, prompts.corrupted_tokens)
    )
    return texts, before_answers(prompts, tokens) if alone else tokens


def fits(model: Model, task: Task) -> None:
    """Check that the task was encoded for this model, whose tokens it has, and fits its context.

    Raises:
        TaskError: it was not, or does not.
    """
    limit = model.context_length
    if limit is not None and task.width > limit:
        longest = max(task.clean, key=len)
        raise TaskError(
            f"The prompt {longest[:60]!r}... is {task.width} tokens long, and {model.name} takes "
            f"{limit}."
        )
    if not task.encoded_by(model.tokenizer):
        raise TaskError(
            f"The task was encoded with another tokenizer than that of {model.name}; make it with "
            "tokenizer=model.tokenizer."
        )
    sides = [side.rows for side in (task.clean_tokens, task.twin_tokens) if side is not None]
    answers = (task.answer_ids, task.wrong_answer_ids, task.sequence_ids, task.wrong_sequence_ids)
    for rows in (*sides, *answers):
        model.require_known(rows)


def _usable(model: Model, tokens: Tokens, room: int) -> Tokens:
    """The tokens, if the model knows them all and has room for them."""
    model.require_known(tokens.rows)
    _require_room(model, max(map(len, tokens.strings)), room)
    return tokens


def _require_room(model: Model, longest: int, room: int) -> None:
    """Refuse prompts that leave no ``room`` in the model's context."""
    limit = model.context_length
    if limit is not None and longest + room > limit:
        more = f" and {room} more are wanted" if room else ""
        raise TaskError(
            f"The longest prompt has {longest} tokens{more}, and {model.name} takes {limit}."
        )


def columns(
    given: Prompts, prompts: Sequence[str], tokens: Tokens, where: Positions
) -> tuple[Tensor, Tensor]:
    """The columns of the padded batch [example, pos], and which of them the prompt really has.

    Args:
        given: where prompts and tokens come from: a task's spans have names.
        prompts: the texts, for messages.
        tokens: the padded batch.
        where: see `Positions`; all prompts have equally many.

    Raises:
        TaskError: a position that a prompt does not have, or a span that is longer in one prompt
            than in another.
    """
    if isinstance(where, str) and where == "each":
        return torch.arange(tokens.ids.shape[1]).expand(len(tokens), -1), tokens.mask
    if isinstance(where, str) and where == "all":
        raise TaskError("positions is 'all', and here each is read by itself: say 'each'.")
    rows = [
        [tokens.padding[i] + position for position in _own(given, prompts, tokens, where, i)]
        for i in range(len(tokens))
    ]
    counts = sorted(set(map(len, rows)))
    if len(counts) > 1:
        raise TaskError(
            f"The span {where!r} has {counts[0]} tokens in one prompt and {counts[-1]} in "
            "another; capture it in tasks of one length each, or name positions."
        )
    picked = torch.tensor(rows)
    return picked, torch.ones_like(picked, dtype=torch.bool)


def aligned(
    given: Prompts, prompts: Sequence[str], tokens: Tokens, where: Positions
) -> tuple[Tensor, Tensor]:
    """As `columns`, but ``"each"`` begins at each prompt's own first token."""
    if not (isinstance(where, str) and where == "each"):
        return columns(given, prompts, tokens, where)
    width = tokens.ids.shape[1]
    own = torch.arange(width) + torch.tensor(tokens.padding)[:, None]
    return own.clamp(max=width - 1), own < width


def _own(
    given: Prompts, prompts: Sequence[str], tokens: Tokens, where: Positions, example: int
) -> list[int]:
    """The positions of one prompt, from its own first token."""
    length = whole = len(tokens.strings[example])
    spans: dict[str, Sequence[int]] = {}
    if isinstance(given, Task):
        length = given.lengths[example][0]
        spans = {name: rows[example] for name, rows in given.spans.items()}
    return own_positions(where, length, whole, spans, prompts[example])
