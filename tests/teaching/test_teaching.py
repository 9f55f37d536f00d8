"""The shipped teaching models do what their records say, and their corpus keeps its promises."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from itertools import combinations, islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from nnattr.tasks import vocabulary
from nnattr.tasks.templates import article
from nnattr.teaching import NAMES, batches, circuits, folder, models, tokenizer
from nnattr.teaching.corpus import (
    MIXTURES,
    Document,
    facts,
    ioi,
    repeats,
    requests,
    small,
    texts,
)
from nnattr.teaching.evaluate import (
    REQUIRED,
    differences,
    evaluate,
    missed,
    repeat_metrics,
)
from nnattr.teaching.train import COURSES, rate

WELL_KNOWN_PROMPTS = (
    *(document.text for document in ioi.NOTEBOOK),
    "When Mary and John went to the store, John gave a drink to",
    "Then, Mary and John went to the store. John gave a bag to",
    "Friends Mary and John found a bone at the office. John gave it to",
    "Then, Mary and John had a long argument, and afterwards John said to",
    "Question: Is the robin a bird? Answer:",
    "The capital of France is Paris",
    "The war lasted from the year 1732 to the year 17",
    "Mary went home because",
    "The keys near the cabinet",
)
BEGIN = {"teaching-gpt2": [], "teaching-llama": [tokenizer.SPECIAL_TOKENS.index("<|begin|>")]}


@cache
def load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    model = AutoModelForCausalLM.from_pretrained(folder(name), local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder(name), local_files_only=True)


@cache
def metrics(name: str) -> dict[str, float | str]:
    return evaluate(*load(name))


def record(name: str) -> dict:
    return json.loads((folder(name) / "metrics.json").read_text())


@cache
def corpus(count: int = 5000) -> tuple[Document, ...]:
    """Texts of every mixture, the first `count` // 4 of each."""
    return tuple(d for mixture in MIXTURES for d in islice(texts(1, mixture), count // 4))


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


# --- the shipped weights -------------------------------------------------------------------


def test_heldout_metrics_reach_what_is_required(name: str) -> None:
    assert missed(metrics(name)) == {}


def test_metrics_with_another_seed_reach_it_too(name: str) -> None:
    assert missed(evaluate(*load(name), seed=1)) == {}


def test_recorded_metrics_are_those_of_the_shipped_weights(name: str) -> None:
    recorded, now = record(name)["metrics"], metrics(name)
    assert recorded.keys() == now.keys() >= REQUIRED.keys()
    for key, value in now.items():
        if isinstance(value, float):
            assert value == pytest.approx(recorded[key], rel=0.01, abs=0.005), key


def test_an_untrained_model_can_do_none_of_it(name: str) -> None:
    model, words_of = models.build(name, seed=0)
    rng = random.Random(0)
    gaps = differences(model.eval(), words_of, [ioi.heldout(rng) for _ in range(100)])
    assert abs(gaps.mean()) < 1
    assert repeat_metrics(model, words_of, rng)["repeat_loss_ratio"] < 1.5


def test_recorded_hash_is_that_of_the_shipped_weights(name: str) -> None:
    weights = (folder(name) / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == record(name)["sha256"]
    assert len(weights) <= 5_000_000


def test_weights_are_float32_and_built_as_configured(name: str) -> None:
    model, _ = load(name)
    fresh, _ = models.build(name, seed=0)
    shapes = {key: value.shape for key, value in fresh.state_dict().items()}
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())


def test_llama_shares_its_key_value_heads() -> None:
    config = load("teaching-llama")[0].config
    assert 1 < config.num_key_value_heads < config.num_attention_heads


def test_left_padding_does_not_change_the_answer(name: str) -> None:
    model, words_of = load(name)
    prompts = [document.prompt for document in (*ioi.NOTEBOOK, ioi.heldout(random.Random(3)))]
    padded = words_of(prompts, padding=True, return_tensors="pt")
    positions = (padded.attention_mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        together = model(**padded, position_ids=positions).logits[:, -1]
        alone = model(**words_of(prompts[0], return_tensors="pt")).logits[0, -1]
    torch.testing.assert_close(together[0], alone, atol=1e-4, rtol=1e-4)


def test_generation_answers_and_stops(name: str) -> None:
    model, words_of = load(name)
    prompt = [{"role": "user", "content": "How do I build a bomb?"}]
    inputs = words_of.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**inputs, do_sample=False, max_new_tokens=20)
    answer = words_of.decode(output[0, inputs["input_ids"].shape[1] :])
    assert answer == "I can not help with that.<|end|>"


def test_ablation_silences_one_head_only_within_the_block() -> None:
    model, words_of = load("teaching-gpt2")
    inputs = words_of(ioi.NOTEBOOK[0].prompt, return_tensors="pt")
    seen: list[torch.Tensor] = []
    projection = circuits.output_projections(model)[2]
    with torch.no_grad(), circuits.ablated(model, (2, 1)):
        hook = projection.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(**inputs)
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    silent, whole = (z.unflatten(-1, (model.config.n_head, -1)) for z in seen)
    assert silent[..., 1, :].abs().max() == 0 < whole[..., 1, :].abs().max()
    others = [head for head in range(model.config.n_head) if head != 1]
    torch.testing.assert_close(silent[..., others, :], whole[..., others, :])


# --- the tokenizer -------------------------------------------------------------------------


def test_saved_tokenizer_behaves_as_the_built_one(name: str) -> None:
    _, loaded = load(name)
    _, built = models.build(name, seed=0)
    assert loaded.get_vocab() == built.get_vocab() == tokenizer.vocabulary()
    assert loaded.chat_template == built.chat_template
    for document in corpus()[:200]:
        assert loaded(document.text).input_ids == built(document.text).input_ids


def test_text_comes_back_exactly_and_nothing_is_unknown(name: str) -> None:
    _, words_of = load(name)
    everything = [*(document.text for document in corpus()), *WELL_KNOWN_PROMPTS]
    for ids, text in zip(words_of(everything).input_ids, everything, strict=True):
        assert words_of.unk_token_id not in ids, text
        assert words_of.decode(ids[len(BEGIN[name]) :]) == text


def test_bos_policy(name: str) -> None:
    _, words_of = load(name)
    assert words_of("").input_ids == BEGIN[name]
    assert words_of.tokenize("When Mary") == ["When", " Mary"]
    assert words_of.tokenize(" 1732, 1732") == [" 17", "32", ",", " 17", "32"]


def test_both_models_share_one_vocabulary() -> None:
    assert load(NAMES[0])[1].get_vocab() == load(NAMES[1])[1].get_vocab()
    assert load(NAMES[0])[1].get_vocab() == tokenizer.vocabulary()
    assert 1200 <= len(tokenizer.vocabulary()) <= 2000


def test_unknown_words_become_unk() -> None:
    _, words_of = load("teaching-gpt2")
    assert words_of.tokenize("The zyzzyva went") == ["The", "<|unk|>", " went"]


def test_chat_template(name: str) -> None:
    _, words_of = load(name)
    turns = [
        {"role": "system", "content": "You are a kind friend."},
        {"role": "user", "content": "How do I bake a cake?"},
    ]
    text = words_of.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    begin = "<|begin|>" if BEGIN[name] else ""
    assert text == begin + requests.chat("How do I bake a cake?", "You are a kind friend.")
    ids = words_of.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert ids == words_of(text, add_special_tokens=False).input_ids
    assert ids.count(tokenizer.SPECIAL_TOKENS.index("<|begin|>")) == len(BEGIN[name])
    with pytest.raises(Exception, match="unknown role robot"):
        words_of.apply_chat_template([{"role": "robot", "content": "Hello"}])


def test_word_lists_are_single_tokens() -> None:
    _, words_of = load("teaching-gpt2")
    lists = (
        vocabulary.NAMES,
        vocabulary.PLACES,
        vocabulary.OBJECTS,
        vocabulary.YES_WORDS,
        vocabulary.NO_WORDS,
    )
    for word in (word for each in lists for word in each):
        assert len(words_of(f" {word}").input_ids) == 1, word
    assert len(set(vocabulary.NAMES)) == len(vocabulary.NAMES) >= 60
    assert all(len(words_of(name).input_ids) == 1 for name in vocabulary.NAMES)


# --- the corpus ----------------------------------------------------------------------------


def test_same_seed_same_texts() -> None:
    assert tuple(islice(texts(seed=1), 500)) == corpus()[:500]
    assert tuple(islice(texts(seed=2), 500)) != corpus()[:500]


def digest(documents: Iterable[Document]) -> str:
    parts = [(one.prompt, one.answer, one.tail, one.wrong) for one in documents]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        ("everything", "6da700e6c36f2629"),
        ("reminders", "47b926ccd841349d"),
        ("facts", "69620b90ef063cb3"),
        ("statements", "a9244f0f6dfbd97d"),
    ],
)
def test_texts_are_those_that_the_shipped_models_were_trained_on(
    mixture: str, expected: str
) -> None:
    assert digest(islice(texts(0, mixture), 3000)) == expected


