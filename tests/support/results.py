"""A result of every kind, each of a method that returns it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import nnattr
from tests.methods.common import teaching

PROMPTS = ["Mary gave the book to", "John gave"]


@cache
def made(kind: str) -> Any:
    """A result of each kind, of a method that returns it."""
    model = teaching("teaching-gpt2")
    task = nnattr.tasks.ioi(model.tokenizer, n=2, seed=0)
    ways: dict[str, Callable[[], Any]] = {
        "Activations": lambda: nnattr.capture(
            model, PROMPTS, ["resid_pre", "z", "pattern", "k", "neuron"]
        ),
        "AnswerTable": lambda: nnattr.most_frequent_answers(model, [*PROMPTS, "Mary"]),
        "Comparison": lambda: nnattr.compare_runs(model, PROMPTS[:1], PROMPTS[1:]),
        "HeadWeights": lambda: nnattr.weights.head(model, (1, 0)),
        "Inspection": lambda: nnattr.inspect_prompt(model, PROMPTS[0], " Mary", top_k=3),
        "WeightMatrix": lambda: nnattr.weights.ov(model, (1, 0)).block([3, 4, 5]),
        "Agreement": lambda: nnattr.agreement(
            nnattr.attribution_patching(model, task, nnattr.LogitDiff(), direction="noising"),
            nnattr.attribution_patching(model, task, nnattr.LogitDiff()),
        ),
        "AttentionParts": lambda: nnattr.decompose_attention(model, PROMPTS, (1, 0), pairs=2),
        "Composition": lambda: nnattr.weights.composition(model, "K"),
        "EdgeScores": lambda: nnattr.path_patching(
            model, task, nnattr.LogitDiff(), receivers=["M1", "logits"]
        ),
        "HeadScores": lambda: nnattr.detect_heads(model, n=2, length=4),
        "Lens": lambda: nnattr.logit_lens(model, PROMPTS, positions="each", answers=" Mary"),
        "Patterns": lambda: nnattr.attention_patterns(model, PROMPTS, [(1, 0), (0, 3)]),
        "Scores": lambda: nnattr.direct_logit_attribution(model, task, unit="head"),
    }
    return ways[kind]()
