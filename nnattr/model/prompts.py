"""Prompts made ready for a model: encoded, checked against its limits, and their positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from nnattr.errors import TaskError
from nnattr.model.model import Model
from nnattr.tasks import Task
from nnattr.tasks.positions import Positions, integers, spots
from nnattr.tokens import Tokens, encode

#: Which prompts of a task.
Run: TypeAlias = Literal["clean", "corrupted"]
#: What to read: one prompt, several, those of a task, or tokens as another result holds them.
Prompts: TypeAlias = str | Sequence[str] | Task | Tokens


def as_texts(what: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """One prompt or several as a tuple.

    Raises:
        TaskError: there is none, or something that is not text.
    """
    prompts = (given,) if isinstance(given, str) else tuple(given)
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise TaskError(f"{what} is {given!r}; expected a prompt or a list of prompts.")
    return prompts


def prepared(model: Model, prompts: Sequence[str], room: int = 0) -> Tokens:
    """The prompts as the model sees them, with ``room`` tokens still free in its context.

    Raises:
        TaskError: a prompt that cannot be encoded or is too long.
    """
    tokens = encode(model.tokenizer, prompts)
    _require_room(model, max(map(len, tokens.strings)), room)
    return tokens


def texts_and_tokens(
    model: Model, prompts: Prompts, run: Run = "clean", *, what: str = "prompts", room: int = 0
) -> tuple[tuple[str, ...], Tokens]:
    """The texts and tokens of prompts, or of one run of a task.

    Args:
        model: what is to read them.
        prompts: see `Prompts`.
        run: which prompts of a task.
        what: how messages call them.
        room: how many tokens are to stay free in the model's context.

    Raises:
        TaskError: they cannot be used with this model, or the task has no such run.
    """
    if isinstance(prompts, Tokens):
        _require_room(model, max(map(len, prompts.strings)), room)
        if int(prompts.ids.max()) >= model.vocab_size:
            raise TaskError(f"These tokens are not {model.name}'s: it has fewer.")
        return tuple(map("".join, prompts.strings)), prompts
    if not isinstance(prompts, Task):
        texts = as_texts(what, prompts)
        return texts, prepared(model, texts, room)
    fits(model, prompts)
    _require_room(model, prompts.width, room)
    if run == "clean":
        return prompts.clean, prompts.clean_tokens
    return prompts.corrupted, prompts.corrupted_tokens


def fits(model: Model, task: Task) -> None:
    """Check that the task was encoded for this model and fits its context.

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
    if isinstance(given, Task) and isinstance(where, str) and where not in ("last", "each"):
        return _span(given, where)
    width = tokens.ids.shape[1]
    if isinstance(where, str):
        if where not in ("last", "each"):
            raise TaskError(
                f"positions is {where!r}; expected 'last', 'each', a number or a list of numbers, "
                "or, where the prompts are a task, one of its spans."
            )
        picked = torch.arange(width) if where == "each" else torch.tensor([width - 1])
        picked = picked.expand(len(tokens), -1)
        return picked, tokens.mask.gather(1, picked)
    wanted = integers(where)
    if not wanted:
        raise TaskError("No positions were given; name at least one.")
    rows = []
    for prompt, strings, pad in zip(prompts, tokens.strings, tokens.padding, strict=True):
        outside = [at for at in wanted if not -len(strings) <= at < len(strings)]
        if outside:
            raise TaskError(
                f"Position {outside[0]} is outside the prompt {prompt!r}, which has {len(strings)} "
                f"tokens (0 to {len(strings) - 1}, or -1 for the last)."
            )
        rows.append([pad + at % len(strings) for at in wanted])
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


def _span(task: Task, name: str) -> tuple[Tensor, Tensor]:
    """The columns of a task's span."""
    mask = spots(task, name)[0]
    counts = sorted(set(mask.sum(1).tolist()))
    if len(counts) > 1:
        raise TaskError(
            f"The span {name!r} has {counts[0]} tokens in one prompt and {counts[-1]} in "
            "another; capture it in tasks of one length each, or name positions."
        )
    at = mask.nonzero()[:, 1].view(len(mask), -1)
    return at, torch.ones_like(at, dtype=torch.bool)
