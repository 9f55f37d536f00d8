"""Wrong values in every argument: a call gives a result or one of our errors, and never hangs.

::

    python -m pytest tests/test_fuzz.py --fuzz=10000    # as CI does
    python -m tests.test_fuzz 123                       # call 123 again, with its traceback

Call ``i`` is drawn from the number ``i`` alone, so a fault that is reported can be repeated; it
then becomes a unit test.
"""

from __future__ import annotations

import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nnattr
from nnattr.arguments import shown
from nnattr.calls.registry import METHODS
from nnattr.graph import Part
from tests.support.calls import example

#: How many calls one test makes, and how many seconds each may take.
PORTION, LIMIT = 100, 20
#: Arguments that say how much is to be done: a million of them is no mistake, and takes long.
SIZES = {"n", "length", "max_new_tokens", "samples", "n_resamples", "n_permutations"}
Call = tuple[str, Callable[..., Any], dict[str, Any]]


class Hangs(BaseException):
    """A call took too long; not an `Exception`, so that nothing catches it on the way."""


@cache
def model() -> nnattr.Model:
    return nnattr.load("teaching-gpt2")


@cache
def task() -> nnattr.Task:
    return nnattr.tasks.ioi(model().tokenizer, n=2, seed=0)


@cache
def result(name: str) -> Any:
    """What a method returns."""
    return METHODS[name].function(**example(name, model(), task()))


def table() -> list[dict[str, str]]:
    """Rows of a task."""
    return [
        {"clean": a, "corrupted": b, "answer": right[0], "wrong": wrong[0]}
        for a, b, right, wrong in zip(
            task().clean, task().corrupted, task().answers, task().wrong_answers, strict=True
        )
    ]


def of_methods() -> Iterator[Call]:
    """One call of every method, and of the circuits, which are not results."""
    for name, row in METHODS.items():
        yield name, row.function, example(name, model(), task())
    yield "ov_circuit", nnattr.weights.ov, {"model": model(), "heads": (1, 0)}
    yield "qk_circuit", nnattr.weights.qk, {"model": model(), "head": "L1H0", "distance": 1}
    yield "position_pattern", nnattr.weights.position_pattern, {"model": model(), "head": (0, 0)}
    ov = nnattr.weights.ov(model(), (1, 0))
    yield "Circuit.block", ov.block, {"rows": [5, 6], "columns": [7]}
    yield "Circuit.directions", ov.directions, {"k": 2}
    yield "Circuit.copying_accuracy", ov.copying_accuracy, {"top_k": 2}
    yield "verify", nnattr.verify, {"model": model()}
    given = {"tokens": task().clean_tokens, "asked": task().answer_ids}
    yield "Model.predict", model().predict, given


def of_tasks() -> Iterator[Call]:
    """Generators, constructors and methods of tasks."""
    tokenizer = model().tokenizer
    for name, generator in nnattr.tasks.GENERATORS.items():
        own = {"chat": False} if name == "requests" else {}
        yield f"tasks.{name}", generator, {"tokenizer": tokenizer, "n": 2, **own}
    pairs = {
        "clean": list(task().clean),
        "corrupted": list(task().corrupted),
        "answers": [one[0] for one in task().answers],
        "wrong_answers": [one[0] for one in task().wrong_answers],
    }
    from_pairs, from_prompts = nnattr.Task.from_pairs, nnattr.Task.from_prompts
    yield "Task.from_pairs", from_pairs, {**pairs, "tokenizer": tokenizer, "spans": {}}
    prompts = {"prompts": pairs["clean"], "answers": pairs["answers"], "tokenizer": tokenizer}
    yield "Task.from_prompts", from_prompts, prompts
    rows = {"source": table(), "tokenizer": tokenizer, "wrong_answer": "wrong", "spans": ()}
    yield "Task.from_table", nnattr.Task.from_table, rows
    yield "Task.filter", task().filter, {"model": model(), "keep": lambda prediction: True}
    yield "Task.split", task().split, {"seed": 1}
    yield "Task.describe", task().describe, {"examples": 1}
    yield "Task.save", task().save, {"path": "task.json"}
    yield "Task.load", nnattr.Task.load, {"path": "task.json"}
    yield "task[...]", task().__getitem__, {"index": slice(0, 1)}


