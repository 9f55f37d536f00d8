"""Token ids are what counts: compared, handed on, and given in place of texts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nnattr
from nnattr import LogitDiff, SequenceLogProb, Task
from nnattr.errors import ArgumentError, TaskError
from nnattr.tokens import continuations, prompt_ids, text_of, token_texts
from tests.methods.common import stories
from tests.support.paths import needs_gpt2, needs_stories
from tests.tasks.common import PROMPTS, TWINS, model, pairs, tokenizer_of

#: Beginnings of stories, as a text may begin and end.
BEGINNINGS = ("Once upon a", "Lily and Tom went to the", 'She said "', "One day, a little", " Once")


@pytest.mark.parametrize("name", ["teaching-llama", pytest.param("gpt2", marks=needs_gpt2)])
def test_texts_tell_tokens_apart(name):
    tokenizer = tokenizer_of(name)
    texts = token_texts(tokenizer, range(len(tokenizer)))
    assert [text for text, count in Counter(texts).items() if count > 1] == []
    if name == "gpt2":
        row = tokenizer(" naïve 😀")["input_ids"]
        assert "".join(token_texts(tokenizer, row)) == " naïve <0xF0><0x9F><0x98><0x80>"


@needs_stories
def test_texts_of_sentencepiece_tell_tokens_apart():
    tokenizer = stories().tokenizer
    texts = token_texts(tokenizer, range(len(tokenizer)))
    assert len(set(texts)) == len(tokenizer)
    for piece, text in (("▁upon", " upon"), ("c", "c"), ("▁c", " c"), ("<0x63>", "<0x63>")):
        assert texts[tokenizer.convert_tokens_to_ids(piece)] == text
    table = nnattr.weights.ov(stories(), heads=(0, 0))
    ids = tokenizer.convert_tokens_to_ids(["▁upon", "c"])
    assert np.array_equal(table.block(ids, ids).values, table.block([" upon", "c"], ids).values)
    assert list(table.block(ids, ids).values.indexes["input"]) == [" upon", "c"]


@needs_stories
@pytest.mark.parametrize("prompt", BEGINNINGS)
def test_what_a_model_says_is_its_own_answer(prompt):
    """The most frequent answer's text is the token that the model said, and can be given back."""
    subject = stories()
    (said,) = nnattr.most_frequent_answers(subject, [prompt])
    ids = prompt_ids(subject.tokenizer, prompt)
    with torch.no_grad():
        best = int(subject.nn._module(torch.tensor([ids])).logits[0, -1].argmax())
    assert said.id == best
    for answer in (said.token, said.id):
        task = Task.from_prompts([prompt], [answer], tokenizer=subject.tokenizer)
        assert task.answer_ids == ((best,),)
        assert len(task.filter(subject)) == 1
        assert len(task.filter(subject, keep=answer)) == 1
    (added,) = nnattr.generate(subject, prompt, max_new_tokens=3)
    whole = subject.tokenizer.decode(
        subject.nn._module.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False)[0],
        skip_special_tokens=True,
    )
    assert prompt.strip() + added == whole.strip()


@needs_stories
def test_an_answer_stands_behind_its_prompt():
    """Alone a word would begin with a space on such a tokenizer."""
    tokenizer = stories().tokenizer
    prompt, answer = "Once upon a ", "time"
    (added,) = continuations(tokenizer, [prompt], [answer])
    assert text_of(tokenizer, [*prompt_ids(tokenizer, prompt), *added]).endswith("a time")


@needs_stories
def test_a_wanted_token_is_what_its_text_adds():
    subject = stories()
    task = Task.from_prompts(["Once upon a"], tokenizer=subject.tokenizer)
    with pytest.raises(
        TaskError, match=r"keep is 'time', and .* is 2 tokens.*Did you mean ' time'"
    ):
        task.filter(subject, keep="time")
    with pytest.raises(TaskError, match="there is no token 512"):
        task.filter(subject, keep=512)
    shown: list[Any] = []
    assert len(task.filter(subject, keep=lambda one: shown.append(one) or True)) == 1
    assert token_texts(subject.tokenizer, shown[0].ids) == list(shown[0].tokens)
    assert shown[0].tokens[0] == " time"


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_ids_make_the_task_that_texts_make(kind: Any, tmp_path: Path):
    subject = model("teaching-llama")
    tokenizer = subject.tokenizer
    texts = pairs(tokenizer, spans={"one": [1, 2]})
    one = texts[[0]]
    clean, corrupted = one.clean_tokens.rows[0], one.corrupted_tokens.rows[0]
    ids = Task.from_pairs(
        [kind(clean)],
        [kind(corrupted)],
        kind([one.answer_ids[0][0]]),
        [kind([one.wrong_answer_ids[0][0]])],
        tokenizer=tokenizer,
        spans={"one": kind([1])},
    )
    assert ids.hash == one.hash
    assert ids.answers == one.answers
    assert ids.from_ids
    assert ids.encoded_by(tokenizer)
    again = Task.load(ids.save(tmp_path / "ids.json"))
    found = [
        nnattr.activation_patching(subject, task, LogitDiff(), positions="one")
        for task in (one, ids, again)
    ]
    assert np.array_equal(found[0].raw, found[1].raw)
    assert np.array_equal(found[0].raw, found[2].raw)


