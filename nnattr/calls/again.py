"""The call that made a result, from its provenance: as a run file and as Python code.

A provenance holds every argument that the method was given, and the result's file what the model
read. Both forms say what differs from the defaults; what is long, or more than numbers and texts
(a task to take means over), is read from the result's file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnattr.calls.registry import ANSWERS, Method
from nnattr.config import ARGUMENTS, RunConfig
from nnattr.errors import ResultError
from nnattr.jobs.plain import KIND, metric_call, plain, restored
from nnattr.results import Provenance, Result

#: Characters of an argument that are written out.
LONGEST = 400


@dataclass(frozen=True)
class Call:
    """What a provenance knows of the call, and where the rest is.

    Attributes:
        method: what was called.
        arguments: those that differ from their defaults, written as plain values; neither the task
            nor the metric is among them.
        reads_task: whether it read the task that the result holds.
        path: the result's file.
    """

    method: Method
    arguments: Mapping[str, Any]
    reads_task: bool
    path: str


def call_of(result: Result, path: str) -> Call:
    """The call that made a result.

    Args:
        result: what a method returned, or `nnattr.load_result` read.
        path: where it is saved, as the file or the code is to name it.

    Raises:
        ResultError: it is not the result of a method, or lacks what the method was given.
    """
    p = result.provenance
    if p.method not in ANSWERS:
        said = f"it is of {p.method!r}" if p.method else "its file does not say of which"
        raise ResultError(f"This is not the result of one method alone: {said}.")
    method = ANSWERS[p.method]
    if p.edits and not p.edits_given:
        raise ResultError(
            f"The file is of an older nnattr, which kept edits in words: {'; '.join(p.edits)}. "
            f"Edit the model again with nnattr.edited, and ask {method.name}."
        )
    if "dataset_hash" in p.arguments:
        raise ResultError(
            f"The file is of an older nnattr and does not hold its dataset, "
            f"{p.arguments['dataset_hash']}; give it to {method.name} again."
        )
    reads_task = method.reads is not None and method.reads not in p.arguments
    if reads_task and p.examples is None:
        raise ResultError(f"The result does not hold its task, {p.task}; make it again first.")
    given = {key: value for key, value in p.arguments.items() if _differs(method, key, value)}
    return Call(method, given, reads_task, path)


def run_file(result: Result, path: str) -> RunConfig:
    """The run file that makes a result again; its task is read from the result's own file.

    Args:
        result: as `call_of`.
        path: as `call_of`.

    Raises:
        ResultError: as `call_of`.
        MetricError: the metric is a function of somebody's own, which needs Python.
    """
    call, p = call_of(result, path), result.provenance
    options = {key: _from_file(call, key) or value for key, value in call.arguments.items()}
    said = {key: options.pop(key) for key in ARGUMENTS if key in options}
    if call.reads_task:
        said["task"] = {"file": path}
    elif isinstance(options.get(str(call.method.reads)), str | list):
        texts = options.pop(str(call.method.reads))
        said["prompts"] = [texts] if isinstance(texts, str) else texts
    if "metric" in call.method.arguments:
        said["metric"], said["metric_arguments"] = metric_call(p.metric)
    known = {"model": p.model, **_where(p), "method": p.method, "options": options}
    if p.edits:
        known["edits"] = {KIND: "edits", "file": path}
    return RunConfig.model_validate({**known, **said})


def python(result: Result, path: str) -> str:
    """Python code that makes a result again, as ``result``.

    A metric of somebody's own is named and has to be imported from where it is.

    Args:
        result: as `call_of`.
        path: as `call_of`.

    Raises:
        ResultError: as `call_of`.
    """
    call, p = call_of(result, path), result.provenance
    long = [key for key in call.arguments if _from_file(call, key)]
    held = bool(long or p.edits)
    where = "".join(f", {key}={value!r}" for key, value in _where(p).items())
    lines = ["import nnattr", *(["from nnattr.jobs.plain import restored"] if held else []), ""]
    if held:
        lines.append(f"before = nnattr.load_result({path!r})")
    lines.append(f"model = nnattr.load({p.model!r}{where})")
    if p.edits:
        lines.append("edits = restored(list(before.provenance.edits_given))")
        lines.append("model = nnattr.edited(model, edits)")
    if "metric" in call.method.arguments:
        own = f"metric = {p.metric}  # a function of your own: import it"
        lines.append(f"metric = nnattr.{p.metric}" if p.metric.endswith(")") else own)
    given = ["model", *(f"{key}={value}" for key, value in _written(call).items())]
    return "\n".join([*lines, f"result = nnattr.{p.method}(", *(f"    {x}," for x in given), ")"])


def _written(call: Call) -> dict[str, str]:
    """The arguments besides the model, as code."""
    read = f"nnattr.Task.load({call.path!r})"  # all of it, whatever part of the result was kept
    given = {str(call.method.reads): read} if call.reads_task else {}
    if "metric" in call.method.arguments:
        given["metric"] = "metric"
    for key, value in call.arguments.items():
        held = f"restored(before.provenance.arguments[{key!r}])"
        given[key] = held if _from_file(call, key) else repr(restored(value))
    return given


def _differs(method: Method, name: str, value: Any) -> bool:
    """Whether an argument of the method was given another value than its default."""
    if name not in method.arguments:
        return False
    default = method.arguments[name].default
    return default is method.arguments[name].empty or plain(default) != value


def _from_file(call: Call, name: str) -> dict[str, str] | None:
    """Where a long argument is read from, as `nnattr.jobs.plain.restored` understands it."""
    value = call.arguments[name]
    short = len(repr(value)) <= LONGEST and not (isinstance(value, dict) and KIND in value)
    if short or name in ARGUMENTS:
        return None
    return {KIND: "argument", "file": call.path, "name": name}


def _where(p: Provenance) -> dict[str, str]:
    """How the model was loaded: ``ndif (http://host)`` is the address alone."""
    backend = p.backend.partition(" (")[2].rstrip(")") or p.backend
    known = {"revision": p.revision, "backend": backend, "dtype": p.dtype.removeprefix("torch.")}
    return {key: value for key, value in known.items() if value}
