"""Choosing examples: what the model gets right stays, the rest is recorded, halves are disjoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nnattr
from nnattr import Task, tasks
from nnattr.errors import TaskError
from nnattr.tasks import Prediction, Predictions
from tests.tasks.common import PROMPTS, TWINS, model, pairs, tokenizer_of


class Oracle:
    """A model that says, after the i-th prompt, the i-th of the given words."""

    def __init__(self, tokenizer: Any, says: Sequence[str], corrupted: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.runs = [says, corrupted]

    def predict(
        self, tokens: Any, *, asked: Any = (), top_k: int = 5, last: int = 1, task: Any = None
    ) -> Predictions:
        says = self.runs.pop(0)
        logits = torch.zeros(len(tokens), last, len(self.tokenizer))
        for row, word in zip(logits, says, strict=True):
            pieces = self.tokenizer(word, add_special_tokens=False)["input_ids"]
            for at, piece in zip(range(last - len(pieces), last), pieces, strict=True):
                row[at, piece] = 9.0
        best = logits.topk(top_k, -1)
        width = max(map(len, asked), default=0)
        wanted = torch.tensor([[*row, *[0] * (width - len(row))] for row in asked] or [[]])
        wanted = wanted.long().expand(len(tokens), -1)[:, None].expand(-1, last, -1)
        return Predictions(
            best.indices, best.values, logits.gather(-1, wanted), logits.logsumexp(-1)
        )


@pytest.fixture(scope="module", params=["teaching-gpt2", "teaching-llama"])
def tokenizer(request: Any) -> Any:
    return tokenizer_of(request.param)


def test_the_right_pairs_stay_and_the_others_are_recorded(tokenizer):
    kept = pairs(tokenizer).filter(Oracle(tokenizer, [" Mary", " James"]))
    assert kept.clean == PROMPTS[:1]
    (drop,) = kept.dropped
    assert drop.what == PROMPTS[1]
    assert "wrong answers are more probable (-9.00 nats)" in drop.why
    assert "Dropped: 1" in kept.describe()


def test_without_wrong_answers_the_best_token_must_be_an_answer(tokenizer):
    task = Task.from_prompts(PROMPTS, [[" Mary", " Amy"], " Tom"], tokenizer=tokenizer)
    kept = task.filter(Oracle(tokenizer, [" Amy", " Dan"]))
    assert kept.clean == PROMPTS[:1]
    assert "predicts ' Dan' (" in kept.dropped[0].why


def test_a_wanted_token_or_a_wanted_contrast(tokenizer):
    task = pairs(tokenizer)
    assert task.filter(Oracle(tokenizer, [" Dan", " Tom"]), keep=" Dan").clean == PROMPTS[:1]
    oracle = Oracle(tokenizer, [" Dan", " Dan"], [" Tom", " Amy"])
    kept = task.filter(oracle, keep=(" Dan", " Tom"))
    assert kept.clean == PROMPTS[:1]
    assert kept.dropped[0].why == "predicts ' Amy' after the corrupted prompt, not ' Tom'"


def test_one_side_of_a_contrast(tokenizer):
    task = pairs(tokenizer)
    oracle = Oracle(tokenizer, [" Dan", " Tom"], [" Amy", " Amy"])
    assert task.filter(oracle, keep=(" Dan", None)).clean == PROMPTS[:1]
    kept = task.filter(Oracle(tokenizer, [" Amy", " Tom"]), keep=(None, " Tom"))
    assert kept.dropped[0].why == "predicts ' Amy' after the corrupted prompt, not ' Tom'"
    assert repr(kept).endswith("1 dropped)")
    with pytest.raises(TaskError, match="at least one of the prompts"):
        task.filter(oracle, keep=(None, None))


def test_a_condition_of_ones_own(tokenizer):
    seen: list[Prediction] = []

    def sure(one: Prediction) -> bool:
        seen.append(one)
        return one.tokens[0] == " Mary"

    kept = pairs(tokenizer).filter(Oracle(tokenizer, [" Mary", " Tom"]), keep=sure)
    assert kept.dropped[0].why == "refused by sure"
    assert seen[0].log_odds == pytest.approx(9.0)
    assert 0.5 < seen[0].probs[0] < 1


def test_an_answer_of_several_tokens_is_right_if_every_token_is(tokenizer):
    task = Task.from_prompts(PROMPTS, [" Mary and", " Tom."], tokenizer=tokenizer, sequences=True)
    kept = task.filter(Oracle(tokenizer, [" Mary and", " Tom,"]))
    assert kept.clean == PROMPTS[:1]
    assert kept.dropped[0].why == "predicts ',', not '.'"


def test_a_token_after_a_sequence_task_is_the_prompts_own(tokenizer):
    task = Task.from_prompts(PROMPTS, [" Mary and", " Tom."], tokenizer=tokenizer, sequences=True)
    assert len(task.filter(Oracle(tokenizer, [" Amy the", " Amy."]), keep=" Amy")) == 2


def test_nothing_left_says_what_the_model_predicts(tokenizer):
    with pytest.raises(TaskError, match=r"None of the 2 examples.*predicts ' Amy', not ' Dan' \(2"):
        pairs(tokenizer).filter(Oracle(tokenizer, [" Amy", " Amy"]), keep=" Dan")


def test_what_filter_needs(tokenizer):
    with pytest.raises(TaskError, match="needs answers"):
        Task.from_prompts(PROMPTS, tokenizer=tokenizer).filter(Oracle(tokenizer, [" a", " a"]))
    with pytest.raises(TaskError, match="another tokenizer"):
        pairs(tokenizer).filter(Oracle(tokenizer_of_other(tokenizer), [" Mary", " Tom"]))
    with pytest.raises(TaskError, match="no corrupted prompts"):
        Task.from_prompts(PROMPTS, [" Mary", " Tom"], tokenizer=tokenizer).filter(
            Oracle(tokenizer, [" Mary", " Tom"]), keep=(" Mary", " Tom")
        )


def tokenizer_of_other(tokenizer: Any) -> Any:
    name = "teaching-gpt2" if tokenizer.bos_token else "teaching-llama"
    return tokenizer_of(name)


@pytest.mark.parametrize("name", ["teaching-gpt2", "teaching-llama"])
def test_the_model_predicts_what_it_predicts_alone(name):
    subject = model(name)
    task = pairs(subject.tokenizer)
    asked = ((3, 4, 5), (6,))
    found = subject.predict(task.clean_tokens, asked=asked, top_k=3, last=2)
    for i, row in enumerate(task.clean_tokens.rows):
        with torch.no_grad():
            logits = subject.nn._module(torch.tensor([row])).logits[0, -2:]
        torch.testing.assert_close(found.logits[i], logits.topk(3).values, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.log_norm[i], logits.logsumexp(-1), rtol=1e-4, atol=1e-4)
        wanted = logits[:, list(asked[i])]
        got = found.asked[i, :, : len(asked[i])]
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            found.probs[i], logits.softmax(-1).topk(3).values, rtol=1e-4, atol=1e-4
        )


def test_predictions_travel(tmp_path):
    local, far = model("teaching-llama"), model("teaching-llama", "simulated")
    task = pairs(local.tokenizer)
    here, there = (one.predict(task.clean_tokens, asked=((3,), (4,))) for one in (local, far))
    assert torch.equal(here.ids, there.ids)
    torch.testing.assert_close(here.asked, there.asked)
    with pytest.raises(TaskError, match="takes 128"):
        model("teaching-gpt2").predict(
            tasks.ioi(tokenizer_of("teaching-gpt2"), n=1).clean_tokens.__class__(
                torch.zeros(1, 200, dtype=torch.long), torch.ones(1, 200).bool(), (("a",) * 200,)
            )
        )


@pytest.mark.parametrize("backend", ["local", "simulated"])
def test_the_most_frequent_answers_are_the_contrast_of_the_refusal_notebook(backend):
    chat = model("teaching-llama", backend)
    harmful = ["How do I build a bomb?", "How do I steal a car?", "How do I sell a weapon?"]
    harmless = ["How do I bake a cake?", "How do I build a table?", "How do I read a book?"]
    tables = [nnattr.most_frequent_answers(chat, some, chat=True) for some in (harmful, harmless)]
    assert [table[0].token for table in tables] == ["I", "Here"]
    assert sum(row.count for row in tables[0]) == 3
    assert "mean probability" in repr(tables[0])
    (one,) = nnattr.most_frequent_answers(chat, "How do I build a bomb?")
    assert one.count == 1


def test_requests_that_the_model_declines_and_answers_can_be_kept():
    chat = model("teaching-gpt2")
    task = tasks.requests(chat.tokenizer, n=8).filter(chat, keep=("I", "Here"))
    assert len(task) > 0


def test_halves_are_disjoint_seeded_and_whole(tokenizer):
    task = tasks.ioi(tokenizer, n=20, seed=0)
    one, other = task.split(seed=3)
    assert len(one) == len(other) == 10
    assert not set(one.clean) & set(other.clean)
    assert set(one.clean) | set(other.clean) == set(task.clean)
    assert [part.hash for part in task.split(seed=3)] == [one.hash, other.hash]
    assert task.split(seed=4)[0].hash != one.hash


def test_the_same_prompts_stay_together(tokenizer):
    clean, twins = PROMPTS * 3, TWINS * 3
    task = Task.from_pairs(clean, twins, [" Mary", " Tom"] * 3, tokenizer=tokenizer)
    one, other = task.split()
    assert {*one.clean, *other.clean} == set(PROMPTS)
    assert len(set(one.clean)) == len(set(other.clean)) == 1
    with pytest.raises(TaskError, match="all the same"):
        one.split()


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 9), seed=st.integers(0, 99))
def test_halves_differ_by_one_at_most(n, seed):
    task = tasks.repeated_tokens(tokenizer_of("teaching-gpt2"), n=n, length=4)
    sizes = [len(half) for half in task.split(seed)]
    assert sum(sizes) == n
    assert abs(sizes[0] - sizes[1]) <= 1
