"""A real model, if it is at hand: find the head that copies a name out of a story."""

from __future__ import annotations

from typing import Any

import pytest

from nnattr import LogitDiff, Task, agreement
from tests.methods.common import METHODS, SITES, assert_far, assert_same, expected, stories
from tests.support.paths import needs_stories

pytestmark = needs_stories
STORY = "Once upon a time, there was a little child named {}. One day,"


@pytest.fixture(scope="module")
def task() -> Task:
    return Task.from_pairs(
        [STORY.format("Lily")],
        [STORY.format("Timmy")],
        [" Lily"],
        [" Timmy"],
        tokenizer=stories().tokenizer,
    )


def test_the_model_shows_the_behaviour(task: Task) -> None:
    scores = METHODS["activation"](stories(), task, LogitDiff())
    clean, corrupted = scores.baselines[:, 0].to_numpy()
    assert clean > 1
    assert corrupted < -1


@pytest.mark.parametrize(
    ("method", "value"), [("activation", 0.7685), ("attribution", 0.7958)], ids=METHODS
)
def test_one_head_copies_the_name(task: Task, method: str, value: float) -> None:
    best, second = METHODS[method](stories(), task, LogitDiff()).top(2)
    assert best.index == (2, 6)
    assert best.label == "L2H6"
    assert best.value == pytest.approx(value, abs=5e-4)
    assert abs(second.value) < 0.6 * best.value


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("site", SITES)
def test_equals_the_oracle(task: Task, site: Any, method: str, direction: Any) -> None:
    scores = METHODS[method](stories(), task, LogitDiff(), site=site, direction=direction)
    theirs = expected(method, stories(), task, site=site, direction=direction)
    assert_same(scores.raw, theirs)


def test_the_copying_is_done_at_the_last_token(task: Task) -> None:
    each = METHODS["activation"](stories(), task, LogitDiff(), positions="each")
    assert each.top(1)[0].index == (2, 6, task.width - 1)


def test_a_slice_of_the_projections_output_is_no_head(task: Task) -> None:
    ours = METHODS["activation"](stories(), task, LogitDiff()).raw
    assert_far(ours, expected("activation", stories(), task, site="attn_out", split=8), share=0.5)


def test_both_methods_agree(task: Task) -> None:
    exact, estimate = (method(stories(), task, LogitDiff()) for method in METHODS.values())
    found = agreement(exact, estimate, k=5)
    assert found.pearson > 0.95
    assert found.overlap >= 0.8