#: Public methods of results, by what returns one, with arguments that are right.
OF_RESULTS: dict[str, dict[str, dict[str, Any]]] = {
    "direct_logit_attribution": {"top": {"k": 1}},
    "activation_patching": {
        "top": {"k": 2, "by": "value"},
        "sel": {"layer": 0},
        "bootstrap_ci": {"level": 0.9, "n_resamples": 20},
        "permutation_pvalue": {"n_permutations": 20},
        "significant": {"q": 0.9, "n_permutations": 20},
        "where": {"cells": None},
        "mean": {},
        "stderr": {},
        "plot": {"title": "a", "limit": 1.0},
        "to_dataframe": {},
        "save": {"path": "scores.safetensors"},
    },
    "detect_heads": {
        "top": {"kind": "induction", "k": 2},
        "heads": {"kind": "induction"},
        "limit": {"kind": "first"},
        "plot": {"kind": "first", "title": "a"},
        "plot_loss": {"title": "a"},
    },
    "attention_patterns": {
        "of": {"layer": 0, "head": 1, "example": 0},
        "plot": {"example": 0, "heads": [(0, 1)], "title": "a"},
        "viewer": {"title": "a"},
        "to_html": {"path": "patterns.html"},
    },
    "logit_lens": {"plot": {"example": 0, "colour": "entropy", "title": "a"}},
    "decompose_attention": {
        "top": {"k": 2},
        "view": {"what": "spread", "example": 0},
        "plot": {"what": "scores", "example": 0},
    },
    "weights.composition": {
        "top": {"k": 2},
        "pair": {"sender": (0, 1), "receiver": "L1H0"},
        "plot": {},
    },
    "capture": {"plot": {"site": "z", "example": 0, "title": "a"}, "to_dataframe": {}},
    "compare_runs": {
        "plot": {"what": "norm", "title": "a"},
        "to_dataframe": {},
        "save": {"path": "comparison.safetensors"},
    },
    "inspect_prompt": {"to_dataframe": {}, "plot": {"step": 0, "title": "a"}},
    "most_frequent_answers": {"to_dataframe": {}, "plot": {"title": "a"}},
}


def of_results() -> Iterator[Call]:
    """Methods of results, and what takes a result."""
    for name, methods in OF_RESULTS.items():
        found = result(name)
        for method, given in methods.items():
            if method == "where":
                given = {"cells": found.mean().values > 0}
            yield f"{type(found).__name__}.{method}", getattr(found, method), given
    scores = result("activation_patching")
    yield "agreement", nnattr.agreement, {"exact": scores, "estimate": scores, "k": 2}
    yield "load_result", nnattr.load_result, {"path": "scores.safetensors"}
    yield "Scores.load", nnattr.Scores.load, {"path": "scores.safetensors"}


def of_load() -> Iterator[Call]:
    yield "load", nnattr.load, {"model": "teaching-gpt2", "backend": "local", "dtype": "float32"}


@cache
def calls() -> list[Call]:
    """Every public call with arguments that are right."""
    # load is one of many, and dear
    return [*of_methods(), *of_tasks(), *of_results(), *of_load()]


