"""What the tests of the methods share: models, tasks, and the oracle's answer to a call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

import nnattr
from nnattr import Model, Scores, Task
from tests.oracles import metrics, patching
from tests.oracles.patching import Pair
from tests.support.paths import STORIES
from tests.tiny import tiny_model

TEACHING = ("teaching-gpt2", "teaching-llama")
SITES = ("z", "attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post")
METHODS: dict[str, Callable[..., Scores]] = {
    "activation": nnattr.activation_patching,
    "attribution": nnattr.attribution_patching,
}
ORACLES = {
    "activation": patching.patch_every_cell,
    "attribution": patching.estimate_every_cell,
}


@cache
def teaching(name: str, backend: str = "local") -> Model:
    return nnattr.load(name, backend=backend, device="cpu")


@cache
def stories() -> Model:
    return nnattr.load(STORIES, device="cpu")


@cache
def tiny(family: str) -> Model:
    return tiny_model(family)


def ragged_ioi(model: Model, n: int = 3) -> Task:
    """IOI prompts of unequal lengths, so that the batch is padded."""
    tasks = (nnattr.tasks.ioi(model.tokenizer, n=n, seed=seed) for seed in range(20))
    return next(task for task in tasks if any(task.clean_tokens.padding))


def even_ioi(model: Model, n: int = 3) -> Task:
    """IOI prompts of one length."""
    many = nnattr.tasks.ioi(model.tokenizer, n=16 * n, seed=0)
    lengths = [len(row) for row in many.clean_tokens.strings]
    common = max(set(lengths), key=lengths.count)
    return many[[i for i, length in enumerate(lengths) if length == common][:n]]


def ragged_tiny(model: Model) -> Task:
    """Three pairs of 6, 4 and 7 tokens that first differ at 1, 2 and 3; one with answer groups."""
    return Task.from_pairs(
        ["w3 w4 w5 w6 w7 w8", "w33 w34 w35 w36", "w40 w41 w42 w43 w44 w45 w46"],
        ["w3 w9 w5 w6 w7 w8", "w33 w34 w55 w36", "w40 w41 w42 w63 w44 w45 w66"],
        [["w70", "w71"], "w72", "w73"],
        ["w80", ["w81", "w82", "w83"], "w84"],
        tokenizer=model.tokenizer,
        spans={"where": [[1, 2], [-1], [0, 3, 5]]},
    )


def raw_module(model: Model) -> Any:
    """The Hugging Face module inside."""
    return model.nn._module


def units(model: Model, site: str) -> int:
    return model.n_heads if site == "z" else 1


def pairs(
    model: Model, task: Task, direction: str = "denoising", metric: str = "LogitDiff"
) -> list[Pair]:
    """The task's examples for the oracle, encoded anew and one by one."""
    found = []
    for i in range(len(task)):
        clean, corrupted = (
            torch.tensor([model.tokenizer(side[i])["input_ids"]])
            for side in (task.clean, task.corrupted)
        )
        base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
        with torch.no_grad():
            logits = patching.logits_of(raw_module(model), clean)
        wrong = task.wrong_answer_ids[i] if task.wrong_answer_ids else ()
        found.append(
            Pair(base, source, metrics.metric_of(metric, task.answer_ids[i], wrong, logits))
        )
    return found


def cells(task: Task, example: int, positions: Any) -> list[list[int]]:
    """The positions of each cell in one example's own, unpadded prompt."""
    length = len(task.clean_tokens.strings[example])
    everywhere = list(range(length))
    if positions == "all":
        return [everywhere]
    if positions == "each":
        return [[position] for position in everywhere]
    if positions == "last":
        return [[length - 1]]
    if isinstance(positions, str):
        return [[everywhere[position] for position in task.spans[positions][example]]]
    if isinstance(positions, int):
        return [[everywhere[positions]]]
    return [[everywhere[position] for position in positions]]


def expected(
    method: str,
    model: Model,
    task: Task,
    *,
    site: str = "z",
    positions: Any = "all",
    direction: str = "denoising",
    metric: str = "LogitDiff",
    split: int | None = None,
) -> np.ndarray:
    """The oracle's scores [example, layer, unit, cell], with NaN where a prompt has no position."""
    parts = split or units(model, site)
    rows: list[Tensor] = []
    for i, pair in enumerate(pairs(model, task, direction, metric)):
        chosen = cells(task, i, positions)
        rows.append(ORACLES[method](raw_module(model), pair, site, parts, chosen))
    widest = max(row.shape[-1] for row in rows)
    missing = [(widest - row.shape[-1], 0) for row in rows]
    padded = [
        torch.nn.functional.pad(row, pad, value=float("nan"))
        for row, pad in zip(rows, missing, strict=True)
    ]
    return torch.stack(padded).numpy()


def assert_same(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Equal to ``tolerance`` of the largest effect, and that there is an effect to compare."""
    left, right = np.asarray(ours), np.asarray(theirs)
    largest = np.nanmax(np.abs(right))
    assert largest > 1e-4, "no effect anywhere: this comparison would show nothing"
    np.testing.assert_allclose(
        left, right.reshape(left.shape), rtol=0, atol=tolerance * max(1.0, largest)
    )


def assert_far(ours: Any, theirs: Any, share: float = 0.05) -> None:
    """A control: the two differ by a good share of the largest effect somewhere."""
    left, right = np.asarray(ours), np.asarray(theirs)
    gap = np.nanmax(np.abs(left - right.reshape(left.shape)))
    assert gap > share * np.nanmax(np.abs(right)), f"the control differs by {gap} only"


def silenced(z: Tensor, head: int, n_heads: int) -> tuple[Tensor]:
    """A layer's z with one head's part zero, as a hook on what reads it returns it."""
    parts = z.unflatten(-1, (n_heads, -1)).clone()
    parts[..., head, :] = 0
    return (parts.flatten(-2),)


def first_difference(task: Task, example: int) -> int:
    """The first column of the padded batch at which an example's prompts differ."""
    ids = task.clean_tokens.ids[example], task.corrupted_tokens.ids[example]
    return int((ids[0] != ids[1]).nonzero()[0])


class Forwards:
    """Counts the forward passes of a model, and the rows and tokens of each, while it is open.

    By a hook on all modules: one on this model's own would be a part of it.
    """

    def __init__(self, model: Model) -> None:
        self.rows: list[int] = []
        self.tokens: list[int] = []
        self._target = raw_module(model).get_submodule(model.spec.embed)

    def __enter__(self) -> Forwards:
        self._handle = register_module_forward_hook(self._count)
        return self

    def _count(self, module: Any, args: Any, output: Tensor) -> None:
        if module is not self._target:
            return
        self.rows.append(output.shape[0])
        self.tokens.append(output.shape[0] * output.shape[1])

    def __exit__(self, *exc: object) -> None:
        self._handle.remove()


def limit_tokens(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Let no forward pass see more tokens than this, wherever the package keeps its limit."""
    holders = [m for name, m in sys.modules.items() if name.startswith("nnattr.")]
    holders = [m for m in holders if hasattr(m, "TOKENS_PER_FORWARD")]
    assert holders, "the limit has another name now"
    for module in holders:
        monkeypatch.setattr(module, "TOKENS_PER_FORWARD", tokens)
