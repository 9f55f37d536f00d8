"""Provenance of a result: the same record for every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from nnattr.backend import Cost, Outcome
from nnattr.jobs.plain import plain
from nnattr.model.model import Model
from nnattr.results import Provenance
from nnattr.tasks import Task
from nnattr.tasks.file import packed
from nnattr.tokens import Tokens


def provenance_of(
    model: Model,
    task: Task | None,
    *,
    method: str,
    arguments: Mapping[str, Any],
    metric: str = "",
    outcome: Outcome | None = None,
) -> Provenance:
    """What was asked of which model on which task, where, and what it cost.

    Args:
        model: the model.
        task: what it read (`as_task` makes one of bare prompts); None where only weights were
            asked.
        method: the name of its row in the registry.
        arguments: what it was asked with, but for the model, the task or prompts if ``task`` is the
            same, the metric, and where finished parts are kept; written as plain values.
        metric: the metric in words; empty where there is none.
        outcome: what the job returned and cost; None before it has run.
    """
    return Provenance(
        method=method,
        arguments={name: plain(value) for name, value in arguments.items()},
        metric=metric,
        model=model.name,
        revision=model.revision,
        architecture=model.architecture,
        backend=model.backend.name,
        dtype=model.dtype,
        quantization=model.quantization,
        edits=tuple(edit.said for edit in model.edits),
        edits_given=tuple(plain(edit.given) for edit in model.edits),
        task="" if task is None else task.name,
        task_hash="" if task is None else task.hash,
        examples=None if task is None else packed(task),
        versions={name: version(name) for name in ("nnattr", "nnsight", "torch", "transformers")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    ).model_copy(update={} if outcome is None else ran(outcome.values, outcome.cost))


def ran(values: Mapping[str, Any], cost: Cost) -> dict[str, Any]:
    """What is known only once a job has run: its cost, and what it says of itself, if it does."""
    said = {
        "peak_memory": int(values.get("peak", 0)),
        "rows_per_forward": int(values.get("rows", 0)),
        "fell_back": str(values.get("fell_back", "")),
    }
    if isinstance(values.get("dtype"), str):
        said["dtype"] = values["dtype"].removeprefix("torch.")
    return {**{key: round(value, 4) for key, value in asdict(cost).items()}, **said}


def untold(prompts: Any, name: str = "prompts") -> dict[str, Any]:
    """What a provenance's arguments hold of prompts that its task does not give again.

    Tokens, whose texts may be encoded otherwise, and that there were none.
    """
    known = isinstance(prompts, Task) or not (prompts is None or as_ids(prompts))
    return {} if known else {name: prompts}


def as_ids(prompts: Any) -> bool:
    """Whether prompts, one or several, were given as tokens."""
    if isinstance(prompts, Task):
        return prompts.from_ids
    if isinstance(prompts, str | Tokens):
        return isinstance(prompts, Tokens)
    return not all(isinstance(prompt, str) for prompt in prompts)


def as_task(given: Any, texts: Sequence[str], tokens: Tokens) -> Task:
    """The task that was given, or the bare prompts that were given instead as one without pairs."""
    if isinstance(given, Task):
        return given
    return Task(
        clean=tuple(texts),
        corrupted=(),
        answers=(),
        wrong_answers=(),
        clean_tokens=tokens,
        twin_tokens=None,
        answer_ids=(),
        wrong_answer_ids=(),
        name="prompts",
        from_ids=given is not None and as_ids(given),
    )
