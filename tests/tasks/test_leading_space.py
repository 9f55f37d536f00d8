"""An answer without its leading space continues the prompt's last word; people forget it."""

from __future__ import annotations

import warnings

import pytest

import nnattr
from nnattr.teaching import folder
from nnattr.tokens import continuation_id

PAIR = (
    ["When John and Mary went to the shops, John gave the bag to"],
    ["When John and Mary went to the shops, Mary gave the bag to"],
)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder("teaching-llama"))


def test_a_forgotten_space_is_said(tokenizer):
    with pytest.warns(UserWarning, match=r"'toMary' \(1 of 1 answers do\). Did you mean ' Mary'"):
        nnattr.Task.from_pairs(*PAIR, ["Mary"], [" John"], tokenizer=tokenizer)
    with pytest.warns(UserWarning, match="Did you mean ' Mary'"):
        continuation_id(tokenizer, PAIR[0][0], "Mary")


@pytest.mark.parametrize("name", ["ioi", "greater_than", "facts", "requests", "subject_verb"])
def test_nothing_is_said_of_answers_that_are_right(tokenizer, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(nnattr.tasks, name)(tokenizer, n=8, seed=0)
        nnattr.Task.from_pairs(*PAIR, [" Mary"], [" John"], tokenizer=tokenizer)


def test_unknown_words_of_a_chat_are_named_without_the_template(tokenizer):
    asked = ["How do I sell a spaceship?"]
    with pytest.raises(nnattr.errors.TaskError, match="does not know 'spaceship") as caught:
        nnattr.Task.from_prompts(asked, ["I"], ["Here"], tokenizer=tokenizer, chat=True)
    assert "does not know '<|" not in str(caught.value)
