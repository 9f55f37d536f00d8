"""One analysis as a file describes it: from a `RunConfig` to `Scores`, and to text."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

from nnattr import tasks
from nnattr.config import RunConfig, TaskConfig
from nnattr.errors import MetricError, TaskError
from nnattr.methods.activation_patching import activation_patching
from nnattr.methods.attribution_patching import attribution_patching
from nnattr.metrics import METRICS
from nnattr.model.sites import SiteName
from nnattr.model.view import load
from nnattr.results import Scores

METHODS: dict[str, Callable[..., Scores]] = {
    "activation_patching": activation_patching,
    "attribution_patching": attribution_patching,
}


def analyse(config: RunConfig) -> Scores:
    """Load the model, make the task and run the method that ``config`` names.

    Raises:
        NnattrError: a name that does not exist, or whatever loading and the method raise.
    """
    if config.metric not in METRICS:
        raise MetricError(
            f"metric is {config.metric!r}; a file can name {', '.join(METRICS)}. A function of "
            "your own works from Python."
        )
    _check(config.task)
    model = load(config.model, backend=config.backend, device=config.device, dtype=config.dtype)
    return METHODS[config.method](
        model,
        make_task(config.task, model.tokenizer),
        METRICS[config.metric](),
        site=cast(SiteName, config.site),
        positions=config.positions,
        direction=config.direction,
        normalized=config.normalized,
    )


def make_task(config: TaskConfig, tokenizer: Any) -> tasks.Task:
    """The task of a file: a generator's, or the pairs written out in it.

    Raises:
        TaskError: the task does not fit the tokenizer, or the description itself is wrong.
    """
    _check(config)
    if config.name is not None:
        return generators()[config.name](tokenizer, **config.arguments)
    return tasks.Task.from_pairs(
        config.clean, config.corrupted, config.answers, config.wrong_answers, tokenizer=tokenizer
    )


def generators() -> dict[str, Callable[..., tasks.Task]]:
    """The functions of `nnattr.tasks` that make a task for a tokenizer, by name."""
    return {
        name: made
        for name, made in vars(tasks).items()
        if inspect.isfunction(made) and made.__annotations__.get("return") == "Task"
    }


def described(scores: Scores, top: int) -> str:
    """What was measured, the metric of both runs, and the strongest cells."""
    p = scores.provenance
    options = ", ".join(f"{key}={value!r}" for key, value in p.arguments.items())
    means = {run: scores.baselines.sel(run=run).mean().item() for run in ("clean", "corrupted")}
    ranking, cells = scores.top(top), scores.mean().raw.size
    error = " (± standard error)" if scores.baselines.sizes["example"] > 1 else ""
    return "\n".join(
        [
            f"{p.method}({options})",
            f"{p.model} on {p.backend}, {p.task}",
            "",
            f"{p.metric}: " + ", ".join(f"{run} {value:+.4f}" for run, value in means.items()),
            "",
            f"The {len(ranking)} strongest of {cells}{error}:",
            repr(ranking),
            "",
            f"{p.seconds:.2f} s",
        ]
    )


def _check(config: TaskConfig) -> None:
    """Refuse a description that no tokenizer could make good, before a model is loaded."""
    pairs = config.clean or config.corrupted or config.answers
    known = generators()
    if config.name is None:
        if not pairs:
            raise TaskError(
                f"The task has neither a name ({', '.join(known)}) nor pairs: clean, corrupted and "
                "answers."
            )
        return
    if pairs:
        raise TaskError(f"The task has a name, {config.name!r}, and pairs of its own; give one.")
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
