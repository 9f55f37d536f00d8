"""Half precision: what it does to a sweep, measured on the teaching models and bounded."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import nnattr
from nnattr import LogitDiff, Model, Scores
from tests.methods.common import METHODS, TEACHING

#: Most of the largest effect that a cell may be off, by dtype: bfloat16 has 8 bits, float16 11.
OFF = {"bfloat16": 0.01, "float16": 0.002}


@cache
def loaded(name: str, dtype: str) -> Model:
    return nnattr.load(name, device="cpu", dtype=dtype)


@cache
def sweep(name: str, dtype: str, method: str) -> Scores:
    model = loaded(name, dtype)
    task = nnattr.tasks.ioi(model.tokenizer, n=8, seed=0)
    return METHODS[method](model, task, LogitDiff(), site="z").mean()


def ranks(values: np.ndarray) -> np.ndarray:
    return values.argsort().argsort()


def effect(name: str, dtype: str, method: str) -> dict[str, float]:
    """Rank correlation, shared top five, and the largest deviation as a share of the largest."""
    right, found = (sweep(name, one, method) for one in ("float32", dtype))
    exact, rounded = (one.raw.to_numpy().ravel() for one in (right, found))
    return {
        "spearman": float(np.corrcoef(ranks(exact), ranks(rounded))[0, 1]),
        "top5": len(set(right.top(5).indices) & set(found.top(5).indices)) / 5,
        "largest": float(np.abs(exact - rounded).max() / np.abs(exact).max()),
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", OFF)
@pytest.mark.parametrize("name", TEACHING)
def test_a_sweep_in_half_precision_says_the_same(name, dtype, method):
    found = effect(name, dtype, method)
    assert 0 < found["largest"] < OFF[dtype], found
    assert found["spearman"] > 0.9, found
    assert found["top5"] >= 0.8, found
    assert sweep(name, dtype, method).provenance.dtype == dtype


@pytest.mark.parametrize("dtype", OFF)
@pytest.mark.parametrize("name", TEACHING)
def test_the_engine_serves_half_precision_and_measures_in_single(name, dtype):
    scores = sweep(name, dtype, "activation")
    assert scores.provenance.arguments["engine"] == "suffix"
    base = scores.baselines.to_numpy()
    assert base.dtype == np.float64
    model = loaded(name, dtype)
    logits = model.nn._module.lm_head.weight.dtype
    assert str(logits) == f"torch.{dtype}"


if __name__ == "__main__":
    for name in TEACHING:
        for dtype in OFF:
            for method in METHODS:
                print(name, dtype, method, effect(name, dtype, method))
