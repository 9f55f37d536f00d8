"""The way through examples: in order, halved where memory runs out, refused in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

import nnattr
from nnattr import Model
from nnattr.runs.inputs import PromptBatch, inputs
from nnattr.runs.portions import Budget, Portions, RefusedError
from nnattr.tokens import encode
from tests.methods.common import raw_module
from tests.tiny import tiny_model

PROMPTS = ["w3 w4 w5 w6", "w7 w8", "w9 w3 w4", "w5 w6 w7 w8 w9", "w4 w4"]


def last_job(nn: Any, tick: Any, **payload: Any) -> dict[str, Any]:
    """The last logits of each prompt; a prompt that begins with token 99 is refused."""
    every = PromptBatch(**payload["prompts"])
    options = {"max_memory": payload["max_memory"], "need": payload["need"]}
    portions = Portions(nn, tick, payload["embed"], len(every), payload["rows"], **options)
    for some in portions:
        with portions.attempt():
            with nn.trace(**inputs(every.take(some))):
                with torch.no_grad():
                    logits = nn.output.logits[:, -1].clone()
            if payload["refuses"] in every.take(some).ids:
                raise RefusedError("metric", f"{payload['refuses']} is refused")
            portions.keep({"logits": logits, "plain": some.start})
            portions.tick(1, 1)
    return portions.joined()


def ask(model: Model, **changes: Any) -> dict[str, Any]:
    payload = {
        "prompts": encode(model.tokenizer, PROMPTS).tensors,
        "embed": model.spec.embed,
        "rows": 8,
        "refuses": -1,
        "max_memory": None,
        "need": 0,
        **changes,
    }
    return model.run(last_job, payload, label="last logits").values


@contextmanager
def room_for(model: Model, most: int) -> Iterator[list[int]]:
    """A model that runs out of memory where a pass has more rows; the rows that were tried.

    By a hook on all modules: one on the model's own would be a part of it.
    """
    seen: list[int] = []
    embedding = raw_module(model).get_submodule(model.spec.embed)

    def small(module: Any, _: Any, output: torch.Tensor) -> None:
        if module is not embedding:
            return
        seen.append(len(output))
        if len(output) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    handle = register_module_forward_hook(small)
    try:
        yield seen
    finally:
        handle.remove()


def test_examples_come_back_in_order_whatever_the_size():
    model = tiny_model("llama")
    whole = ask(model)
    assert whole["logits"].shape == (5, 96)
    assert whole["rows"] == 5
    assert whole["dtype"] == "torch.float32"
    assert whole["peak"] > sum(value.nbytes for value in raw_module(model).parameters())
    for rows in (1, 2, 3):
        parts = ask(model, rows=rows)
        torch.testing.assert_close(parts["logits"], whole["logits"])
        assert parts["rows"] == rows


def test_half_as_many_where_memory_runs_out():
    model = tiny_model("llama")
    whole = ask(model)
    with room_for(model, 2) as seen:
        found = ask(model)
    assert seen == [5, 2, 2, 1]
    assert found["rows"] == 2
    torch.testing.assert_close(found["logits"], whole["logits"])


def test_one_example_that_does_not_fit_is_an_error():
    model = tiny_model("llama")
    with room_for(model, 0), pytest.raises(nnattr.errors.BackendError, match="out of memory"):
        ask(model)


def test_predictions_go_the_same_way():
    model = tiny_model("gpt2")
    tokens = encode(model.tokenizer, PROMPTS)
    whole = model.predict(tokens, asked=((3,),) * 5, top_k=2)
    with room_for(model, 3) as seen:
        found = model.predict(tokens, asked=((3,),) * 5, top_k=2)
    assert max(seen) > 3, "the control: it was tried"
    torch.testing.assert_close(found.logits, whole.logits)
    assert found.ids.equal(whole.ids)


def test_other_failures_are_not_tried_again():
    model = tiny_model("llama")
    broken = encode(model.tokenizer, PROMPTS).tensors
    broken["ids"] = broken["ids"] + 10_000
    with pytest.raises(nnattr.errors.BackendError, match="out of range"):
        ask(model, prompts=broken)


def test_a_refusal_ends_the_way():
    model = tiny_model("llama")
    with room_for(model, 9) as seen, pytest.raises(nnattr.errors.MetricError, match="9 is refused"):
        ask(model, rows=1, refuses=9)
    # two passes hold a padded prompt against itself, once for a model
    assert seen[-3:] == [1, 1, 1]
    assert len(seen) <= 5, "prompts behind the one that is refused are not run"


def test_plans_by_what_an_example_needs():
    model = tiny_model("llama")
    assert ask(model, max_memory=4000, need=1000)["rows"] == 2  # half of it is for examples
    assert ask(model, max_memory=1, need=1000)["rows"] == 1
    assert ask(model, max_memory=1 << 30, need=1000)["rows"] == 5


def test_progress_is_that_of_the_whole():
    model, seen = tiny_model("llama"), []
    nn = model.nn
    portions = Portions(nn, lambda *given: seen.append(given), model.spec.embed, 5, 2)
    for _ in portions:
        with portions.attempt():
            portions.tick(1, 4)
            portions.keep({})
            portions.tick(4, 4)
    assert seen == [(2, 20), (8, 20), (10, 20), (16, 20), (17, 20), (20, 20)]


@pytest.mark.parametrize(
    ("rows", "need", "tokens", "multiple", "expected"),
    [
        (10, 10, 1, 1, 10),  # all fit
        (10, 25, 1, 1, 4),  # by bytes: 4 at most
        (9, 25, 1, 1, 3),  # three even passes and not 4, 4, 1
        (10, 1, 30, 1, 2),  # by tokens: 2 at most
        (10, 1000, 1, 1, 1),  # one at least
        (12, 25, 1, 3, 3),  # a whole group of three
        (12, 1, 5, 3, 12),  # four groups of three
        (12, 60, 1, 3, 1),  # no group fits
    ],
)
def test_how_many_rows_a_pass_takes(rows, need, tokens, multiple, expected):
    assert Budget(100, 60).fitting(rows, need, tokens, multiple) == expected


def test_a_budget_remembers_what_did_not_fit():
    budget = Budget(1000, 1000)
    assert budget.fitting(10, 100, 1) == 10
    budget.shrink(10, 100)
    assert budget.fitting(10, 100, 1) == 5
    budget.saw(3)
    budget.saw(2)
    assert budget.rows == 3
