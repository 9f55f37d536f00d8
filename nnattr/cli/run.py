"""``nnattr run``: the analysis that a run file describes, and a summary of what it found."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from html import unescape
from typing import Any

from nnattr import tasks
from nnattr.calls.registry import METHODS, Method
from nnattr.cli.console import Block, table
from nnattr.config import RunConfig, TaskConfig
from nnattr.errors import MetricError, NnattrError, TaskError
from nnattr.metrics import METRICS, Metric
from nnattr.model.load import load
from nnattr.plots import words
from nnattr.report.values import measured
from nnattr.results import Scores
from nnattr.tasks import GENERATORS

#: The fields of `TaskConfig` of which exactly one describes the task.
WAYS = ("name", "table", "file", "clean")


def analyse(config: RunConfig) -> Scores:
    """Load the model, make the task and run the method that ``config`` names.

    Raises:
        NnattrError: a name that does not exist, or whatever loading and the method raise.
    """
    method, metric = METHODS[config.method], make_metric(config)
    given = _arguments(config, method)
    _check(config.task)
    where = {key: getattr(config, key) for key in ("backend", "device", "dtype", "revision")}
    model = load(config.model, **where)
    task = make_task(config.task, model.tokenizer)
    if config.task.keep is not None:
        task = task.filter(model, config.task.keep)
    return method.function(model, task, metric, **given)


def make_metric(config: RunConfig) -> Metric:
    """The metric that a run file names.

    Raises:
        MetricError: no metric has that name, or it does not take these arguments.
    """
    if config.metric not in METRICS:
        raise MetricError(
            f"metric is {config.metric!r}; a run file can name {', '.join(METRICS)}. A function of "
            "your own works from Python."
        )
    try:
        return METRICS[config.metric](**config.metric_arguments)
    except TypeError as error:
        raise MetricError(f"The metric {config.metric}: {error}.") from error


def _arguments(config: RunConfig, method: Method) -> dict[str, Any]:
    """The method's keyword arguments: those fields of the file that it takes, and the options."""
    known = [name for name in method.arguments if name not in ("task", "metric")]
    fields = ("site", "positions", "direction", "normalized")
    given = {name: getattr(config, name) for name in fields if name in known}
    given = {name: value for name, value in given.items() if value is not None}
    unknown = [name for name in config.options if name not in known]
    if unknown:
        raise NnattrError(
            f"{config.method} has no option {unknown[0]!r}; it takes {', '.join(known)}."
        )
    return {**given, **config.options}


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


def described(scores: Scores, top: int) -> list[Block]:
    """What was measured, the metric of both runs, and the strongest cells."""
    p = scores.provenance
    options = ", ".join(f"{key}={value!r}" for key, value in p.arguments.items())
    means = scores.baselines.mean("example").dropna("run").to_series()
    ranking, cells = scores.top(top), scores.mean().raw.size
    error = " (± standard error)" if scores.baselines.sizes["example"] > 1 else ""
    return [
        f"{p.method}({options})",
        f"{p.model} on {p.backend}, {p.task}",
        "",
        f"{p.metric}: " + ", ".join(f"{run} {value:+.4f}" for run, value in means.items()),
        "",
        f"The {len(ranking)} strongest of {cells}{error}:",
        table(
            ("cell", unescape(words.unit(scores))),
            [(cell.label, measured(cell.value, cell.stderr, 4)) for cell in ranking],
        ),
        "",
        f"{p.seconds:.2f} s",
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
