"""One analysis as a file describes it: from a `RunConfig` to `Scores`, and to text."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from html import unescape
from typing import Any

from nnattr import tasks
from nnattr.cli.console import Block, table
from nnattr.config import RunConfig, TaskConfig
from nnattr.errors import MetricError, NnattrError, TaskError
from nnattr.metrics import METRICS, Metric
from nnattr.model.load import load
from nnattr.plots import words
from nnattr.report.again import METHODS
from nnattr.report.values import measured
from nnattr.results import Scores
from nnattr.tasks import GENERATORS

#: The ways to describe a task, by the fields that show which one is meant.
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
    return method(model, task, metric, **given)


def make_metric(config: RunConfig) -> Metric:
    """The metric of a file.

    Raises:
        MetricError: there is none of that name, or it does not take these arguments.
    """
    if config.metric not in METRICS:
        raise MetricError(
            f"metric is {config.metric!r}; a file can name {', '.join(METRICS)}. A function of "
            "your own works from Python."
        )
    try:
        return METRICS[config.metric](**config.metric_arguments)
    except TypeError as error:
        raise MetricError(f"The metric {config.metric}: {error}.") from error


def _arguments(config: RunConfig, method: Callable[..., Scores]) -> dict[str, Any]:
    """The method's keyword arguments: of the file's own fields those that it knows, and options."""
    known = list(inspect.signature(method).parameters)[3:]
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
    """The task of a file, described in one of the four ways of `TaskConfig`.

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
    """Refuse a description that no tokenizer could make good, before a model is loaded."""
    known = GENERATORS
    ways = [way for way in WAYS if getattr(config, way)]
    if len(ways) != 1:
        raise TaskError(
            f"The task is described by {' and '.join(ways) or 'nothing'}; give exactly one of: "
            f"name ({', '.join(known)}), table, file, or pairs (clean, corrupted and answers)."
        )
    for given, taker in (
        (config.options, tasks.Task.from_pairs),
        (config.columns, tasks.Task.from_table),
    ):
        unknown = [key for key in given if key not in inspect.signature(taker).parameters]
        if unknown:
            raise TaskError(f"The task has {unknown[0]!r}, which {taker.__qualname__} lacks.")
    if config.name is None:
        return
    if config.name not in known:
        raise TaskError(
            f"There is no task called {config.name!r}; nnattr.tasks has {', '.join(known)}. Leave "
            "the name out to give clean, corrupted and answers."
        )
    signature = inspect.signature(known[config.name])
    try:
        signature.bind("tokenizer", **config.arguments)
    except TypeError as error:
        options = ", ".join(list(signature.parameters)[1:])
        raise TaskError(f"The task {config.name!r}: {error}; it takes {options}.") from error
