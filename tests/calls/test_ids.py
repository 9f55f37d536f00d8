"""Random repeated token ids through every method: what no text may say is read as it is."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import nnattr
from nnattr import LogitDiff, Task
from nnattr.calls.again import python
from nnattr.calls.registry import METHODS
from nnattr.results import Result
from tests.methods.common import TEACHING, assert_same, raw_module, teaching
from tests.support.calls import EXAMPLES

LENGTH = 6
READING = [name for name, row in METHODS.items() if row.reads is not None]


@cache
def repeated(name: str, n: int = 3) -> Task:
    """Random ids and most of them again: the answer is the one that followed before.

    Any ids: special ones, and what the tokenizer would not write, are among them.
    """
    model, draw = teaching(name), random.Random(0)
    clean, corrupted, answers, wrong = [], [], [], []
    for _ in range(n):
        *first, answer, other = draw.sample(range(len(model.tokenizer)), LENGTH + 1)
        clean.append([*first, answer, *first])
        corrupted.append([*first, other, *first])
        answers.append(answer)
        wrong.append(other)
    spans = {"source": [[LENGTH - 1]] * n, "IO": [[LENGTH - 1]] * n}
    return Task.from_pairs(
        clean, corrupted, answers, wrong, tokenizer=model.tokenizer, spans=spans, name="ids"
    )


def in_ids(value: Any, task: Task) -> Any:
    """An argument of an example, with ids for texts."""
    known = {
        repr(list(task.clean)): task.clean_tokens.rows,
        repr(list(task.corrupted)): task.corrupted_tokens.rows,
        repr(task.clean[0]): task.clean_tokens.rows[0],
        repr(task.answers[0][0]): task.answer_ids[0][0],
    }
    return known.get(repr(value), value)


def ways(name: str, task: Task) -> list[dict[str, Any]]:
    """The calls of a method that read these ids: as ids, as a task and as tokens."""
    read = str(METHODS[name].reads)
    given = {key: in_ids(value, task) for key, value in EXAMPLES[name](task).items()}
    if read == "task":
        return [{**given, "task": task}]
    one = {"prompt": task[[0]]}.get(read, task)
    others = [one.clean_tokens.rows, one, one.clean_tokens]
    given.pop("run", None)  # of a task alone there are two
    if name == "detect_heads":
        given = {}
    return [{**given, read: way} for way in others]


def assert_alike(one: Any, other: Any) -> None:
    """The same in all that both hold; a task's answers are known besides."""
    if not isinstance(one, Result):
        assert one == other
        return
    shared = one.data.keys() & other.data.keys()
    assert shared
    for name in shared:
        np.testing.assert_array_equal(one.data[name], other.data[name])


@pytest.mark.parametrize("model", TEACHING)
@pytest.mark.parametrize("name", READING)
def test_every_method_reads_ids_as_they_are(model: str, name: str, tmp_path: Path) -> None:
    subject, task = teaching(model), repeated(model)
    found = [METHODS[name].function(subject, **way) for way in ways(name, task)]
    given = task.clean_tokens.rows + task.corrupted_tokens.rows
    for result in found:
        assert_alike(found[0], result)
        if isinstance(result, Result):
            rows = result.task.clean_tokens.rows
            assert rows == given[: len(rows)]
            assert result.task.from_ids
            path = str(result.save(tmp_path / "result.safetensors"))
            xr.testing.assert_identical(nnattr.load_result(path).data, result.data)
            scope: dict[str, Any] = {}
            exec(python(result, path), scope)
            assert_alike(result, scope["result"])
            assert repr(result)


@pytest.mark.parametrize("model", TEACHING)
def test_they_are_what_the_model_is_given(model: str) -> None:
    """The numbers are those of the model on these very ids, one prompt at a time."""
    subject, task = teaching(model), repeated(model)
    scores = nnattr.activation_patching(subject, task, LogitDiff(), positions="source")
    module = raw_module(subject)
    for run, tokens in (("clean", task.clean_tokens), ("corrupted", task.corrupted_tokens)):
        found = []
        for row, (right,), (wrong,) in zip(
            tokens.rows, task.answer_ids, task.wrong_answer_ids, strict=True
        ):
            with torch.no_grad():
                last = module(torch.tensor([row])).logits[0, -1]
            found.append(float(last[right] - last[wrong]))
        assert_same(scores.baselines.sel(run=run), np.array(found))
