"""Memory: plans are kept, a pass that does not fit is halved and remembered, nothing piles up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import nnattr
from nnattr import LogProb, Scores, Task, activation_patching, attribution_patching
from nnattr.engine import fastest, passes
from nnattr.engine.memory import bytes_per_row
from nnattr.errors import ArgumentError
from tests.methods.common import METHODS, assert_same, even_ioi, raw_module, teaching, tiny
from tests.support.engine import pair, task
from tests.support.families import families

MEGABYTE = 1_000_000


def allocated(work: Callable[[], Any]) -> int:
    """The most bytes of tensors that were alive at once, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    profiler: Any = recorded.profiler
    events = profiler.kineto_results.events()
    moves = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return int(np.cumsum([size for _, size in sorted(moves)]).max())


def question(n: int = 8) -> Task:
    return even_ioi(teaching("teaching-gpt2"), n)


def test_the_measure_counts_what_is_alive():
    assert 3e6 <= allocated(lambda: [torch.zeros(250_000) for _ in range(3)]) < 3.1e6


@pytest.mark.parametrize(
    ("site", "width", "differs"), [("z", 24, 14), ("z", 40, 36), ("resid_pre", 24, 14)]
)
@pytest.mark.parametrize("family", families())
def test_the_plan_of_a_pass_is_what_it_takes(family, site, width, differs, monkeypatch):
    """Passes of several rows, without the last layer's: there a row is its last token."""
    model, shares = tiny(family), []

    changes = passes.changes

    def measured(nn, question, base, mode, patch, rows, start, size):
        found = []
        given = nn, question, base, mode, patch, rows, start, size
        taken = allocated(lambda: found.append(changes(*given)))
        below = int((rows.layer < model.n_layers - 1).sum())
        if below > 2:
            shares.append(below * bytes_per_row(question, start, base.start, size) / taken)
        return found[0]

    monkeypatch.setattr(passes, "changes", measured)
    pairs = [pair(width, differs, shift=i) for i in range(4)]
    activation_patching(model, task(model, *pairs), LogProb(), site=site)
    assert shares
    assert 1 <= min(shares) <= max(shares) < 3.3


@pytest.mark.parametrize("site", ["z", "k", "neuron", "resid_pre", "pattern"])
@pytest.mark.parametrize("method", METHODS)
def test_a_limit_is_kept_and_changes_nothing_else(method, site):
    model, task = teaching("teaching-gpt2"), question()
    free = METHODS[method](model, task, LogProb(), site=site)
    found: dict[int, Scores] = {}

    def limited(most: int) -> None:
        found[most] = METHODS[method](model, task, LogProb(), site=site, max_memory=most)

    for most in (2 * MEGABYTE, 8 * MEGABYTE):
        assert allocated(lambda most=most: limited(most)) < most
        assert_same(found[most].raw, free.raw)
    rows = [scores.provenance.rows_per_forward for scores in (*found.values(), free)]
    assert rows == sorted(rows)
    assert rows[0] < rows[-1], "the control: a limit makes passes smaller"


def test_more_examples_take_no_more_memory():
    model, most = teaching("teaching-gpt2"), 4 * MEGABYTE
    few, many = (
        allocated(lambda n=n: activation_patching(model, question(n), LogProb(), max_memory=most))
        for n in (8, 32)
    )
    assert many < 1.2 * few


@pytest.mark.parametrize("method", METHODS)
def test_a_pass_that_does_not_fit_is_halved_and_that_is_remembered(method, monkeypatch):
    """The module itself runs out of memory where a pass has more than so many rows."""
    monkeypatch.setattr(fastest, "can_pack", lambda *_: False)  # each row is a sequence
    model, task, most = teaching("teaching-gpt2"), question(), 5
    free = METHODS[method](model, task, LogProb())
    seen: list[int] = []

    def small(_: Any, __: Any, output: torch.Tensor) -> None:
        seen.append(output.shape[0])
        if output.shape[0] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    embedding = raw_module(model).get_submodule(model.spec.embed)
    handle = embedding.register_forward_hook(small)
    try:
        scores = METHODS[method](model, task, LogProb())
    finally:
        handle.remove()
    assert_same(scores.raw, free.raw)
    assert 1 <= scores.provenance.rows_per_forward <= most < free.provenance.rows_per_forward
    failures = [i for i, rows in enumerate(seen) if rows > most]
    assert len(failures) <= 2 + np.log2(max(seen))
    later = len([rows for rows in seen[failures[-1] + 1 :] if rows])
    assert later > len(failures), "nothing too large was tried again"


def test_what_never_fits_says_so():
    model = teaching("teaching-gpt2")

    def never(_: Any, __: Any, output: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    embedding = raw_module(model).get_submodule(model.spec.embed)
    handle = embedding.register_forward_hook(never)
    try:
        with pytest.raises(nnattr.errors.BackendError, match="out of memory"):
            activation_patching(model, question(2), LogProb())
    finally:
        handle.remove()


def test_provenance_has_the_peak_and_the_rows(tmp_path):
    scores = activation_patching(teaching("teaching-gpt2"), question(2), LogProb())
    weights = sum(p.nbytes for p in raw_module(teaching("teaching-gpt2")).parameters())
    assert scores.provenance.peak_memory > weights
    again = nnattr.Scores.load(scores.save(tmp_path / "scores.safetensors"))
    assert again.provenance.peak_memory == scores.provenance.peak_memory
    assert again.provenance.rows_per_forward == scores.provenance.rows_per_forward > 0


@pytest.mark.parametrize("method", [activation_patching, attribution_patching])
def test_no_memory_at_all_is_refused(method):
    with pytest.raises(ArgumentError, match=r"max_memory is 0 .*at least 1"):
        method(teaching("teaching-gpt2"), question(2), LogProb(), max_memory=0)
