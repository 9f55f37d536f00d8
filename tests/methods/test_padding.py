"""A prompt beside longer ones is read as it is alone, or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

import nnattr
from nnattr import LogitDiff, Model, Task
from nnattr.backend import NDIF
from nnattr.errors import TaskError
from nnattr.model.padding import alone_job, doubtful, due
from tests.methods.common import Forwards, assert_same, expected, ragged_tiny, tiny
from tests.tiny import CONTEXT, FAMILIES, tiny_module, tiny_tokenizer

#: What is asked of prompts of 6, 4 and 7 tokens, each in its own way.
CALLS = {
    "activation_patching": lambda m, t: nnattr.activation_patching(m, t, LogitDiff()),
    "attribution_patching": lambda m, t: nnattr.attribution_patching(m, t, LogitDiff()),
    "ablate": lambda m, t: nnattr.ablate(m, t, LogitDiff(), replacement="mean", dataset=t),
    "direct_logit_attribution": lambda m, t: nnattr.direct_logit_attribution(m, t),
    "logit_lens": lambda m, t: nnattr.logit_lens(m, t),
    "attention_patterns": lambda m, t: nnattr.attention_patterns(m, t, heads=[(0, 0)]),
    "capture": lambda m, t: nnattr.capture(m, t, "z"),
    "compare_runs": lambda m, t: nnattr.compare_runs(m, t.clean, t.corrupted),
    "generate": lambda m, t: nnattr.generate(m, t.clean, max_new_tokens=2),
    "predict": lambda m, t: m.predict(t.clean_tokens),
}


def scaled(kind: str, limit: int, backend: str = "local") -> Model:
    """A Phi-3 whose rotary angles depend on the longest prompt of a batch, beyond ``limit``."""
    rope: dict[str, Any] = {"rope_type": kind, "original_max_position_embeddings": limit}
    rope |= {"rope_theta": 10000.0, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 6, "long_factor": [4.0] * 6}
    module = tiny_module("phi3", original_max_position_embeddings=limit, rope_parameters=rope)
    return nnattr.load(module, tokenizer=tiny_tokenizer(), backend=backend)


@pytest.mark.parametrize("backend", ["local", "simulated"])
@pytest.mark.parametrize("call", CALLS)
def test_prompts_on_either_side_of_the_limit_are_refused(call: str, backend: str) -> None:
    model = scaled("longrope", 5, backend)
    task = ragged_tiny(model)
    with pytest.raises(TaskError, match="a prompt of 4 tokens otherwise beside one of 7"):
        CALLS[call](model, task)


@pytest.mark.parametrize("limit", [3, 5, CONTEXT])
def test_prompts_on_one_side_of_it_are_read_as_alone(limit: int) -> None:
    model = scaled("longrope", limit)
    task = ragged_tiny(model)
    some = task[[0, 2]] if limit == 5 else task  # of 6 and 7 tokens
    found = nnattr.activation_patching(model, some, LogitDiff(), normalized=False)
    assert_same(found.raw, expected("activation", model, some))


def test_the_control_both_are_other_models() -> None:
    """The two sets of angles give other logits, so there is something to refuse."""
    ids = ragged_tiny(tiny("phi3")).clean_tokens.ids[2:]
    short, long = (scaled("longrope", limit).module(input_ids=ids).logits for limit in (3, 60))
    assert (short - long).abs().max() > 0.1


def counting(part: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
    """A hook that counts positions from where a batch begins."""
    steered = output.clone()
    steered[:, 1] += 2
    return steered


def test_a_hook_that_counts_from_the_batchs_start_is_refused_with_padding() -> None:
    module = tiny_module("llama")
    model = nnattr.load(module, tokenizer=tiny_tokenizer(), backend="local")
    module.model.layers[0].register_forward_hook(counting)
    task = ragged_tiny(model)
    with pytest.raises(TaskError, match="otherwise beside"):
        nnattr.activation_patching(model, task, LogitDiff())
    for example in range(3):
        alone = task[[example]]
        for engine in ("suffix", "full"):
            found = nnattr.activation_patching(
                model, alone, LogitDiff(), positions="each", normalized=False, engine=engine
            )
            assert_same(found.raw, expected("activation", model, alone, positions="each"))


def skipping(part: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
    """The same, as one who generates writes it: single tokens are left alone."""
    return counting(part, given, output) if output.shape[1] > 1 else output


def test_a_hook_that_leaves_single_tokens_alone_is_tried_wherever_passes_begin() -> None:
    module = tiny_module("llama")
    model = nnattr.load(module, tokenizer=tiny_tokenizer(), backend="local")
    module.model.layers[0].register_forward_hook(skipping)
    words = [f"w{i}" for i in range(60, 72)]
    twin = ["w90", *words[1:]]
    task = Task.from_pairs(
        [" ".join(words)], [" ".join(twin)], [" w70"], [" w80"], tokenizer=model.tokenizer
    )
    found = nnattr.activation_patching(model, task, LogitDiff(), positions="each", normalized=False)
    assert_same(found.raw, expected("activation", model, task, positions="each"))


def bare_attention(module: Any, q: Any, k: Any, v: Any, mask: Any, **given: Any) -> Any:
    """An attention of one's own that looks at padding: it leaves the mask out."""
    shared = q.shape[1] // k.shape[1]
    k, v = (part.repeat_interleave(shared, 1) for part in (k, v))
    earlier = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    scores = (q @ k.transpose(-1, -2) * given["scaling"]).masked_fill(~earlier, -1e9)
    return (scores.softmax(-1) @ v).transpose(1, 2), None


