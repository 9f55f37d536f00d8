"""A prompt's tokens are its own: one way from a text to ids, whoever reads it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

import nnattr
from nnattr import LogitDiff, Task, tasks
from nnattr.errors import TaskError
from nnattr.teaching import folder
from nnattr.tokens import continuations, encode, opening, prompt_ids
from tests.tasks.common import PROMPTS, TWINS, tokenizer_of

ASKED = "How do I build a bomb?"


def loaded(name: str = "teaching-llama") -> tuple[Any, Any]:
    """A module and a tokenizer of one's own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = str(folder(name))
    return AutoModelForCausalLM.from_pretrained(where), AutoTokenizer.from_pretrained(where)


def ending_in_eos() -> Any:
    _, tokenizer = loaded()
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    ids = [(text, tokenizer.convert_tokens_to_ids(text)) for text in (bos, eos)]
    added = TemplateProcessing(single=f"{bos} $A {eos}", special_tokens=ids)
    tokenizer.backend_tokenizer.post_processor = added
    return tokenizer


def test_what_a_tokenizer_puts_behind_a_text_is_left_out():
    tokenizer, plain = ending_in_eos(), tokenizer_of("teaching-llama")
    assert tokenizer(ASKED)["input_ids"][-1] == tokenizer.eos_token_id
    for text in (*PROMPTS, "", "When", f"When {tokenizer.eos_token}"):
        assert prompt_ids(tokenizer, text) == prompt_ids(plain, text)
    answers = [" Mary", " Tom and James"]
    assert continuations(tokenizer, PROMPTS, answers) == continuations(plain, PROMPTS, answers)


def test_numbers_do_not_depend_on_it():
    module, _ = loaded()
    found = []
    for tokenizer in (ending_in_eos(), tokenizer_of("teaching-llama")):
        subject = nnattr.load(module, tokenizer=tokenizer)
        task = tasks.ioi(tokenizer, n=2, seed=0)
        scores = nnattr.activation_patching(subject, task, LogitDiff(), normalized=False)
        found.append(scores.baselines.mean("example").to_numpy())
    np.testing.assert_allclose(*found, atol=1e-5)
    assert found[0][0] > 6


