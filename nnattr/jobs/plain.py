"""The arguments of a call as values of JSON, and back.

A provenance keeps them so, and so does the file of a submitted job. Numbers, texts, lists and
mappings stay what they are (lists come back as tuples); a task is written whole, prompts that were
encoded with their ids, an edit of the model with all that it does, and a metric by its name.
Reading runs no code: a metric of one's own comes back as a `RecordedMetric`, which knows what it
was called and what it needs, but cannot measure.

A run file may name an argument that a result was made with rather than hold it:
``{nnattr: argument, file: before.safetensors, name: dataset}``.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnattr.errors import MetricError, ResultError
from nnattr.graph import Edge, Part
from nnattr.metrics import METRICS, Metric, describe
from nnattr.model.edit_kinds import Ablation, Given, Steering, Swap, ablate, replace, steer
from nnattr.results import Cell, load_result
from nnattr.tasks import Task
from nnattr.tasks.file import packed, unpacked
from nnattr.tokens import Tokens

#: The key under which a written value says that it is more than a mapping.
KIND = "nnattr"
#: What makes each kind of edit again, by what a file calls it.
EDITS = {"ablate": ablate, "replace": replace, "steer": steer}


class RecordedMetric:
    """A metric of somebody's own, as a file remembers it: enough to read what it measured.

    Attributes:
        last_only, needs, reads: as the metric had them (see `nnattr.metrics`).
    """

    def __init__(
        self, name: str, last_only: bool, needs: tuple[str, ...], reads: tuple[str, ...]
    ) -> None:
        self.__qualname__ = name
        self.last_only, self.needs, self.reads = last_only, needs, reads

    def __call__(self, logits: Any, batch: Any) -> Any:
        """Refuse: the file holds a name, no code."""
        raise MetricError(
            f"{self.__qualname__} is a metric of your own, and its file holds its name alone. "
            "Call the method with the metric itself."
        )


def plain(value: Any) -> Any:
    """An argument as values of JSON.

    Raises:
        ResultError: it is of a kind that cannot be written.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path | Part | Edge):
        return str(value)
    if isinstance(value, Cell):
        return plain(value.index)
    if isinstance(value, Task):
        return {KIND: "task", "task": packed(value)}
    if isinstance(value, Tokens):
        return {KIND: "tokens", "ids": value.rows, "strings": list(map(list, value.strings))}
    if isinstance(value, Given):
        return _edit(value)
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | range | np.ndarray):
        return [plain(one) for one in value]
    if callable(value) and not isinstance(value, type):
        return _written(value)
    raise ResultError(f"{value!r} is a {type(value).__name__}, which cannot be written to a file.")


def restored(value: Any) -> Any:
    """What `plain` wrote, as the argument that it was; lists as tuples.

    Raises:
        ResultError: it is of no kind that `plain` writes, or names a file that cannot be read.
        TaskError: a task in it is not whole.
    """
    if isinstance(value, list):
        return tuple(map(restored, value))
    if not isinstance(value, dict):
        return value
    if KIND not in value:
        return {key: restored(one) for key, one in value.items()}
    readers = {
        "task": lambda v: Task(**unpacked(v["task"], "The call's task")),
        "tokens": lambda v: Tokens.from_rows(v["ids"], v["strings"], 0),
        **dict.fromkeys(EDITS, _edit_again),
        "edits": lambda v: restored(list(load_result(v["file"]).provenance.edits_given)),
        "argument": lambda v: restored(load_result(v["file"]).provenance.arguments[v["name"]]),
        "metric": lambda v: named_metric(v["name"]),
        "recorded metric": lambda v: RecordedMetric(
            v["name"], v["last_only"], tuple(v["needs"]), tuple(v["reads"])
        ),
    }
    try:
        return readers[value[KIND]](value)
    except (KeyError, TypeError, ValueError) as error:
        raise ResultError(f"{value!r} is not an argument that nnattr wrote.") from error


def _edit(edit: Given) -> dict[str, Any]:
    """An edit by the name and the arguments of what made it."""
    kinds = {Ablation: "ablate", Swap: "replace", Steering: "steer"}
    given = {**vars(edit), "positions": "all" if edit.positions is None else edit.positions}
    if isinstance(edit, Steering):
        given["vector"] = edit.vector.tolist()
    else:
        given["parts"] = [part.name for part in edit.parts]
    return {KIND: kinds[type(edit)], **{name: plain(one) for name, one in given.items()}}


def _edit_again(written: Mapping[str, Any]) -> Given:
    """The edit that `_edit` wrote."""
    given = {name: restored(one) for name, one in written.items() if name != KIND}
    if "vector" in given:
        given["vector"] = np.array(given["vector"], dtype=np.float32)
    return EDITS[written[KIND]](**given)


def named_metric(text: str) -> Metric:
    """The metric that results call so: ``"LogitDiff()"``, ``"Loss(last=3)"``.

    Raises:
        MetricError: the text names a function of somebody's own.
    """
    name, arguments = metric_call(text)
    return METRICS[name](**arguments)


def metric_call(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of a metric as results write it.

    Raises:
        MetricError: the text names a function of somebody's own.
    """
    try:
        call = ast.parse(text, mode="eval").body
    except SyntaxError:
        call = None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise MetricError(f"The metric {text} is a function of your own, which no file can name.")
    if call.func.id not in METRICS:
        raise MetricError(
            f"A file cannot name the metric {text}; it can name {', '.join(METRICS)}."
        )
    return call.func.id, {one.arg: ast.literal_eval(one.value) for one in call.keywords if one.arg}


def _written(metric: Metric) -> dict[str, Any]:
    """A metric by its name, and one of the user's own also by what it needs."""
    if type(metric).__name__ in METRICS:
        return {KIND: "metric", "name": describe(metric)}
    return {
        KIND: "recorded metric",
        "name": describe(metric),
        "last_only": getattr(metric, "last_only", False),
        "needs": list(getattr(metric, "needs", ())),
        "reads": list(getattr(metric, "reads", ())),
    }
