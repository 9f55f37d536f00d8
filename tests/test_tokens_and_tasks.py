"""Prompts, answers and positions: what the model sees is what was meant, or an error says why."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnattr import Task, tasks
from nnattr.errors import ArgumentError, TaskError
from nnattr.tasks.positions import spots
from nnattr.teaching import folder
from nnattr.tokens import continuation_id, encode, prompt_ids

CLEAN = "When John and Mary went to the shops, John gave the bag to"
CORRUPTED = "When John and Mary went to the shops, Mary gave the bag to"


@pytest.fixture(scope="module", params=["teaching-gpt2", "teaching-llama"])
def tokenizer(request):
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(folder(request.param))
    found.padding_side = "left"
    return found


def pair(tokenizer, clean=CLEAN, corrupted=CORRUPTED, answer=" Mary", wrong=" John", **more):
    return Task.from_pairs([clean], [corrupted], [answer], [wrong], tokenizer=tokenizer, **more)


def test_a_prompt_is_encoded_as_its_tokenizer_does(tokenizer):
    tokens = encode(tokenizer, [CLEAN, "When John"])
    assert tokens.ids[0].tolist() == tokenizer(CLEAN)["input_ids"]
    assert tokens.mask[1].sum() == len(tokenizer("When John")["input_ids"])
    assert tokens.mask[:, -1].all(), "padding is on the left"
    assert tokens.padding == [0, len(tokens.strings[0]) - len(tokens.strings[1])]


def test_a_bos_is_added_as_the_tokenizer_does_and_never_doubled(tokenizer):
    bos, added = tokenizer.bos_token, tokenizer("When")["input_ids"][:-1]
    assert prompt_ids(tokenizer, "When") == [*added, *prompt_ids(tokenizer, "When")[-1:]]
    if bos is not None:
        assert added == [tokenizer.bos_token_id]
        assert prompt_ids(tokenizer, f"{bos}When") == prompt_ids(tokenizer, "When")


def test_an_answer_is_the_token_that_follows(tokenizer):
    added = continuation_id(tokenizer, CLEAN, " Mary")
    assert tokenizer.decode([added]) == " Mary"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"answer": " Mary and"}, "2 tokens"),
        ({"answer": " zzgrumph"}, "not in the tokenizer's vocabulary"),
        ({"answer": ""}, "expected a word"),
        ({"wrong": " Mary"}, "same token among its answers"),
        ({"corrupted": CORRUPTED + " the"}, "misaligned"),
        ({"clean": CLEAN.replace("bag", "zzgrumph")}, "does not know 'zzgrumph'"),
        ({"spans": {"far": [[99]]}}, "names position 99"),
        ({"spans": {"far": [[1], [2]]}}, "2 entries for 1 prompts"),
    ],
)
def test_what_cannot_be_used_is_named(tokenizer, arguments, message):
    with pytest.raises(TaskError, match=message):
        pair(tokenizer, **arguments)


def test_a_misaligned_pair_shows_where_it_splits(tokenizer):
    with pytest.raises(TaskError, match=r"Pair 0 is misaligned.*first differ at position"):
        pair(tokenizer, corrupted=CORRUPTED.replace("Mary gave", "Mary and John gave"))


def test_lists_of_different_lengths_and_empty_ones_are_refused(tokenizer):
    make = Task.from_pairs
    with pytest.raises(TaskError, match="'clean': 2, 'corrupted': 1"):
        make([CLEAN, CLEAN], [CORRUPTED], [" Mary", " Mary"], tokenizer=tokenizer)
    with pytest.raises(TaskError, match="clean is empty"):
        make([], [], [], tokenizer=tokenizer)
    with pytest.raises(ArgumentError, match="clean is "):
        make(CLEAN, [CORRUPTED], [" Mary"], tokenizer=tokenizer)
    with pytest.raises(TaskError, match="gives no tokens"):
        encode(_without_bos(tokenizer), [""])


def _without_bos(tokenizer):
    class Bare:
        bos_token = None

        def __call__(self, text, add_special_tokens=True):
            return tokenizer(text, add_special_tokens=False)

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    return Bare()


def test_a_prompt_over_the_tokenizers_limit_warns(tokenizer):
    long = "When John" + " and John" * 200
    size = len(prompt_ids(tokenizer, long))
    assert size > tokenizer.model_max_length
    with pytest.warns(UserWarning, match=f"has {size} tokens.*model_max_length"):
        encode(tokenizer, [long])


def test_groups_of_answers_are_kept(tokenizer):
    task = pair(tokenizer, answer=[" Mary", " Amy"], wrong=[" John", " Tom", " Dan"])
    assert [len(group) for group in task.answer_ids + task.wrong_answer_ids] == [2, 3]


def test_the_hash_speaks_of_the_content_only(tokenizer):
    assert pair(tokenizer).hash == pair(tokenizer, name="other").hash
    assert pair(tokenizer).hash != pair(tokenizer, answer=" Amy").hash


def test_the_notebooks_eight_prompts_are_a_task(tokenizer):
    prompts = [
        "When John and Mary went to the shops, John gave the bag to",
        "When John and Mary went to the shops, Mary gave the bag to",
        "When Tom and James went to the park, James gave the ball to",
        "When Tom and James went to the park, Tom gave the ball to",
        "When Dan and Sid went to the shops, Sid gave an apple to",
        "When Dan and Sid went to the shops, Dan gave an apple to",
        "After Martin and Amy went to the park, Amy gave a drink to",
        "After Martin and Amy went to the park, Martin gave a drink to",
    ]
    twins = [prompts[i ^ 1] for i in range(8)]
    right = [" Mary", " John", " Tom", " James", " Dan", " Sid", " Martin", " Amy"]
    task = Task.from_pairs(
        prompts, twins, right, [right[i ^ 1] for i in range(8)], tokenizer=tokenizer
    )
    assert len(task) == 8


@pytest.mark.parametrize("order", ["both", "ABBA", "BABA"])
@pytest.mark.parametrize("corruption", ["swap", "abc"])
def test_ioi_spans_lie_on_their_names(tokenizer, order, corruption):
    task = tasks.ioi(tokenizer, n=12, seed=3, order=order, corruption=corruption)
    assert len(task) == 12
    for one in task:
        (row,) = one.clean_tokens.strings
        at = {key: value[0][0] for key, value in one.spans.items()}
        assert row[at["IO"]] == one.answers[0][0]
        assert row[at["S1"]] == row[at["S2"]] == one.wrong_answers[0][0]
        assert at["end"] == len(row) - 1
        assert at["S1"] < at["S2"]
        if order != "both":
            assert (at["IO"] < at["S1"]) == (order == "ABBA")
        (twin,) = one.corrupted_tokens.strings
        changed = [i for i, (a, b) in enumerate(zip(row, twin, strict=True)) if a != b]
        expected = [at["S2"]] if corruption == "swap" else sorted([at["IO"], at["S1"], at["S2"]])
        assert changed == expected
        if corruption == "swap":
            assert twin[at["S2"]] == one.answers[0][0]


def test_ioi_is_seeded(tokenizer):
    assert tasks.ioi(tokenizer, seed=1).hash == tasks.ioi(tokenizer, seed=1).hash
    assert tasks.ioi(tokenizer, seed=1).hash != tasks.ioi(tokenizer, seed=2).hash


def test_ioi_says_which_words_a_tokenizer_lacks():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(WordLevel({"<unk>": 0, "the": 1}, unk_token="<unk>"))
    bare.pre_tokenizer = Whitespace()
    with pytest.raises(TaskError, match="0 of the names as single tokens"):
        tasks.ioi(PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>"))
    with pytest.raises(ArgumentError, match="n is "):
        tasks.ioi(PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>"), n=0)


def test_positions_count_from_each_prompts_own_first_token(tokenizer):
    task = tasks.ioi(tokenizer, n=10, seed=0)
    pads = task.clean_tokens.padding
    assert len(set(pads)) > 1, "the control: prompts of different lengths"
    first, last = spots(task, 0)[0], spots(task, "last")[0]
    for i, pad in enumerate(pads):
        assert first[i].nonzero().flatten().tolist() == [pad]
        assert last[i].nonzero().flatten().tolist() == [task.width - 1]
    assert torch.equal(spots(task, "all")[0], task.clean_tokens.mask)
    assert torch.equal(spots(task, "each").any(0), task.clean_tokens.mask)
    assert torch.equal(spots(task, "each").sum((0, 2)), task.clean_tokens.mask.sum(1))
    names = spots(task, "S2")[0]
    assert names.sum() == len(task)
    assert torch.equal(spots(task, [0, -1])[0], first | last)


@pytest.mark.parametrize("positions", [99, -99, [0, 99], "nowhere", []])
def test_positions_that_do_not_exist_are_named(tokenizer, positions):
    with pytest.raises(TaskError, match=r"outside the prompt|no positions named|No positions"):
        spots(tasks.ioi(tokenizer, n=2), positions)


def test_labels_of_shared_tokens_and_spans(tokenizer):
    assert "John|Mary" in pair(tokenizer).labels[-5].replace(" ", "")
    task = tasks.ioi(tokenizer, n=6, seed=0, order="ABBA")
    assert task.labels[-1] == " to"


@settings(max_examples=30, deadline=None)
@given(pick=st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_a_part_of_a_task_is_those_examples(pick):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder("teaching-gpt2"))
    task = tasks.ioi(tokenizer, n=10, seed=5)
    part = task[pick]
    assert part.clean == tuple(task.clean[i] for i in pick)
    for row, i in enumerate(pick):
        real = part.clean_tokens.ids[row][part.clean_tokens.mask[row]]
        assert torch.equal(real, task.clean_tokens.ids[i][task.clean_tokens.mask[i]])
    assert part.width == max(len(row) for row in part.clean_tokens.strings)


def test_an_empty_part_is_refused(tokenizer):
    with pytest.raises(TaskError, match="No examples are left"):
        tasks.ioi(tokenizer, n=2)[[]]
