"""``nnattr run``: the analysis that a run file describes, and a summary of what it found."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from html import unescape
from textwrap import TextWrapper, wrap
from typing import Any

from nnattr import tasks
from nnattr.arguments import shown
from nnattr.calls.registry import ANSWERS, Method
from nnattr.cli.console import Block, table
from nnattr.config import ARGUMENTS, RunConfig, TaskConfig
from nnattr.errors import ArgumentError, MetricError, TaskError
from nnattr.jobs.plain import restored
from nnattr.metrics import METRICS, Metric
from nnattr.model.edited import edited
from nnattr.model.load import load
from nnattr.model.model import Model
from nnattr.plots import words
from nnattr.report.values import measured
from nnattr.results import EdgeScores, Result, Scores
from nnattr.results.baselines import spelled
from nnattr.results.cells import cautioned
from nnattr.results.edge_scores import extent
from nnattr.tasks import GENERATORS

#: The fields of `TaskConfig` of which exactly one describes the task.
WAYS = ("name", "table", "file", "clean")
#: How a method's arguments are written below its question.
INDENTED = TextWrapper(76, initial_indent="    ", subsequent_indent="    ")


def analyse(config: RunConfig) -> Result:
    """Load the model, make what it reads and call the method that ``config`` names.

    Raises:
        NnattrError: a name that does not exist, or whatever loading and the method raise.
    """
    method = answering(config.method)
    given = arguments(config, method)
    where = {key: getattr(config, key) for key in ("backend", "device", "dtype", "revision")}
    model = load(config.model, **where)
    if config.edits is not None:
        model = edited(model, restored(config.edits))
    return method.function(model, **_read(config, method, model), **given)


def answering(name: str) -> Method:
    """The method of this name, if it returns a result.

    Raises:
        ArgumentError: there is no such method.
    """
    if name not in ANSWERS:
        raise ArgumentError(f"method is {name!r}; a run file can name {', '.join(ANSWERS)}.")
    return ANSWERS[name]


def arguments(config: RunConfig, method: Method) -> dict[str, Any]:
    """What the method is given besides model and prompts, checked against what it takes.

    Raises:
        ArgumentError: something that it does not take, or nothing where it needs something.
        MetricError: no metric has that name, or it does not take these arguments.
        TaskError: the task is described in no way or in two, or what the method reads is missing.
    """
    known = method.arguments
    said = {**{name: getattr(config, name) for name in ARGUMENTS}, **config.options}
    given = {name: restored(value) for name, value in said.items() if value is not None}
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ArgumentError(
            f"{config.method} does not take {unknown[0]!r}; it takes {', '.join(known)}."
        )
    given |= _metric(config, method)
    _check_reading(config, method, given)
    needed = [name for name, one in known.items() if one.default is one.empty]
    missing = [name for name in needed if name not in (*given, method.reads)]
    if missing:
        raise ArgumentError(
            f"{config.method} needs {missing[0]!r}, which is given under options; it takes "
            f"{', '.join(known)}."
        )
    return given


def _metric(config: RunConfig, method: Method) -> dict[str, Metric]:
    """The metric that the file names, or the one that the method needs; nothing is its own."""
    said = config.metric is not None or bool(config.metric_arguments)
    takes = method.arguments.get("metric")
    if takes is None and said:
        raise MetricError(f"{config.method} measures with no metric, and the file names one.")
    if takes is None or (takes.default is not takes.empty and not said):
        return {}
    return {"metric": make_metric(config.metric or "LogitDiff", config.metric_arguments)}


def make_metric(name: str, arguments: Mapping[str, Any]) -> Metric:
    """The metric that a run file names.

    Raises:
        MetricError: no metric has that name, or it does not take these arguments.
    """
    if name not in METRICS:
        raise MetricError(
            f"metric is {name!r}; a run file can name {', '.join(METRICS)}. A function of your own "
            "works from Python."
        )
    try:
        return METRICS[name](**arguments)
    except TypeError as error:
        raise MetricError(f"The metric {name}: {error}.") from error


def _check_reading(config: RunConfig, method: Method, given: Mapping[str, Any]) -> None:
    """Refuse a file that says in two ways, or in none, what the method reads, or in a wrong one."""
    if config.task is not None:
        _check(config.task)
    said = {"a task": config.task, "prompts": config.prompts, "options": method.reads in given}
    ways = [name for name, there in said.items() if there]
    if method.reads is None:
        wrong, expected = bool(ways), "nothing, only weights"
    elif method.reads == "task":
        wrong, expected = ways != ["a task"], "a task"
    else:
        optional = method.arguments[method.reads].default is None
        wrong, expected = len(ways) != 1 and not (optional and not ways), "a task or prompts"
    if wrong:
        raise TaskError(
            f"{config.method} reads {expected}, and the file has {' and '.join(ways) or 'neither'}."
        )


def _read(config: RunConfig, method: Method, model: Model) -> dict[str, Any]:
    """The method's task or prompts, by the argument that takes them."""
    if method.reads is None or not (config.task or config.prompts):
        return {}
    if config.task is None:
        one = method.reads == "prompt" and len(config.prompts) == 1
        return {method.reads: config.prompts[0] if one else config.prompts}
    task = make_task(config.task, model.tokenizer)
    if config.task.keep is not None:
        task = task.filter(model, config.task.keep)
    return {method.reads: task}


