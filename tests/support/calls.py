"""One call of every method: what tests that are about all of them start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nnattr
from nnattr import LogitDiff, Model, Task

#: What each method is given after the model.
EXAMPLES: dict[str, Callable[[Task], dict[str, Any]]] = {
    "activation_patching": lambda task: {"task": task, "metric": LogitDiff(), "site": "mlp_out"},
    "attribution_patching": lambda task: {
        "task": task,
        "metric": nnattr.LogProb(),
        "positions": "last",
        "direction": "noising",
    },
    "path_patching": lambda task: {
        "task": task,
        "metric": LogitDiff(),
        "senders": ["input", (0, 1), "M0"],
        "receivers": ["q", "logits"],
    },
    "ablate": lambda task: {
        "task": task,
        "metric": LogitDiff(),
        "replacement": "mean",
        "dataset": list(task.corrupted),
    },
    "ablate_together": lambda task: {
        "task": task,
        "metric": LogitDiff(),
        "parts": [(0, 1), (1, 0)],
        "keep": True,
    },
    "direct_logit_attribution": lambda task: {"task": task, "unit": "head", "run": "corrupted"},
    "next_token_attribution": lambda task: {"prompts": task, "layers": [0, 1]},
    "logit_lens": lambda task: {"prompts": list(task.clean), "top_k": 2, "positions": "each"},
    "attention_patterns": lambda task: {"prompts": task, "heads": [(0, 1)], "run": "corrupted"},
    "detect_heads": lambda task: {"n": 2, "length": 6, "seed": 3},
    "copying_score": lambda task: {"prompts": list(task.clean)},
    "name_mover_score": lambda task: {"task": task, "negative": True},
    "decompose_attention": lambda task: {"prompts": task, "head": (1, 0), "pairs": 2},
    "weights.composition": lambda task: {"kind": "K"},
    "weights.position_pattern": lambda task: {"head": (1, 0), "fold_norm": True},
    "weights.head": lambda task: {"head": (1, 0)},
    "inspect_prompt": lambda task: {"prompt": task.clean[0], "answer": task.answers[0][0]},
    "generate": lambda task: {"prompts": list(task.clean), "max_new_tokens": 2},
    "compare_runs": lambda task: {"a": list(task.clean), "b": list(task.corrupted)},
    "most_frequent_answers": lambda task: {"prompts": list(task.clean)},
    "capture": lambda task: {"prompts": list(task.clean), "sites": ["z"], "layers": [0]},
}


def example(name: str, model: Model, task: Task) -> dict[str, Any]:
    """The arguments of a small call of a method, by name, the model among them."""
    return {"model": model, **EXAMPLES[name](task)}