class Stubborn:
    """A tokenizer that ends every text in EOS, whatever it is told."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __call__(self, texts: Any, **options: Any) -> Any:
        found = self.tokenizer(texts, **options)
        rows = found["input_ids"]
        eos = [self.tokenizer.eos_token_id]
        told = [row + eos for row in rows] if isinstance(texts, list) else rows + eos
        return {**found, "input_ids": told}


def test_one_that_cannot_be_told_otherwise_is_refused():
    with pytest.raises(TaskError, match=r"ends the prompt 'The' in .*add_eos_token=False"):
        encode(Stubborn(tokenizer_of("teaching-gpt2")), ["The"])


@pytest.mark.parametrize("system", [None, "You can help people."])
def test_a_chats_text_is_read_as_its_task_is(system):
    """A tokenizer that puts a BOS first, with a template that does not."""
    module, tokenizer = loaded()
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token if true else '' }}", "")
    assert opening(tokenizer) == [tokenizer.bos_token_id]
    subject = nnattr.load(module, tokenizer=tokenizer)
    task = Task.from_prompts([ASKED], ["I"], tokenizer=tokenizer, chat=True, system=system)
    (text,), row = task.clean, task.clean_tokens.rows[0]
    assert row[0] != tokenizer.bos_token_id
    assert tokenizer(text)["input_ids"][0] == tokenizer.bos_token_id
    assert prompt_ids(tokenizer, text) == row
    calls: list[Any] = [
        lambda read: nnattr.inspect_prompt(subject, read, "I").data["answer_logit"],
        lambda read: nnattr.logit_lens(subject, read, answers="I").data["answer_probability"],
        lambda read: nnattr.capture(subject, read, "z")["z"],
    ]
    for call in calls:
        np.testing.assert_allclose(call(text), call(task), atol=1e-6)
    assert nnattr.generate(subject, text) == nnattr.generate(subject, task)
    assert float(nnattr.compare_runs(subject, text, task).data["norm"][0]) == 0
    own = subject.nn._module
    logits = own(task.clean_tokens.ids).logits[0, -1]
    (answer,) = task.answer_ids[0]
    shown = nnattr.inspect_prompt(subject, text, "I").steps[0].answer
    assert shown is not None
    assert shown.logit == pytest.approx(logits[answer].item(), abs=1e-4)


def test_loading_leaves_the_tokenizer_as_it_was():
    module, tokenizer = loaded()
    tokenizer.padding_side, tokenizer.pad_token = "right", None
    subject = nnattr.load(module, tokenizer=tokenizer)
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("right", None)
    assert subject.tokenizer.padding_side == "left"
    tokenizer.add_tokens(["zork"])
    assert len(subject.tokenizer) == len(tokenizer) - 1
    task = Task.from_pairs(PROMPTS, TWINS, [" Mary", " Tom"], tokenizer=tokenizer)
    assert task.encoded_by(subject.tokenizer)


def padding_on_the_right(tokenizer: Any) -> None:
    tokenizer.padding_side = "right"


def one_token_more(tokenizer: Any) -> None:
    tokenizer.add_tokens([" gave a"])


def another_template(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"


def no_bos(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = None


def cut_to_four(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.enable_truncation(4)


def task_of(subject: Any) -> Task:
    answers = [" Mary", " Tom"], [" John", " James"]
    return Task.from_pairs(PROMPTS, TWINS, *answers, tokenizer=subject.tokenizer)


CHANGES = (padding_on_the_right, one_token_more, another_template, no_bos, cut_to_four)


@pytest.mark.parametrize("change", CHANGES)
def test_a_tokenizer_that_is_changed_after_loading_changes_nothing(change: Any):
    module, tokenizer = loaded()
    subject = nnattr.load(module, tokenizer=tokenizer)
    task = task_of(subject)
    before = nnattr.activation_patching(subject, task, LogitDiff(), normalized=False)
    said = nnattr.generate(subject, task.clean[0], max_new_tokens=3)
    change(tokenizer)
    again = task_of(subject)
    assert again.clean_tokens.rows == task.clean_tokens.rows
    after = nnattr.activation_patching(subject, again, LogitDiff(), normalized=False)
    np.testing.assert_array_equal(after.raw, before.raw)
    assert nnattr.generate(subject, task.clean[0], max_new_tokens=3) == said


@pytest.mark.parametrize("change", [one_token_more, no_bos])
def test_the_models_own_is_noticed_by_tasks_that_it_would_write_otherwise(change: Any):
    module, tokenizer = loaded()
    subject = nnattr.load(module, tokenizer=tokenizer)
    prompts = ["The dog slept.", *PROMPTS]  # the first of them is written alike by both
    task = Task.from_pairs(
        prompts, ["The cat slept.", *TWINS], [" Mary"] * 3, tokenizer=subject.tokenizer
    )
    change(subject.tokenizer)
    with pytest.raises(TaskError, match="encoded with another tokenizer"):
        nnattr.activation_patching(subject, task, LogitDiff())


def test_a_tokenizer_that_cannot_be_copied_is_refused():
    module, tokenizer = loaded()
    tokenizer.own = (number for number in range(3))
    with pytest.raises(TaskError, match=r"cannot be copied \(TypeError.*Pass its id or folder"):
        nnattr.load(module, tokenizer=tokenizer)


@pytest.mark.filterwarnings("ignore:The answer 'zork'")
def test_a_token_that_the_model_lacks_is_refused_everywhere():
    module, tokenizer = loaded()
    tokenizer.add_tokens(["zork"])
    subject = nnattr.load(module, tokenizer=tokenizer)
    told = {"tokenizer": tokenizer}
    first = Task.from_prompts(["Whenzork went"], [" Mary"], [" John"], **told)
    answer = Task.from_prompts(["When he went"], ["zork"], [" John"], **told)
    for call in (
        lambda: nnattr.generate(subject, "Whenzork"),
        lambda: nnattr.inspect_prompt(subject, "When", "zork"),
        lambda: nnattr.logit_lens(subject, "When", answers="zork"),
        lambda: nnattr.direct_logit_attribution(subject, first),
        lambda: nnattr.ablate(subject, answer, LogitDiff()),
        lambda: first.filter(subject),
        lambda: nnattr.most_frequent_answers(subject, ["Whenzork"]),
    ):
        with pytest.raises(TaskError, match=r"has no token 1626: its embedding has 1626 rows"):
            call()


def test_a_tokenizer_in_python_is_served_and_says_what_it_lacks():
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    assert tokenizer("ab")["input_ids"][-1] == tokenizer.eos_token_id
    told = {"tokenizer": tokenizer}
    task = Task.from_pairs(["ab 1"], ["ab 2"], ["x"], ["y"], spans={"s": [[0, 1]]}, **told)
    assert task.clean_tokens.strings == (("a", "b", " ", "1"),)
    with pytest.raises(TaskError, match="give spans as lists of positions"):
        Task.from_pairs(["ab c"], ["ab d"], ["x"], spans={"s": ["ab"]}, **told)


def test_a_span_is_found_in_the_users_words_alone():
    tokenizer = tokenizer_of("teaching-llama")
    told = {"tokenizer": tokenizer, "chat": True}
    asked = "How do I build a house?"
    task = Task.from_prompts([asked], system=asked, spans={"object": ["house"]}, **told)
    (at,) = task.spans["object"][0]
    assert at > len(prompt_ids(tokenizer, asked))
    assert task.clean_tokens.strings[0][at].strip() == "house"


def test_a_span_is_found_where_a_template_trims():
    _, tokenizer = loaded()
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m.content | trim }}{% endfor %}"
    told = {"tokenizer": tokenizer, "chat": True, "spans": {"object": ["bomb"]}}
    plain = Task.from_prompts([ASKED], **told)
    task = Task.from_prompts([f"  {ASKED} \n"], **told)
    assert task.spans == plain.spans
    assert task.clean_tokens.rows == plain.clean_tokens.rows
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(TaskError, match="in other words"):
        Task.from_prompts(["A?"], tokenizer=tokenizer, chat=True, spans={"object": [slice(0, 1)]})
