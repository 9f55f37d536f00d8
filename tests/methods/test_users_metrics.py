"""A metric is somebody's own code: what is wrong with it is said as its error, with its line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import nnattr
from nnattr import LogitDiff, Model, Task
from nnattr.errors import MetricError, NnattrError
from tests.methods.common import even_ioi, ragged_ioi, teaching

#: Every method that takes a metric of any kind, and the ways to run it.
METHODS: dict[str, Callable[[Model, Task, Any], Any]] = {
    "activation_patching": nnattr.activation_patching,
    "full passes": lambda m, t, f: nnattr.activation_patching(m, t, f, engine="full"),
    "patterns": lambda m, t, f: nnattr.activation_patching(m, t, f, site="pattern"),
    "attribution_patching": nnattr.attribution_patching,
    "ablate": nnattr.ablate,
    "ablate_together": lambda m, t, f: nnattr.ablate_together(m, t, f, [(0, 1), (1, 2)]),
}


class OwnError(Exception):
    """Of a user's own package."""


def has_a_typo(logits: Any, batch: Any) -> Any:
    last = logits[:, -1]
    return last.gahter(0)


def raises_its_own(logits: Any, batch: Any) -> Any:
    raise OwnError("the answer is missing\nand so is this line")


def raises_below(logits: Any, batch: Any) -> Any:
    return helper(logits)


def helper(logits: Any) -> Any:
    return logits[:, -1, 10_000_000]


def is_a_float(logits: Any, batch: Any) -> Any:
    return float(logits[:, -1, 0].sum())


def is_a_mean(logits: Any, batch: Any) -> Any:
    return logits[:, -1, 0].mean()


def is_one_row(logits: Any, batch: Any) -> Any:
    return logits[:, -1, 0].mean(0, keepdim=True)


def is_per_token(logits: Any, batch: Any) -> Any:
    return logits[:, -1]


def is_complex(logits: Any, batch: Any) -> Any:
    return logits[:, -1, 0] * 1j


def is_nothing(logits: Any, batch: Any) -> Any:
    logits[:, -1, 0]


def is_nan(logits: Any, batch: Any) -> Any:
    return logits[:, -1, 0] * float("nan")


def is_of_the_batch(logits: Any, batch: Any) -> Any:
    """What a run prefers to the other runs beside it: other ones, other numbers."""
    return logits[:, -1, 5] - logits[:, -1, 5].mean()


class Answers:
    """A metric that knows the answers by their place in the task: no row of a patched run does."""

    def __init__(self, answers: torch.Tensor) -> None:
        self.answers = answers

    def __call__(self, logits: Any, batch: Any) -> Any:
        """The answers' logits."""
        return logits[torch.arange(len(self.answers)), -1, self.answers]


