"""A task as one JSON file. Reading it runs no code and needs no tokenizer."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from nnattr import storage
from nnattr.errors import TaskError
from nnattr.tasks.examples import Examples
from nnattr.tasks.form import Drop, Groups, IdGroups
from nnattr.tokens import Tokens

SCHEMA = 1
Strings = tuple[tuple[str, ...], ...]


class _Rows(BaseModel):
    """Encoded prompts, without their padding."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    ids: IdGroups
    strings: Strings


class _File(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1]
    name: str
    clean: tuple[str, ...]
    corrupted: tuple[str, ...]
    answers: Groups
    wrong_answers: Groups
    answer_ids: IdGroups
    wrong_answer_ids: IdGroups
    sequence_ids: IdGroups
    wrong_sequence_ids: IdGroups = ()  # not in the first files
    clean_tokens: _Rows
    twin_tokens: _Rows | None
    spans: dict[str, IdGroups]
    chat: bool
    from_ids: bool = False
    bos: str | None
    dropped: tuple[Drop, ...]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """Every list has an entry for each example, and every prompt as many strings as ids."""
        n = len(self.clean)
        sides = [rows for rows in (self.clean_tokens, self.twin_tokens) if rows is not None]
        words = (self.answers, self.wrong_answers)
        ids = (self.answer_ids, self.wrong_answer_ids, self.sequence_ids, self.wrong_sequence_ids)
        counted = [some for some in (self.corrupted, *words, *ids) if some]
        counted += [part for rows in sides for part in (rows.ids, rows.strings)]
        if not n or any(len(rows) != n for rows in [*counted, *self.spans.values()]):
            raise ValueError("the lists have different numbers of examples")
        lengths = [
            [len(row) for row in rows] for side in sides for rows in (side.ids, side.strings)
        ]
        if any(row != lengths[0] for row in lengths) or 0 in lengths[0]:
            raise ValueError("the prompts have different numbers of tokens")
        return self


def write_task(task: Examples, path: str | Path) -> Path:
    """Write ``task``; see `Task.save`."""
    try:
        Path(path).write_text(json.dumps(packed(task), ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise TaskError(
            f"The task cannot be written to {str(path)!r}: {error.strerror}."
        ) from error
    return Path(path)


def packed(task: Examples) -> dict[str, Any]:
    """The task as plain values of JSON."""
    twins = task.twin_tokens
    content: dict[str, Any] = {
        "schema_version": SCHEMA,
        **{key: getattr(task, key) for key in _File.model_fields if hasattr(task, key)},
        "clean_tokens": _rows(task.clean_tokens),
        "twin_tokens": None if twins is None else _rows(twins),
        "spans": dict(task.spans),
        "dropped": [asdict(drop) for drop in task.dropped],
    }
    return json.loads(json.dumps(content))


def read_task(path: str | Path) -> dict[str, Any]:
    """The fields of the task in a file, its own or a result's; see `Task.load`."""
    if Path(path).suffix == ".safetensors":
        return unpacked(_of_result(path), str(path))
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TaskError(f"The task {str(path)!r} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise TaskError(f"{path} is not a task's JSON file, or not all of it: {error}.") from error
    if not isinstance(content, dict):
        raise TaskError(f"{path} is not a task's JSON file: it holds a {type(content).__name__}.")
    return unpacked(content, str(path))


def unpacked(content: dict[str, Any], said: str) -> dict[str, Any]:
    """The fields of the task that `packed` wrote; messages call it ``said``.

    Raises:
        TaskError: it is not a whole task of a known schema.
    """
    version = content.get("schema_version")
    if version != SCHEMA:
        raise TaskError(
            f"{said} has schema_version {version!r} and this nnattr reads {SCHEMA}; make the task "
            "again, or load it with the version that wrote it."
        )
    try:
        file = _File.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise TaskError(f"{said} is not a whole task: {place}: {first['msg']}.") from error
    return {
        **{key: getattr(file, key) for key in _File.model_fields if key != "schema_version"},
        "clean_tokens": _tokens(file.clean_tokens),
        "twin_tokens": None if file.twin_tokens is None else _tokens(file.twin_tokens),
    }


def _of_result(path: str | Path) -> dict[str, Any]:
    """What a result's file holds of its task."""
    _, header = storage.read(path)
    provenance = header.get("provenance")
    content = provenance.get("examples") if isinstance(provenance, dict) else None
    if not isinstance(content, dict):
        raise TaskError(
            f"The result {str(path)!r} does not hold its task: it was written by an nnattr that "
            "did not keep it."
        )
    return content


def _rows(tokens: Tokens) -> dict[str, Any]:
    return {"ids": tokens.rows, "strings": tokens.strings}


def _tokens(rows: _Rows) -> Tokens:
    return Tokens.from_rows(rows.ids, rows.strings, 0)
