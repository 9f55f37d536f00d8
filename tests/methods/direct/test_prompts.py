"""Looking at prompts: the tables, the texts and the distances against plain runs."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from nnattr import compare_runs, generate, inspect_prompt
from nnattr.errors import ArgumentError, TaskError
from nnattr.methods.behaviour.generate import PLAIN
from tests.methods.common import TEACHING, ragged_ioi, teaching, tiny
from tests.tiny import tiny_model

PROMPTS = ["w3 w4 w5 w6 w7 w8", "w33 w34 w35"]


def logits(model, text: str) -> torch.Tensor:
    with torch.no_grad():
        return model.nn._module(torch.tensor([model.tokenizer(text)["input_ids"]])).logits[0]


def test_every_answer_token_is_read_after_those_before_it() -> None:
    model = tiny("llama")
    found = inspect_prompt(model, "w3 w4 w5", " w9 w30", top_k=96)
    assert found.answer == ("w9", "w30")
    plain = logits(model, "w3 w4 w5 w9 w30")
    for step, at, token in zip(found.steps, (2, 3), (9, 30), strict=True):
        assert step.answer is not None
        assert step.answer.rank == int((plain[at] > plain[at, token]).sum())
        assert step.answer.logit == pytest.approx(float(plain[at, token]), abs=1e-5)
        assert step.answer.probability == pytest.approx(
            float(plain[at].softmax(-1)[token]), rel=1e-4
        )
        order = plain[at].argsort(descending=True).tolist()
        assert [guess.token for guess in step.top] == [f"w{i}" for i in order]
        assert sum(guess.probability for guess in step.top) == pytest.approx(1, abs=1e-5)


def test_the_table_shows_the_answer_even_if_it_is_unlikely() -> None:
    model = tiny("gpt2")
    last = logits(model, PROMPTS[0])[-1]
    worst = 30 + int(last[30:].argmin())  # the tokenizer takes w1 and w2 out of w1x and w2x
    rank = int((last > last[worst]).sum())
    found = inspect_prompt(model, PROMPTS[0], f" w{worst}", top_k=3)
    text = str(found)
    assert f"'w{worst}' has rank {rank}" in text
    assert re.search(rf"> +{rank} .*'w{worst}'", text)
    html = found._repr_html_()
    assert html.count("<tr") == 1 + 3 + 1
    assert "font-weight:bold" in html
    table = found.to_dataframe()
    assert table["rank"].tolist() == [0, 1, 2, rank]
    assert table["is_answer"].tolist() == [False, False, False, True]
    alone = inspect_prompt(model, PROMPTS[0], top_k=3)
    assert alone.steps[0].answer is None
    assert len(alone.to_dataframe()) == 3
    assert "Answer" not in str(alone)
    assert [guess.token for guess in alone.steps[0].top] == table["token"].tolist()[:3]


def test_markup_in_a_prompt_stays_text() -> None:
    model = teaching("teaching-llama")
    html = inspect_prompt(model, "The")._repr_html_()
    assert "&lt;|" in html
    assert "<|" not in html


@pytest.mark.parametrize("name", TEACHING)
def test_generating_is_what_hugging_face_generates(name: str) -> None:
    model = teaching(name)
    prompts = list(ragged_ioi(model).clean)
    found = generate(model, prompts, max_new_tokens=5)
    for prompt, text in zip(prompts, found, strict=True):
        ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            plain = model.nn._module.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=5,
                do_sample=False,
                pad_token_id=model.tokenizer.pad_token_id,
            )
        expected = model.tokenizer.decode(plain[0, ids.shape[1] :], skip_special_tokens=True)
        assert text == expected
    assert generate(model, prompts[0], max_new_tokens=5) == found[:1]


def test_draws_are_seeded_and_leave_the_random_state_alone() -> None:
    model = tiny("llama")
    drawn = [generate(model, PROMPTS, max_new_tokens=8, temperature=1.0, seed=s) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    generate(model, PROMPTS, max_new_tokens=2, temperature=1.0)
    assert torch.equal(torch.rand(1), expected)


def test_draws_are_from_the_likeliest_alone() -> None:
    """Every drawn token is among those that may be drawn there, and not always the first."""
    model = teaching("teaching-llama")
    prompts = list(ragged_ioi(model).clean) * 4
    drawn = generate(model, prompts, max_new_tokens=3, temperature=5.0, top_k=2)
    ranks = []
    for prompt, text in zip(prompts, drawn, strict=True):
        ids = model.tokenizer(prompt + text)["input_ids"]
        with torch.no_grad():
            logits = model.module(torch.tensor([ids])).logits[0]
        start = len(model.tokenizer(prompt)["input_ids"])
        ranks += [
            int((logits[i - 1] > logits[i - 1, ids[i]]).sum()) for i in range(start, len(ids))
        ]
    assert set(ranks) == {0, 1}
    likeliest = generate(model, prompts, max_new_tokens=3)
    assert generate(model, prompts, max_new_tokens=3, temperature=5.0, top_k=1) == likeliest
    assert generate(model, prompts, max_new_tokens=3, temperature=5.0, top_p=1e-6) == likeliest
    assert generate(model, prompts, max_new_tokens=3, temperature=5.0) != drawn


def test_distances_are_those_of_plain_logits() -> None:
    model = tiny("gpt2")
    a, b = ["w3 w4 w5", "w6 w7"], ["w8 w9 w40", "w41 w42"]
    found = compare_runs(model, a, b, positions="each", top_k=5).data
    for i, (one, other) in enumerate(zip(a, b, strict=True)):
        left, right = logits(model, one), logits(model, other)
        n = len(left)
        np.testing.assert_allclose(found["norm"][i, -n:], (left - right).norm(dim=-1), rtol=1e-4)
        p, q = left.log_softmax(-1), right.log_softmax(-1)
        np.testing.assert_allclose(
            found["kl"][i, -n:], (p.exp() * (p - q)).sum(-1), rtol=1e-3, atol=1e-5
        )
        shared = [
            len(set(x.topk(5).indices.tolist()) & set(y.topk(5).indices.tolist())) / 5
            for x, y in zip(left, right, strict=True)
        ]
        np.testing.assert_allclose(found["overlap"][i, -n:], shared)
    assert found["norm"][1, 0].isnull()


def test_a_prompt_is_no_distance_from_itself_and_lengths_may_differ_at_the_end() -> None:
    model = tiny("llama")
    same = compare_runs(model, PROMPTS, PROMPTS)
    assert float(same.data["norm"].max()) == 0
    assert float(same.data["overlap"].min()) == 1
    ends = compare_runs(model, PROMPTS[0], PROMPTS[1])
    expected = (logits(model, PROMPTS[0])[-1] - logits(model, PROMPTS[1])[-1]).norm()
    assert float(ends.data["norm"][0]) == pytest.approx(float(expected), rel=1e-4)
    assert "1 pair:" in str(ends)
    assert len(ends.to_dataframe()) == 1
    with pytest.raises(TaskError, match="not comparable"):
        compare_runs(model, PROMPTS[0], PROMPTS[1], positions="each")


def test_a_simulated_server_gives_the_same() -> None:
    here, there = tiny("gpt2"), tiny_model("gpt2", backend="simulated")
    assert str(inspect_prompt(here, PROMPTS[0], " w9")) == str(
        inspect_prompt(there, PROMPTS[0], " w9")
    )
    for temperature in (0.0, 1.0):
        options = {"max_new_tokens": 4, "temperature": temperature}
        assert generate(here, PROMPTS, **options) == generate(there, PROMPTS, **options)
    local, remote = (compare_runs(m, PROMPTS, PROMPTS[::-1]).data for m in (here, there))
    assert local.equals(remote)


def test_wrong_questions_are_named() -> None:
    model = tiny("gpt2")
    with pytest.raises(TaskError, match="gives no tokens"):
        inspect_prompt(model, "w3", "")
    with pytest.raises(ArgumentError, match="top_k is "):
        inspect_prompt(model, "w3", top_k=0)
    with pytest.raises(ArgumentError, match="temperature is "):
        generate(model, "w3", temperature=-1)
    with pytest.raises(TaskError, match="nothing is drawn"):
        generate(model, "w3", top_p=0.9)
    with pytest.raises(TaskError, match="70 more are wanted"):
        generate(model, "w3", max_new_tokens=70)
    with pytest.raises(TaskError, match="compared in pairs"):
        compare_runs(model, PROMPTS, "w3")
    with pytest.raises(ArgumentError, match="positions is "):
        compare_runs(model, "w3", "w4", positions="all")  # type: ignore[arg-type]


def test_equally_likely_tokens_are_all_listed() -> None:
    """In half precision tokens share a logit; the answer's may not stand in another's place."""
    model = tiny("llama")
    own = model.nn._module
    kept = own.lm_head.weight.data.clone()
    try:
        own.lm_head.weight.data[20:60] = kept[20]
        listed = inspect_prompt(model, "w3 w4", " w45", top_k=96).steps[0]
    finally:
        own.lm_head.weight.data = kept
    assert listed.answer is not None
    assert {guess.token for guess in listed.top} == {f"w{i}" for i in range(96)}
    (mine,) = [guess for guess in listed.top if guess is listed.answer]
    assert mine.token == "w45"
    alike = [guess.rank for guess in listed.top if guess.logit == mine.logit]
    assert alike == [mine.rank] * 40


#: Options of a generation_config that do not touch what is said: lengths, tokens that end a text,
#: caches, what is returned, and helpers that are refused or ignored without a second model.
HARMLESS = {
    "max_length",
    "max_new_tokens",
    "early_stopping",
    "use_mtp",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "max_cache_len",
    "length_penalty",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "return_dict_in_generate",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "is_assistant",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "max_matching_ngram_size",
    "assistant_early_exit",
    "assistant_lookbehind",
    "target_lookbehind",
    "assistant_ensemble_weight",
    "speculation_type",
    "compile_config",
    "disable_compile",
    "continuous_batching_config",
    "low_memory",
    "penalty_alpha",
    "dola_layers",
    "diversity_penalty",
    "num_beam_groups",
    "constraints",
    "force_words_ids",
    "prefill_chunk_size",
    "_from_model_config",
    "transformers_version",
}


def test_every_option_of_a_checkpoint_is_known() -> None:
    """A newer transformers may have more ways to change what is said."""
    from transformers import GenerationConfig

    assert set(GenerationConfig().to_dict()) - set(PLAIN) <= HARMLESS


@pytest.mark.parametrize(
    "option",
    [
        {"repetition_penalty": 50.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(48))},
        {"bad_words_ids": [[i] for i in range(48)]},
        {"begin_suppress_tokens": list(range(48))},
        {"sequence_bias": [[[5], 100.0]]},
    ],
    ids=lambda option: next(iter(option)),
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_checkpoints_own_options_change_nothing(option: dict, temperature: float) -> None:
    from transformers import GenerationConfig

    model = tiny("llama")
    told = {"max_new_tokens": 8, "temperature": temperature, "seed": 3}
    own = model.nn._module
    plain = generate(model, PROMPTS, **told)
    kept = own.generation_config
    try:
        own.generation_config = GenerationConfig(**option)
        assert generate(model, PROMPTS, **told) == plain
        ids = torch.tensor([model.tokenizer(PROMPTS[1])["input_ids"]])
        by_itself = own.generate(ids, max_new_tokens=8, pad_token_id=0)[0, ids.shape[1] :]
    finally:
        own.generation_config = kept
    if temperature == 0:
        said = model.tokenizer.decode(by_itself, skip_special_tokens=True)
        assert f" {said}" != plain[1], "the option changes what Hugging Face says"