WRONG = {
    "a typo": (has_a_typo, r"'gahter', in line \d+: return last\.gahter\(0\)"),
    "its own error": (raises_its_own, r"OwnError: the answer is missing\nand so"),
    "an error below": (raises_below, r"IndexError.*in line \d+: return logits\[:, -1, 10_000"),
    "a float": (is_a_float, "one number for each of 3 rows, got float"),
    "a mean": (is_a_mean, r"one number for each of 3 rows, got \(\)"),
    "one row": (is_one_row, r"one number for each of 3 rows, got \(1,\)"),
    "per token": (is_per_token, r"one number for each of 3 rows, got \(3, "),
    "complex": (is_complex, r"one number for each of 3 rows, got \(3,\)"),
    "nothing": (is_nothing, "got NoneType"),
    "nan": (is_nan, "nan"),
    "of the batch": (is_of_the_batch, "depends on the rows beside it"),
    "by place": (Answers(torch.tensor([4, 5, 6])), "depends on the rows beside it"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backend", ["local", "simulated"])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_a_metric_is_said(method: str, backend: str, wrong: str) -> None:
    model = teaching("teaching-llama", backend)
    metric, said = WRONG[wrong]
    with pytest.raises(MetricError, match=said):
        METHODS[method](model, even_ioi(model), metric)


@pytest.mark.parametrize("method", METHODS)
def test_a_metric_of_one_argument_is_told_the_form(method: str) -> None:
    model = teaching("teaching-llama")
    with pytest.raises(MetricError, match=r"takes \(logits\).*metric\(logits, batch\)"):
        METHODS[method](model, even_ioi(model), lambda logits: logits[:, -1, 0])


def second_token(logits: Any, batch: Any) -> Any:
    return logits[:, 1, 5] - logits[:, 1, 6]


def mean_of_positions(logits: Any, batch: Any) -> Any:
    return logits.mean(1)[:, 5]


def by_the_width(logits: Any, batch: Any) -> Any:
    return logits[:, -1, 5] / logits.shape[1]


def own_mean(logits: Any, batch: Any) -> Any:
    return (logits[..., 5] * batch.mask).sum(1) / batch.mask.sum(1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metric", [second_token, mean_of_positions, by_the_width])
def test_a_metric_that_reads_padding_is_refused(method: str, metric: Any) -> None:
    model = teaching("teaching-llama")
    with pytest.raises(MetricError, match="reads padding"):
        METHODS[method](model, ragged_ioi(model), metric)
    METHODS[method](model, ragged_ioi(model), own_mean)


def for_one_row(logits: Any, batch: Any) -> Any:
    return logits[:, -1, 5].mean(0, keepdim=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metric", [for_one_row, is_of_the_batch, Answers(torch.tensor([5]))])
def test_with_one_example_too(method: str, metric: Any) -> None:
    """One example's run is one row: what is wrong would show first in patched runs, as a number."""
    model = teaching("teaching-llama")
    with pytest.raises(MetricError):
        METHODS[method](model, even_ioi(model)[:1], metric)


def test_answers_by_their_place_in_the_task() -> None:
    """An answer by its place in the task would be another row's, and of more rows there is none."""
    model = teaching("teaching-llama")
    for n in (2, 4):
        answers = Answers(torch.arange(n) + 5)
        with pytest.raises(MetricError, match="what belongs to a row is in batch"):
            nnattr.activation_patching(model, even_ioi(model, n), answers)


def fails_on_many(logits: Any, batch: Any) -> Any:
    if len(logits) > 3:
        raise OwnError("too many")
    return logits[:, -1, 5]


def test_an_error_in_patched_runs_alone() -> None:
    model = teaching("teaching-llama")
    with pytest.raises(MetricError, match="OwnError: too many"):
        nnattr.activation_patching(model, even_ioi(model), fails_on_many)


class Trained(torch.nn.Module):
    """A metric with weights that want gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, logits: Any, batch: Any) -> Any:
        """Twice a logit."""
        return self.scale * logits[:, -1, 5]


def doubled(logits: Any, batch: Any) -> Any:
    return 2 * logits[:, -1, 5]


def whole(logits: Any, batch: Any) -> Any:
    return (logits[:, -1].argmax(-1) == batch.answers[:, 0]).long()


def truth(logits: Any, batch: Any) -> Any:
    return logits[:, -1].argmax(-1) == batch.answers[:, 0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("metric", "like"), [(Trained(), doubled), (truth, whole)])
def test_what_is_a_number_in_another_form(method: str, metric: Any, like: Any) -> None:
    model = teaching("teaching-llama")
    task = even_ioi(model)
    if method == "attribution_patching" and metric is truth:
        with pytest.raises(MetricError, match="no gradient"):
            METHODS[method](model, task, metric)
        return
    try:
        expected = METHODS[method](model, task, like)
    except NnattrError as error:  # nothing to normalise by
        with pytest.raises(type(error)):
            METHODS[method](model, task, metric)
        return
    np.testing.assert_array_equal(METHODS[method](model, task, metric).raw, expected.raw)


def test_the_metrics_that_come_with_the_package_are_not_refused() -> None:
    model = teaching("teaching-llama")
    for metric in (LogitDiff(), nnattr.KL(), nnattr.Loss(), nnattr.Prob()):
        for n in (1, 2, 3):
            found = nnattr.activation_patching(model, even_ioi(model)[:n], metric, normalized=False)
            assert found.raw.any()


class Linear:
    """A linear metric of a user's own, whose weights are what the test says."""

    def __init__(self, weights: Callable[[Task], Any]) -> None:
        self.weights = weights

    def __call__(self, logits: Any, batch: Any) -> Any:
        """A logit."""
        return logits[:, -1, 5]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (lambda task: task.nothing, r"weights\(task\) failed: AttributeError"),
        (lambda task: {5: 1.0}, "expected a tuple of 3 dicts"),
        (lambda task: ({5: 1.0},), "expected a tuple of 3 dicts"),
        (lambda task: ({},) * 3, "expected a tuple of 3 dicts"),
        (lambda task: ({5: float("nan")},) * 3, "expected a tuple of 3 dicts"),
        (lambda task: ({"w5": 1.0},) * 3, "expected a tuple of 3 dicts"),
        (lambda task: None, "is NoneType None"),
    ],
)
def test_a_direction_of_a_users_own(weights: Any, said: str) -> None:
    model = teaching("teaching-llama")
    with pytest.raises(MetricError, match=said):
        nnattr.direct_logit_attribution(model, even_ioi(model), Linear(weights))
    right = Linear(lambda task: ({5: 1.0},) * 3)
    assert nnattr.direct_logit_attribution(model, even_ioi(model), right).raw.any()


class Reading:
    """A metric that names a field no task of single tokens has."""

    reads = ("sequence",)

    def __call__(self, logits: Any, batch: Any) -> Any:
        """A logit."""
        return logits[:, -1, 0]


def test_a_metric_that_says_it_reads_what_the_task_has_not() -> None:
    model = teaching("teaching-llama")
    metric = Reading()
    with pytest.raises(MetricError, match="reads sequence, which the task"):
        nnattr.activation_patching(model, even_ioi(model), metric)