def make_task(config: TaskConfig, tokenizer: Any) -> tasks.Task:
    """The task that a run file describes, in one of the four ways of `TaskConfig`.

    Raises:
        TaskError: the task does not fit the tokenizer, or the description itself is wrong.
    """
    _check(config)
    if config.name is not None:
        return GENERATORS[config.name](tokenizer, **config.arguments)
    if config.file is not None:
        return tasks.Task.load(config.file)
    if config.table is not None:
        given = {"answer_map": config.answer_map, **config.columns, **config.options}
        return tasks.Task.from_table(config.table, tokenizer=tokenizer, **given)
    return tasks.Task.from_pairs(
        config.clean,
        config.corrupted,
        config.answers,
        config.wrong_answers,
        tokenizer=tokenizer,
        spans=config.spans,
        **config.options,
    )


def methods() -> list[str]:
    """The methods that a file can name, each with its question and its own arguments, as lines."""
    lines: list[str] = []
    for name, row in ANSWERS.items():
        own = [key for key in row.arguments if key not in ("metric", row.reads)]
        lines += [*wrap(f"{name}: {row.question}", 76), *INDENTED.wrap(", ".join(own))]
    return lines


def described(result: Result, top: int) -> list[Block]:
    """What was asked, what came out, and how long it took."""
    p = result.provenance
    options = ", ".join(f"{key}={shown(value)}" for key, value in p.arguments.items())
    where = f"{p.subject} on {p.backend}" + (f", {p.task}" if p.task else "")
    found = _scores(result, top) if isinstance(result, Scores) else [repr(result)]
    return [f"{p.method}({options})", where, "", *found, "", f"{p.seconds:.2f} s"]


def _scores(scores: Scores, top: int) -> list[Block]:
    """The metric of both runs, and the strongest cells."""
    ranking, cells = scores.top(top), scores.n_cells
    error = " (± standard error)" if scores.baselines.sizes["example"] > 1 else ""
    return [
        spelled(scores.baselines, scores.provenance.metric),
        *cautioned(scores.provenance.caution),
        *([f"{scores.provenance.asked}."] if scores.provenance.asked else []),
        *([f"{extent(scores)}."] if isinstance(scores, EdgeScores) else []),
        "",
        f"The {len(ranking)} strongest of {cells}{error}:",
        table(
            (scores.NOUN, unescape(words.unit(scores))),
            [(cell.label, measured(cell.value, cell.stderr, 4)) for cell in ranking],
        ),
    ]


def _check(config: TaskConfig) -> None:
    """Refuse a wrong description of a task before a model is loaded."""
    ways = [way for way in WAYS if getattr(config, way)]
    if len(ways) != 1:
        raise TaskError(
            f"The task is described by {' and '.join(ways) or 'nothing'}; give exactly one of: "
            f"name ({', '.join(GENERATORS)}), table, file, or pairs (clean, corrupted and answers)."
        )
    _check_keys(config.options, tasks.Task.from_pairs)
    _check_keys(config.columns, tasks.Task.from_table)
    if config.name is not None:
        _check_generator(config.name, config.arguments)


def _check_keys(given: Iterable[str], taker: Callable[..., tasks.Task]) -> None:
    known = list(inspect.signature(taker).parameters)
    unknown = [key for key in given if key not in known]
    if unknown:
        raise TaskError(
            f"The task has {unknown[0]!r}, which {taker.__qualname__} does not take; it takes "
            f"{', '.join(known)}."
        )


def _check_generator(name: str, arguments: dict[str, Any]) -> None:
    if name not in GENERATORS:
        raise TaskError(
            f"There is no task called {name!r}; nnattr.tasks has {', '.join(GENERATORS)}. Leave "
            "the name out to give clean, corrupted and answers."
        )
    signature = inspect.signature(GENERATORS[name])
    try:
        signature.bind("tokenizer", **arguments)
    except TypeError as error:
        options = ", ".join(list(signature.parameters)[1:])
        raise TaskError(f"The task {name!r}: {error}; it takes {options}.") from error