#: Values to put in place of right ones: made anew for each call.
VALUES: list[Callable[[], Any]] = [
    *(
        partial(lambda value: value, value)
        for value in (None, True, False, -1, 0, 1, 2, 7, -(10**9))
    ),
    *(partial(float, value) for value in ("0.5", "-0.5", "1.0", "nan", "inf")),
    *(partial(str, value) for value in ("", "zz", "last", "each", "all", "S2", "IO", "é\x00")),
    *(partial(str, value) for value in ("L1H0", "1.0", "L9H9", "M0", "z", "mlp_out", "clean")),
    *(partial(str, value) for value in ("K", "head", "mean", "zero", "full", "value", "row")),
    lambda: b"x",
    lambda: 1j,
    lambda: [],
    lambda: (),
    lambda: [1],
    lambda: [0, 0],
    lambda: [-1],
    lambda: [99],
    lambda: [None],
    lambda: [True],
    lambda: [1.5],
    lambda: ["a"],
    lambda: [""],
    lambda: ["a", "b"],
    lambda: [["a"], ["b", "c"]],
    lambda: [[]],
    lambda: (0, 1),
    lambda: (9, 9),
    lambda: (1, 2, 3),
    lambda: [(0, 1)],
    lambda: [(9, 9)],
    lambda: [(0, -1)],
    lambda: ["L0H1", "1.0"],
    lambda: ["z", "q"],
    lambda: [Part("head", 0, 1)],
    lambda: Part("head", 1, 0),
    lambda: Part("mlp", 1),
    lambda: {},
    lambda: {"a": 1},
    lambda: {"a": ["S"]},
    lambda: {1: None},
    lambda: {"induction": "x"},
    lambda: {"induction": float("nan")},
    lambda: set(),
    lambda: {1, 2},
    lambda: range(2),
    lambda: iter([0, 1]),
    lambda: slice(0, 1),
    lambda: slice(5, 2, -1),
    lambda: object(),
    lambda: int,
    lambda: len,
    lambda: lambda *_: None,
    lambda: lambda logits, batch: logits[:, -1, 0],
    lambda: lambda logits, batch: "text",
    lambda: Path("nowhere/x"),
    lambda: Path(),
    lambda: np.int64(1),
    lambda: np.float32(0.5),
    lambda: np.array([0, 1]),
    lambda: np.array(1.5),
    lambda: np.zeros((2, 2)),
    lambda: np.array(["a"]),
    lambda: torch.tensor([0]),
    lambda: torch.tensor(1),
    lambda: torch.zeros(2, 2),
    lambda: torch.zeros(0),
    lambda: model(),
    lambda: model().tokenizer,
    lambda: model().module,
    lambda: task(),
    lambda: task()[:1],
    lambda: task().clean_tokens,
    lambda: list(task().clean),
    lambda: task().clean[0],
    lambda: nnattr.LogitDiff(),
    lambda: nnattr.LogitDiff,
    lambda: nnattr.KL(),
    lambda: nnattr.Loss(),
    lambda: nnattr.SequenceLogProb(),
    lambda: nnattr.Local(),
    lambda: result("activation_patching"),
    lambda: result("activation_patching").raw,
    lambda: result("detect_heads"),
    lambda: table(),
]
HUGE: list[Callable[[], Any]] = [lambda: 10**6, lambda: 2**63, lambda: 2**70, lambda: [2**70]]


def drawn(i: int) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    """Call ``i``: a right one in which one or two arguments have another value."""
    draw = random.Random(f"nnattr {i}")
    name, function, right = draw.choice(calls())
    given = dict(right)
    known = [
        one.name
        for one in signature(function).parameters.values()
        if one.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    ]
    known = sorted({*known, *right}) or ["zz"]
    for argument in draw.sample(known, min(len(known), draw.choice((1, 1, 1, 2)))):
        odd = draw.random()
        if odd < 0.02:
            given.pop(argument, None)
        elif odd < 0.04:
            given["zz"] = draw.choice(VALUES)()
        else:
            given[argument] = draw.choice(VALUES if argument in SIZES else VALUES + HUGE)()
    return name, function, given


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise `Hangs` in what takes longer."""

    def ring(*_: Any) -> None:
        raise Hangs(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fault(i: int) -> str | None:
    """What is wrong with call ``i``, if anything is."""
    name, function, given = drawn(i)
    try:
        with within(LIMIT):
            function(**given)
    except nnattr.NnattrError:
        return None
    except (Exception, Hangs) as error:
        inside = traceback.extract_tb(error.__traceback__)[-1]
        arguments = ", ".join(f"{key}={shown(value)}" for key, value in given.items())
        return (
            f"call {i}: {type(error).__name__}: {shown(error)} "
            f"({Path(inside.filename).name}:{inside.lineno})\n    {name}({arguments})"
        )
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "first" in metafunc.fixturenames:
        count = metafunc.config.getoption("--fuzz")
        metafunc.parametrize("first", range(0, count, PORTION))


def test_a_call_gives_a_result_or_one_of_our_errors(
    first: int, pytestconfig: pytest.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = min(first + PORTION, pytestconfig.getoption("--fuzz"))
    monkeypatch.chdir(tmp_path)  # some write files
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no name is looked for
    faults = [found for i in range(first, last) if (found := fault(i))]
    assert not faults, "\n".join(faults)


def test_every_right_call_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its wrong arguments would not be what is tried."""
    monkeypatch.chdir(tmp_path)
    for _, function, given in calls():
        function(**given)


if __name__ == "__main__":
    for number in map(int, sys.argv[1:]):
        said = fault(number)
        print(said or f"call {number}: {drawn(number)[0]} is fine")
        if said:
            drawn_name, drawn_function, drawn_given = drawn(number)
            drawn_function(**drawn_given)
