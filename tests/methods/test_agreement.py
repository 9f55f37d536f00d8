"""How well an estimate stands for the exact scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import nnattr
from nnattr import LogitDiff, Scores, agreement
from nnattr.errors import ResultError
from tests.methods.common import METHODS, TEACHING, even_ioi, ragged_tiny, teaching, tiny


@pytest.fixture(scope="module")
def exact() -> Scores:
    model = tiny("gpt2")
    return nnattr.activation_patching(model, ragged_tiny(model), LogitDiff())


def reshaped(scores: Scores, change: Any) -> Scores:
    """The scores with ``change`` applied to every value."""
    return scores.with_arrays(raw=scores.raw.copy(data=change(scores.raw.to_numpy())))


def test_a_result_agrees_with_itself(exact: Scores) -> None:
    found = agreement(exact, exact)
    assert found.pearson == pytest.approx(1)
    assert found.spearman == pytest.approx(1)
    assert (found.overlap, found.k) == (1, 10)


def test_the_opposite_disagrees_but_names_the_same_cells(exact: Scores) -> None:
    found = agreement(exact, reshaped(exact, np.negative))
    assert found.pearson == pytest.approx(-1)
    assert found.spearman == pytest.approx(-1)
    assert found.overlap == 1  # by absolute value


def test_a_scale_does_not_matter_and_a_bend_only_to_pearson(exact: Scores) -> None:
    averaged = exact.mean()
    scaled = agreement(averaged, reshaped(averaged, lambda x: 3 * x + 1))
    bent = agreement(averaged, reshaped(averaged, lambda x: np.exp(9 * x / abs(x).max())))
    assert scaled.pearson == pytest.approx(1)
    assert bent.spearman == pytest.approx(1)
    assert bent.pearson < 0.95


def test_correlations_are_those_of_pandas(exact: Scores) -> None:
    """With ties, which rounding makes."""
    estimate = reshaped(exact.mean(), lambda x: np.round(x + 0.02 * np.sin(40 * x), 2))
    x, y = (pd.Series(one.mean().values.to_numpy().ravel()) for one in (exact, estimate))
    assert y.duplicated().any()
    found = agreement(exact, estimate)
    assert found.pearson == pytest.approx(x.corr(y), abs=1e-6)
    assert found.spearman == pytest.approx(x.rank().corr(y.rank()), abs=1e-6)
    assert 0.2 < found.spearman < 0.999


@pytest.mark.parametrize("k", [1, 3, 12, 50])
def test_overlap_is_the_share_of_the_strongest_cells(exact: Scores, k: int) -> None:
    estimate = reshaped(exact, lambda x: x[:, ::-1])
    found = agreement(exact, estimate, k=k)
    tops = [{cell.index for cell in scores.top(k)} for scores in (exact, estimate)]
    assert found.k == min(k, 12)
    assert found.overlap == pytest.approx(len(tops[0] & tops[1]) / found.k)


def test_cells_without_a_value_do_not_count(exact: Scores) -> None:
    holed = exact.raw.copy()
    holed[:, 0] = float("nan")
    kept = exact.sel(layer=[1, 2])
    found = agreement(exact, reshaped(exact, lambda x: holed.to_numpy()), k=3)
    assert str(found) == str(agreement(kept, kept, k=3))
    assert found.pearson == agreement(kept, kept, k=3).pearson


def test_what_cannot_be_compared_is_refused(exact: Scores) -> None:
    model = tiny("gpt2")
    other = nnattr.activation_patching(model, ragged_tiny(model), LogitDiff(), site="mlp_out")
    with pytest.raises(ResultError, match="different cells"):
        agreement(exact, other)
    with pytest.raises(ResultError, match="too few"):
        agreement(other.sel(layer=0), other.sel(layer=0))


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("name", TEACHING)
def test_the_estimate_agrees_with_the_exact_scores_of_the_teaching_models(
    name: str, direction: Any
) -> None:
    """Heads' estimates carry the sign and most of the order; those of another task do not."""
    model = teaching(name)
    task = even_ioi(model, 6)
    exact, estimate = (
        method(model, task, LogitDiff(), direction=direction) for method in METHODS.values()
    )
    assert agreement(exact, estimate).pearson > 0.6
    elsewhere = reshaped(estimate, lambda x: np.roll(x, 3, axis=-1))
    assert agreement(exact, elsewhere).pearson < agreement(exact, estimate).pearson