def turned_by_column(q: torch.Tensor, k: torch.Tensor, *given: Any) -> Any:
    """What replaces a rotary turn: queries grow along the batch's columns."""
    return q * (1 + torch.arange(q.shape[2]).view(-1, 1) / 5), k


def with_bare_attention(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "bare", bare_attention)
    module.config._attn_implementation = "bare"


def with_another_kernel(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", bare_attention)


def with_another_function(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", turned_by_column)


@pytest.mark.parametrize("after_a_call", [False, True])
@pytest.mark.parametrize(
    "change", [with_bare_attention, with_another_kernel, with_another_function]
)
def test_code_that_nobody_sees_on_the_modules_is_tried(
    change: Any, after_a_call: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every module is as it was built; what its forward calls is not."""
    module = tiny_module("llama")
    model = nnattr.load(module, tokenizer=tiny_tokenizer(), backend="local")
    task = ragged_tiny(model)
    if after_a_call:
        model.predict(task.clean_tokens)
    change(module, monkeypatch)
    assert not doubtful(module, model.config, CONTEXT)
    with pytest.raises(TaskError, match="otherwise beside"):
        model.predict(task.clean_tokens)
    model.predict(task[[0]].clean_tokens)


def test_ordinary_models_are_tried_once() -> None:
    model = nnattr.load(tiny_module("llama"), tokenizer=tiny_tokenizer(), backend="local")
    task = ragged_tiny(model)
    with Forwards(model) as first:
        model.predict(task.clean_tokens)
    with Forwards(model) as second:
        model.predict(task.clean_tokens)
    assert (first.rows, second.rows) == ([2, 1, 3], [3])
    other = replace(model, backend=NDIF())
    assert not due(model.module, model.config, CONTEXT, here=other.backend.holds_weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_of_the_table_depends_on_padding(family: str) -> None:
    """What is not tried again in every call: code of transformers, whatever the weights."""
    model = tiny(family)
    assert not doubtful(model.module, model.config, CONTEXT)
    short, long = [7, 8, 9], list(range(20, 52))
    ids = torch.tensor([long, [1] * (len(long) - len(short)) + short])
    batch = {"ids": ids, "mask": ids != 1}
    found = model.run(alone_job, {"batches": [batch], "options": {}}, label="padding").values
    assert found["same"] == [True]
    with torch.no_grad():  # the control: without the mask it does
        seen, alone = model.module(ids).logits[1, -1], model.module(ids[1:, -3:]).logits[0, -1]
    assert (seen - alone).abs().max() > 1e-3 * alone.abs().max()
