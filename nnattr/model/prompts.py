"""Prompts made ready for a model: encoded, checked against its limits, and their positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from nnattr.errors import TaskError
from nnattr.model.model import Model
from nnattr.tasks import Task
from nnattr.tokens import Tokens, encode

#: Where to look: ``"last"``, ``"each"``, a position from the prompt's start or end, or several.
Where: TypeAlias = str | int | Sequence[int]
#: What to read: one prompt, several, those of a task, or tokens as another result holds them.
Prompts: TypeAlias = str | Sequence[str] | Task | Tokens


def listed(what: str, given: str | Sequence[str]) -> tuple[str, ...]:
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
    _room(model, max(map(len, tokens.strings)), room)
    return tokens


def asked(model: Model, prompts: Prompts, run: str = "clean") -> tuple[tuple[str, ...], Tokens]:
    """The texts and tokens of prompts, or of one run (clean or corrupted) of a task.

    Raises:
        TaskError: they cannot be used with this model, or there is no such run.
    """
    if isinstance(prompts, Tokens):
        _room(model, max(map(len, prompts.strings)), 0)
        if int(prompts.ids.max()) >= model.config.vocab_size:
            raise TaskError(f"These tokens are not {model.name}'s: it has fewer.")
        return tuple(map("".join, prompts.strings)), prompts
    if not isinstance(prompts, Task):
        texts = listed("prompts", prompts)
        return texts, prepared(model, texts)
    if run not in ("clean", "corrupted"):
        raise TaskError(f"run is {run!r}; expected 'clean' or 'corrupted'.")
    fits(model, prompts)
    if run == "clean":
        return prompts.clean, prompts.clean_tokens
    return prompts.corrupted, prompts.corrupted_tokens


def fits(model: Model, task: Task) -> None:
    """Check that the task was encoded for this model and fits its context.

    Raises:
        TaskError: it was not, or does not.
    """
    if not isinstance(model, Model) or not isinstance(task, Task):
        raise TaskError(
            f"A method takes a model, a task and a metric, and was given {type(model).__name__} "
            f"and {type(task).__name__} first; make them with nnattr.load(...) and "
            "nnattr.Task.from_pairs(...), or a generator such as nnattr.tasks.ioi."
        )
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


def _room(model: Model, longest: int, room: int) -> None:
    """Refuse prompts that leave no ``room`` in the model's context."""
    limit = model.context_length
    if limit is not None and longest + room > limit:
        more = f" and {room} more are wanted" if room else ""
        raise TaskError(
            f"The longest prompt has {longest} tokens{more}, and {model.name} takes {limit}."
        )


def columns(tokens: Tokens, prompts: Sequence[str], where: Where) -> tuple[Tensor, Tensor]:
    """The columns of the padded batch [example, pos], and which of them the prompt really has.

    Raises:
        TaskError: a position that a prompt does not have.
    """
    width = tokens.ids.shape[1]
    if isinstance(where, str):
        if where not in ("last", "each"):
            raise TaskError(
                f"positions is {where!r}; expected 'last', 'each', a number or a list of numbers."
            )
        picked = torch.arange(width) if where == "each" else torch.tensor([width - 1])
        picked = picked.expand(len(tokens), -1)
        return picked, tokens.mask.gather(1, picked)
    wanted = [where] if isinstance(where, int) else list(where)
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
