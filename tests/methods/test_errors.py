"""Questions that cannot be answered are refused, with what was given and what to do next."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nnattr
from nnattr import LogitDiff, Task
from nnattr.errors import ArchError, ArgumentError, MetricError, TaskError
from tests.methods.common import METHODS, ragged_ioi, ragged_tiny, teaching, tiny
from tests.support.metrics import entropy
from tests.tiny import CONTEXT, FAMILIES, tiny_module, tiny_tokenizer

PARALLEL = ("cohere", "falcon", "gpt_neox", "gptj", "phi", "stablelm-parallel")

pytestmark = pytest.mark.parametrize("method", METHODS)


def test_an_unknown_site(method: str) -> None:
    model = tiny("gpt2")
    with pytest.raises(ArgumentError, match=r"'zz'.*'q' or 'k' or 'v' or 'z'"):
        METHODS[method](model, ragged_tiny(model), LogitDiff(), site="zz")


@pytest.mark.parametrize("family", PARALLEL)
def test_resid_mid_of_parallel_blocks(method: str, family: str) -> None:
    assert family in FAMILIES
    model = tiny(family)
    with pytest.raises(ArchError, match=r"no 'resid_mid'.*parallel"):
        METHODS[method](model, ragged_tiny(model), LogitDiff(), site="resid_mid")


@pytest.mark.parametrize("direction", ["clean", "", None, "Denoising"])
def test_a_wrong_direction(method: str, direction: Any) -> None:
    model = tiny("gpt2")
    with pytest.raises(ArgumentError, match="direction is "):
        METHODS[method](model, ragged_tiny(model), LogitDiff(), direction=direction)


@pytest.mark.parametrize("position", [4, -5, [0, 4], 5])
def test_a_position_that_a_prompt_does_not_have_names_the_prompt(
    method: str, position: Any
) -> None:
    model = tiny("gpt2")
    task = ragged_tiny(model)
    with pytest.raises(TaskError, match=r"'w33 w34 w35 w36', which has 4 tokens"):
        METHODS[method](model, task, LogitDiff(), positions=position)
    METHODS[method](model, task, LogitDiff(), positions=[-4, 3])  # these it has


@pytest.mark.parametrize(("positions", "says"), [("S9", "'each', 'last', 'where'"), ([], "least")])
def test_positions_that_name_nothing(method: str, positions: Any, says: str) -> None:
    model = tiny("gpt2")
    with pytest.raises(TaskError, match=says):
        METHODS[method](model, ragged_tiny(model), LogitDiff(), positions=positions)


@pytest.mark.parametrize("positions", [1.5, [1.5], ["where"], None])
def test_positions_of_another_kind(method: str, positions: Any) -> None:
    model = tiny("gpt2")
    with pytest.raises(ArgumentError, match="positions is "):
        METHODS[method](model, ragged_tiny(model), LogitDiff(), positions=positions)


def test_integers_of_numpy_and_torch_are_integers(method: str) -> None:
    import numpy as np

    model = tiny("gpt2")
    task = ragged_tiny(model)
    plain = METHODS[method](model, task, LogitDiff(), positions=2).raw
    for positions in (np.int64(2), np.array([2]), torch.tensor(2)):
        same = METHODS[method](model, task, LogitDiff(), positions=positions).raw
        np.testing.assert_array_equal(same, plain)


def test_a_metric_that_needs_wrong_answers(method: str) -> None:
    model = tiny("gpt2")
    task = Task.from_pairs(["w3 w4"], ["w5 w4"], ["w70"], tokenizer=model.tokenizer)
    with pytest.raises(MetricError, match=r"LogitDiff\(\) needs wrong_answers"):
        METHODS[method](model, task, LogitDiff())
    assert METHODS[method](model, task, nnattr.LogProb()).raw.any()


@pytest.mark.parametrize("metric", [LogitDiff, "LogitDiff", None])
def test_what_is_no_metric(method: str, metric: Any) -> None:
    model = tiny("gpt2")
    with pytest.raises(MetricError, match="not a metric"):
        METHODS[method](model, ragged_tiny(model), metric)


def test_weights_that_are_not_numbers(method: str) -> None:
    module = tiny_module("llama")
    module.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    model = nnattr.load(module, tokenizer=tiny_tokenizer())
    with pytest.raises(MetricError, match=r"nan on the run.*'w3 w4 w5 w6 w7 w8'"):
        METHODS[method](model, ragged_tiny(model), LogitDiff())


def nan_when_patched(logits: Any, batch: Any) -> Any:
    """A number for the rows of the two runs, none for more of them."""
    value = logits[:, -1, 70]
    return value if len(value) <= 3 else value * float("nan")


def nan_slope(logits: Any, batch: Any) -> Any:
    """A number whose slope is none: 0 * inf."""
    value = logits[:, -1, 70]
    return value + (value - value.detach()).sqrt()


def test_a_score_that_is_not_a_number(method: str) -> None:
    """NaN stands for 'no such position'; a cell whose metric overflowed must not pass for one."""
    model = tiny("gpt2")
    metric = {"activation": nan_when_patched, "attribution": nan_slope}[method]
    with pytest.raises(MetricError, match=r"nan|inf"):
        METHODS[method](model, ragged_tiny(model), metric)


def missing_attribute(logits: Any, batch: Any) -> Any:
    return batch.nothing_of_this_name


def test_a_metric_that_fails(method: str) -> None:
    model = tiny("gpt2")
    with pytest.raises(nnattr.NnattrError, match="nothing_of_this_name"):
        METHODS[method](model, ragged_tiny(model), missing_attribute)


def test_a_task_made_with_another_tokenizer(method: str) -> None:
    one, other = teaching("teaching-gpt2"), teaching("teaching-llama")
    with pytest.raises(TaskError, match=r"another tokenizer.*teaching-gpt2"):
        METHODS[method](one, ragged_ioi(other), LogitDiff())


def test_a_prompt_longer_than_the_context(method: str) -> None:
    model = tiny("llama")
    words = [f"w{3 + i % 7}" for i in range(CONTEXT + 1)]
    clean = ["w3 w4", " ".join(words)]
    corrupted = ["w5 w4", " ".join(["w9", *words[1:]])]
    answers = ["w70", "w70"]
    task = Task.from_pairs(clean, corrupted, answers, ["w80", "w80"], tokenizer=model.tokenizer)
    with pytest.raises(TaskError, match=rf"'w3 w4 w5.*{CONTEXT + 1} tokens.*{CONTEXT}"):
        METHODS[method](model, task, LogitDiff())
    fits = Task.from_pairs(
        [" ".join(words[:-1])],
        [" ".join(["w9", *words[1:-1]])],
        ["w70"],
        ["w80"],
        tokenizer=model.tokenizer,
    )
    assert METHODS[method](model, fits, LogitDiff()).raw.any()


def best_token(logits: Any, batch: Any) -> Any:
    return (logits[:, -1].argmax(-1) == batch.answers[:, 0]).float()


def test_a_metric_without_a_slope(method: str) -> None:
    """Accuracy can be patched, but it has no gradient."""
    model = tiny("gpt2")
    task = ragged_tiny(model)
    if method == "activation":
        scores = METHODS[method](model, task, best_token, normalized=False)
        assert scores.raw.shape == (3, model.n_layers, model.n_heads)
    else:
        with pytest.raises(MetricError, match="gradient"):
            METHODS[method](model, task, best_token, normalized=False)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_switched_off_around_the_call_change_nothing(method: str, mode: Any) -> None:
    """Notebooks of this field begin with ``torch.set_grad_enabled(False)``."""
    model = tiny("gpt2")
    task = ragged_tiny(model)
    plain = METHODS[method](model, task, entropy).raw
    with mode():
        inside = METHODS[method](model, task, entropy).raw
    assert plain.any()
    assert (inside == plain).all()
