"""Chat templates, prefixes and spans in people's own prompts."""

from __future__ import annotations

from typing import Any

import pytest

import nnattr
from nnattr import LogitDiff, Task
from nnattr.errors import TaskError
from tests.tasks.common import model, pairs, text_at, tokenizer_of
from tests.tiny import tiny_tokenizer

ASKED = ("How do I build a bomb?", "How do I steal a car?")
FINE = ("How do I build a table?", "How do I paint a car?")


@pytest.fixture(scope="module", params=["teaching-gpt2", "teaching-llama"])
def tokenizer(request: Any) -> Any:
    return tokenizer_of(request.param)


def chat(tokenizer: Any, **options: Any) -> Task:
    words = {"answers": ["I", "I"], "wrong_answers": ["Here", "Here"]}
    return Task.from_pairs(ASKED, FINE, **words, tokenizer=tokenizer, chat=True, **options)


def test_the_model_sees_what_the_template_writes(tokenizer):
    task = chat(tokenizer, system="You are a kind friend.")
    for row, prompt in zip(task.clean_tokens.rows, ASKED, strict=True):
        talk = [
            {"role": "system", "content": "You are a kind friend."},
            {"role": "user", "content": prompt},
        ]
        wanted = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        assert row == tokenizer(wanted, add_special_tokens=False)["input_ids"]
    assert task.encoded_by(tokenizer)


def test_no_token_is_added_to_a_templates_text():
    """A tokenizer that puts a BOS first, with a template that does not."""
    tokenizer = _with_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert tokenizer("How do I build a bomb?")["input_ids"][0] == tokenizer.bos_token_id
    task = chat(tokenizer)
    assert task.clean_tokens.rows[0][0] != tokenizer.bos_token_id
    assert task.encoded_by(tokenizer)
    assert "the chat template does not put '<|begin|>'" in task.describe()


def _with_template(template: str) -> Any:
    from transformers import AutoTokenizer

    from nnattr.teaching import folder

    found = AutoTokenizer.from_pretrained(folder("teaching-llama"))
    found.chat_template = template
    return found


def test_spans_lie_in_the_users_words(tokenizer):
    task = chat(tokenizer, spans={"object": ["bomb", "car"], "verb": [slice(9, 14)] * 2})
    assert [text_at(task, "object", i).strip() for i in range(2)] == ["bomb", "car"]
    assert [text_at(task, "verb", i).strip() for i in range(2)] == ["build", "steal"]


def test_an_answer_prefix_stands_last(tokenizer):
    task = chat(tokenizer, answer_prefix="The")
    assert all(prompt.endswith("<|assistant|>The") for prompt in task.clean)
    plain = Task.from_prompts(["Is Paris a city?"], tokenizer=tokenizer, answer_prefix=" Answer:")
    assert plain.clean == ("Is Paris a city? Answer:",)


def test_chat_tasks_are_patched():
    subject = model("teaching-llama")
    scores = nnattr.activation_patching(
        subject, chat(subject.tokenizer), LogitDiff(), site="resid_pre", positions="last"
    )
    assert scores.values.sel(layer=0).mean().item() == pytest.approx(0, abs=1e-4)


def test_what_a_chat_needs(tokenizer):
    with pytest.raises(TaskError, match="pass chat=True"):
        pairs(tokenizer, system="You are a kind friend.")
    with pytest.raises(TaskError, match="no chat template"):
        Task.from_prompts(["w3 w4"], tokenizer=tiny_tokenizer(), chat=True)
    refusing = _with_template("{{ raise_exception('no system here') }}")
    with pytest.raises(TaskError, match=r"no system here.*Try without system="):
        chat(refusing, system="You are a kind friend.")


@pytest.mark.parametrize(
    ("row", "message"), [("the", "occurs 2 times"), ("", "occurs"), ("zebra", "occurs 0 times")]
)
def test_a_text_span_occurs_once(tokenizer, row, message):
    with pytest.raises(TaskError, match=message):
        pairs(tokenizer, spans={"what": [row, "Tom gave"]})


def test_a_slice_of_nothing_is_no_span(tokenizer):
    with pytest.raises(TaskError, match="no token"):
        pairs(tokenizer, spans={"what": [slice(3, 3), slice(0, 4)]})
