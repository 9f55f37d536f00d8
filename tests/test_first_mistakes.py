"""What people get wrong in their first ten minutes is said in our words, with what to do."""

from __future__ import annotations

import pytest

import nnattr


@pytest.fixture(scope="module")
def model() -> nnattr.Model:
    return nnattr.load("teaching-gpt2")


@pytest.fixture(scope="module")
def task(model: nnattr.Model) -> nnattr.Task:
    return nnattr.tasks.ioi(model.tokenizer, n=2, seed=0)


def test_a_model_where_a_tokenizer_is_wanted(model: nnattr.Model) -> None:
    with pytest.raises(nnattr.errors.ArgumentError, match=r"tokenizer is .*model\.tokenizer"):
        nnattr.tasks.ioi(model, n=2)
    with pytest.raises(nnattr.errors.ArgumentError, match=r"tokenizer is .*model\.tokenizer"):
        nnattr.Task.from_prompts(["When John"], tokenizer=model)


@pytest.mark.parametrize(
    "method",
    [
        nnattr.activation_patching,
        nnattr.attribution_patching,
        nnattr.direct_logit_attribution,
    ],
)
def test_a_name_or_prompts_where_model_and_task_are_wanted(
    method, model: nnattr.Model, task: nnattr.Task
) -> None:
    with pytest.raises(nnattr.errors.ArgumentError, match=r"model is .*nnattr\.load"):
        method("teaching-gpt2", task, nnattr.LogitDiff())
    with pytest.raises(nnattr.errors.ArgumentError, match=r"task is .*from_pairs"):
        method(model, ["When John and Mary"], nnattr.LogitDiff())


def test_a_device_and_a_dtype_that_are_not() -> None:
    with pytest.raises(nnattr.errors.BackendError, match="device is 'gpu', which is not here"):
        nnattr.load("teaching-gpt2", device="gpu")
    with pytest.raises(nnattr.errors.BackendError, match="dtype is 'fp16'; expected 'float32'"):
        nnattr.load("teaching-gpt2", dtype="fp16")
    assert nnattr.load("teaching-gpt2", device="cpu", dtype="bfloat16").dtype == "bfloat16"


def test_edges_are_named_in_one_way(model: nnattr.Model, task: nnattr.Task) -> None:
    asked = model, task, nnattr.LogitDiff()
    for ways, named in (
        ({"edges": "M0->M1", "senders": "M0"}, "senders= and edges= were"),
        ({"edges": "M0->M1", "receivers": ["M1"]}, "receivers= and edges= were"),
        ({"edges": "M0->M1", "senders": (0, 1), "receivers": "q"}, "senders= and receivers= and"),
        ({"paths": "M0->logits", "senders": "M0"}, "senders= and paths= were"),
        ({"edges": "M0->M1", "paths": "M0->logits"}, "edges= and paths= were"),
        ({"edges": "M0->M1", "receivers": "M1", "together": True}, "receivers= and edges= were"),
    ):
        with pytest.raises(nnattr.errors.ArgumentError, match=named):
            nnattr.path_patching(*asked, **ways)
    ends = {"senders": "all", "receivers": "logits"}  # as by default, as a provenance has them
    assert nnattr.path_patching(*asked, edges="M0->M1", **ends).n_cells == 1