def test_ids_that_no_text_would_give_stay_as_they_are():
    """Half a word and the other half: a text of both would be one token."""
    subject = model("teaching-llama")
    row = [*prompt_ids(subject.tokenizer, "When John"), subject.tokenizer.unk_token_id, 300]
    task = Task.from_prompts([row], [301], [302], tokenizer=subject.tokenizer)
    assert task.clean_tokens.rows == [row]
    scores = nnattr.direct_logit_attribution(subject, task)
    logits = subject.nn._module(torch.tensor([row])).logits[0, -1]
    total = scores.raw.sel(component=[name for name in scores.raw.component.values]).sum()
    assert float(total) == pytest.approx(float(logits[301] - logits[302]), abs=1e-3)


def test_calls_take_ids_as_prompts_and_answers():
    subject = model("teaching-llama")
    text, answer = PROMPTS[0], " Mary"
    row = prompt_ids(subject.tokenizer, text)
    (added,) = continuations(subject.tokenizer, [text], [answer])
    for given in (row, [row], np.array(row), torch.tensor([row])):
        shown = nnattr.inspect_prompt(subject, given, added)
        expected = nnattr.inspect_prompt(subject, text, answer)
        assert np.array_equal(shown.data["logit"], expected.data["logit"])
        assert shown.answer == expected.answer
        lens = nnattr.logit_lens(subject, given, answers=added[0])
        assert lens.data.equals(nnattr.logit_lens(subject, text, answers=answer).data)
        assert nnattr.generate(subject, given) == nnattr.generate(subject, text)
    for wrong, message in (([[]], "gives no tokens"), ([[1, 99999]], "there is no token 99999")):
        with pytest.raises(TaskError, match=message):
            nnattr.generate(subject, wrong)
    with pytest.raises(TaskError, match="no chat, no prefix"):
        Task.from_prompts([row], tokenizer=subject.tokenizer, chat=True)
    with pytest.raises(TaskError, match="as token ids; give positions"):
        Task.from_prompts([row], tokenizer=subject.tokenizer, spans={"name": ["John"]})
    with pytest.raises(TaskError, match="there is no token 5000"):
        Task.from_prompts([text], [5000], tokenizer=subject.tokenizer)


def test_a_row_of_ids_is_one_sequence():
    subject = model("teaching-llama")
    texts = [" Mary and", " Tom."]
    rows = continuations(subject.tokenizer, PROMPTS, texts)
    told = {"tokenizer": subject.tokenizer, "sequences": True}
    one, other = (Task.from_pairs(PROMPTS, TWINS, some, **told) for some in (texts, rows))
    assert one.hash == other.hash
    assert one.answers == other.answers
    scores = nnattr.activation_patching(subject, other, SequenceLogProb(), normalized=False)
    assert scores.raw.sizes["example"] == 2


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_a_mask_picks_the_examples_where_it_is_true(kind: Any):
    task = nnattr.tasks.ioi(tokenizer_of("teaching-gpt2"), n=4, seed=0)
    mask = [False, True, False, True]
    assert task[kind(mask)].clean == (task.clean[1], task.clean[3])
    assert task[kind([1, 3])].clean == task[kind(mask)].clean
    for wrong, message in (
        ([True, False], "has 2 bools.* needs 4"),
        ([False] * 4, "No examples are left"),
    ):
        with pytest.raises(TaskError, match=message):
            task[kind(wrong)]
    with pytest.raises(ArgumentError, match="index is"):
        task[[True, 1, 2, 3]]


def test_a_bool_is_no_position():
    task = pairs(tokenizer_of("teaching-gpt2"))
    from nnattr.tasks.positions import spots

    for wrong in (True, [True, False], np.array([True])):
        with pytest.raises(TaskError, match="expected an integer"):
            spots(task, wrong)
