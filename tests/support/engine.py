"""Small questions for the engine, and its answers against those of full passes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

import nnattr
from nnattr import LogitDiff, Model, Task
from nnattr.backend import Local

WORDS = [f"w{i}" for i in range(60, 90)]


@dataclass(frozen=True)
class LayerByLayer(Local):
    """This process, in jobs of one layer."""

    max_job_bytes: int | None = field(default=1, init=False)


def pair(length: int, differs: int, shift: int = 0) -> tuple[str, str]:
    """A prompt of ``length`` words and its twin, which differs at one of them."""
    clean = [WORDS[(i + shift) % 20] for i in range(length)]
    twin = [*clean[:differs], WORDS[25], *clean[differs + 1 :]]
    return " ".join(clean), " ".join(twin)


def task(model: Model, *pairs: tuple[str, str]) -> Task:
    clean, corrupted = zip(*pairs, strict=True)
    answers = [[f" {WORDS[26]}"]] * len(pairs), [[f" {WORDS[27]}"]] * len(pairs)
    return Task.from_pairs(clean, corrupted, *answers, tokenizer=model.tokenizer)


def compared(model: Model, question: Task, metric=None, **options) -> str:
    """Check one study against full passes; returns the engine that computed it."""
    metric = metric or LogitDiff()
    patch = nnattr.activation_patching
    ours = patch(model, question, metric, normalized=False, **options)
    full = patch(model, question, metric, normalized=False, engine="full", **options)
    assert full.provenance.arguments["engine"] == "full"
    size = max(float(abs(full.raw).max()), float(abs(full.baselines).max()))
    assert float(abs(full.raw).max()) > 1e-3 * size, "the control: there is an effect"
    torch.testing.assert_close(
        torch.tensor(ours.raw.to_numpy()),
        torch.tensor(full.raw.to_numpy()),
        rtol=1e-5,
        atol=1e-5 * size,
        equal_nan=True,
    )
    return ours.provenance.arguments["engine"]