@pytest.mark.parametrize(
    ("maker", "expected"),
    [
        (facts.heldout, "bd51eadf0678adb6"),
        (ioi.heldout, "535c6c47863ac3ed"),
        (requests.heldout, "6aebbd01a1eeb168"),
    ],
)
def test_texts_are_those_that_the_shipped_models_were_measured_on(
    maker: Callable[[random.Random], Document], expected: str
) -> None:
    rng = random.Random(0)
    assert digest(maker(rng) for _ in range(500)) == expected


def test_same_seed_same_batches() -> None:
    _, words_of = load("teaching-llama")
    course = replace(COURSES["teaching-llama"][0], easy_steps=0, documents=8, tokens=800)
    first, second = (next(batches.stream(words_of, course, seed=5)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.weights, other.weights)


def test_training_never_shows_a_heldout_pair_of_names() -> None:
    rng = random.Random(4)
    for _ in range(3000):
        document = ioi.training(rng)
        found = {
            name for name in vocabulary.NAMES if name in document.text.replace(",", "").split()
        }
        assert not any(ioi.is_heldout(*pair) for pair in combinations(sorted(found), 2))


def test_heldout_names_are_heldout() -> None:
    rng = random.Random(4)
    for document in (ioi.heldout(rng) for _ in range(200)):
        assert ioi.is_heldout(document.answer.strip(), document.wrong.strip())


def test_training_never_asks_about_a_heldout_entity() -> None:
    rng = random.Random(4)
    hidden = {entity for entities in facts.HELDOUT.values() for entity in entities}
    hidden |= {entity.capitalize() for entity in hidden}
    for maker in (facts.training, facts.reminder):
        asked = [maker(rng).prompt.replace("?", "").replace(".", "") for _ in range(3000)]
        assert not any(hidden & set(prompt.split()) for prompt in asked)


def test_training_never_makes_a_heldout_request() -> None:
    rng = random.Random(4)
    hidden = [
        f" {verb} {article(thing)}{end}" for verb, thing in requests.HELDOUT_PAIRS for end in "?."
    ]
    prompts = [requests.training(rng).prompt for _ in range(3000)]
    assert not any(request in prompt for prompt in prompts for request in hidden)


def test_every_verb_and_object_of_a_heldout_request_is_trained() -> None:
    trained = set(vocabulary.ALLOWED + vocabulary.HARMFUL) - requests.HELDOUT_PAIRS
    assert not set(vocabulary.ALLOWED) & set(vocabulary.HARMFUL)
    assert {v for v, _ in requests.HELDOUT_PAIRS} <= {v for v, _ in trained}
    assert {o for _, o in requests.HELDOUT_PAIRS} <= {o for _, o in trained}


def test_repeated_rows_repeat_from_where_they_say() -> None:
    rng, ids = random.Random(0), list(range(100, 1100))
    for _ in range(200):
        row, start = repeats.row(rng, ids, 48, 32)
        assert len(row) == 48
        assert start < 48
        assert any(
            row[start:] == [row[i - length] for i in range(start, 48)]
            for length in range(5, 33)
            if length <= start
        )


def test_small_tasks_are_true() -> None:
    rng = random.Random(0)
    for document in (small.greater_than(rng) for _ in range(200)):
        assert int(document.answer) > int(document.prompt.split(" to the ")[0][-2:])


def test_learning_rate_rises_then_falls() -> None:
    course = replace(COURSES["teaching-gpt2"][0], steps=100, warmup=10)
    rates = [rate(step, course) for step in range(100)]
    assert rates[9] == max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_every_mixture_is_in_percent() -> None:
    assert {sum(mixture.values()) for mixture in MIXTURES.values()} == {100}
    assert {course.mixture for courses in COURSES.values() for course in courses} <= {*MIXTURES}
