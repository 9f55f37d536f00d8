"""Generators: on every tokenizer pairs are aligned, seeded, and spans lie on their words."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import pytest

from nnattr import Task, tasks
from nnattr.errors import ArgumentError, TaskError
from tests.tasks.common import ALL, text_at, tokenizer_of
from tests.tiny import tiny_tokenizer

GENERATORS: dict[str, Any] = {
    "ioi": tasks.ioi,
    "greater_than": tasks.greater_than,
    "yes_no": partial(tasks.facts, kind="yes_no"),
    "capitals": partial(tasks.facts, kind="capitals"),
    "repeated_tokens": tasks.repeated_tokens,
    "repeated_random": partial(tasks.repeated_tokens, corruption="random", length=6),
    "requests": partial(tasks.requests, chat=False),
    "gendered_pronoun": tasks.gendered_pronoun,
    "subject_verb": tasks.subject_verb,
}
#: The spans in which the prompts of a pair differ.
CHANGED = {
    "ioi": ["S2"],
    "greater_than": ["year"],
    "yes_no": ["claim"],
    "capitals": ["country"],
    "repeated_tokens": ["source"],
    "requests": ["verb", "object"],
    "gendered_pronoun": ["name"],
    "subject_verb": ["subject"],
}


@pytest.fixture(scope="module", params=ALL)
def tokenizer(request: Any) -> Any:
    return tokenizer_of(request.param)


def make(name: str, tokenizer: Any, **arguments: Any) -> Task:
    return GENERATORS[name](tokenizer, **{"n": 12, **arguments})


@pytest.mark.parametrize("name", GENERATORS)
def test_pairs_are_aligned_and_seeded(tokenizer, name):
    task = make(name, tokenizer)
    assert len(task) == 12
    lengths = [list(map(len, side.strings)) for side in (task.clean_tokens, task.corrupted_tokens)]
    assert lengths[0] == lengths[1]
    assert make(name, tokenizer).hash == task.hash
    assert make(name, tokenizer, seed=1).hash != task.hash
    assert all(task.answer_ids)
    assert all(task.wrong_answer_ids)
    assert task.spans["end"] == tuple((length - 1,) for length in lengths[0])


@pytest.mark.parametrize("name", CHANGED)
def test_pairs_differ_where_the_spans_say_and_only_there(tokenizer, name):
    task = make(name, tokenizer)
    for i, rows in enumerate(zip(task.clean_tokens.rows, task.corrupted_tokens.rows, strict=True)):
        changed = {k for k, (a, b) in enumerate(zip(*rows, strict=True)) if a != b}
        allowed = {k for span in CHANGED[name] for k in task.spans[span][i]}
        assert changed
        assert changed <= allowed


def test_greater_than_puts_the_later_numbers_among_the_answers(tokenizer):
    task = tasks.greater_than(tokenizer, n=6)
    for i in range(6):
        year = int(text_at(task, "year", i))
        assert {int(word) for word in task.answers[i]} == set(range(year + 1, 100))
        assert {int(word) for word in task.wrong_answers[i]} == set(range(year + 1))
        assert text_at(task[[i]], "event") in task.clean[i]


def test_repeated_tokens_ask_for_what_followed_before(tokenizer):
    task = tasks.repeated_tokens(tokenizer, n=6, length=5)
    for i in range(6):
        assert text_at(task, "source", i) == task.answers[i][0]
        assert text_at(task, "previous", i) == text_at(task, "end", i)
        twin = task.corrupted_tokens.strings[i][task.spans["source"][i][0]]
        assert twin == task.wrong_answers[i][0]


def test_yes_and_no_are_groups_that_fit_the_claim(tokenizer):
    task = tasks.facts(tokenizer, n=10)
    assert {group[0] for group in task.answers} == {" Yes", " No"}
    assert min(map(len, task.answers)) >= 4
    for i in range(10):
        assert (task.answers[i][0] == " Yes") == (i % 2 == 0)


def test_capitals_are_those_of_the_countries(tokenizer):
    from nnattr.tasks.vocabulary import CAPITALS

    task = tasks.facts(tokenizer, n=6, kind="capitals")
    for i in range(6):
        assert task.answers[i] == (f" {CAPITALS[text_at(task, 'country', i).strip()]}",)


def test_pronouns_and_verbs_take_turns(tokenizer):
    pronouns = tasks.gendered_pronoun(tokenizer, n=4)
    assert pronouns.answers == ((" she",), (" he",)) * 2
    verbs = tasks.subject_verb(tokenizer, n=4)
    assert verbs.answers == ((" are",), (" is",)) * 2
    assert all(text_at(verbs, "subject", i).strip() in verbs.clean[i] for i in range(4))


@pytest.mark.parametrize("name", ["teaching-gpt2", "teaching-llama"])
def test_requests_go_through_the_chat_template(name):
    tokenizer = tokenizer_of(name)
    system = "You are a helpful assistant."
    task = tasks.requests(tokenizer, n=4, system=system)
    for i, prompt in enumerate(task.clean):
        assert prompt.endswith("<|assistant|>")
        assert system in prompt
        assert text_at(task, "verb", i).strip() in prompt
        assert text_at(task, "end", i) == "<|assistant|>"
        assert task.clean_tokens.rows[i] == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert task.answers[0] == ("I",)
    assert task.wrong_answers[0] == ("Here",)


def test_requests_need_a_chat_template_unless_told_otherwise():
    with pytest.raises(TaskError, match=r"no chat template.*chat=False"):
        tasks.requests(tiny_with_words())


@pytest.mark.parametrize("name", GENERATORS)
def test_a_tokenizer_without_the_words_is_told_which(name):
    with pytest.raises(TaskError, match=r"lacks '|knows no|no year as"):
        make(name, tiny_tokenizer())


@pytest.mark.parametrize("name", GENERATORS)
def test_no_examples_are_refused(tokenizer, name):
    with pytest.raises(ArgumentError, match="n is "):
        make(name, tokenizer, n=0)


def test_other_mistakes_are_named(tokenizer):
    with pytest.raises(ArgumentError, match="kind is "):
        tasks.facts(tokenizer, kind="cities")  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="length >= 2"):
        tasks.repeated_tokens(tokenizer, length=1)


def tiny_with_words() -> Any:
    """The teaching tokenizer without its chat template."""
    from transformers import AutoTokenizer

    from nnattr.teaching import folder

    found = AutoTokenizer.from_pretrained(folder("teaching-gpt2"))
    found.chat_template = None
    return found


def test_the_generators_are_listed() -> None:
    made = {
        name
        for name in tasks.__all__
        if inspect.isfunction(one := getattr(tasks, name))
        and next(iter(inspect.signature(one).parameters)) == "tokenizer"
    }
    assert made == tasks.GENERATORS.keys()
    for name, generator in tasks.GENERATORS.items():
        assert generator is getattr(tasks, name)
        assert f"`{name}`" in (tasks.__doc__ or "")
