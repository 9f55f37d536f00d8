"""Statistics over examples: exact small cases, calibration under the null, power with an effect."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnattr.errors import ArgumentError, ResultError
from nnattr.results.statistics import benjamini_hochberg, sign_flip_pvalues, smallest_pvalue
from tests.support.scores import scores


def brute(column: np.ndarray) -> float:
    """Every pattern of signs, written out."""
    observed = abs(column.sum()) - 1e-9
    patterns = list(product((-1, 1), repeat=len(column)))
    return float(np.mean([abs((np.array(signs) * column).sum()) >= observed for signs in patterns]))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 9), seed=st.integers(0, 1000), shift=st.floats(-2, 2))
def test_few_examples_are_counted_exactly(n: int, seed: int, shift: float) -> None:
    data = np.random.default_rng(seed).normal(size=(n, 3)) + shift
    found = sign_flip_pvalues(data, 10_000, 0)
    np.testing.assert_allclose(found, [brute(column) for column in data.T])
    assert (found >= smallest_pvalue(n, 10_000)).all()


def test_many_examples_are_drawn_near_the_exact_value_and_seeded() -> None:
    data = np.random.default_rng(0).normal(size=(12, 5)) + 0.4
    exact = sign_flip_pvalues(data, 10_000, 0)
    drawn = sign_flip_pvalues(data, 2000, 1)
    np.testing.assert_allclose(drawn, exact, atol=0.04)
    np.testing.assert_array_equal(drawn, sign_flip_pvalues(data, 2000, 1))
    assert drawn.min() >= 1 / 2001


def test_missing_numbers_do_not_count() -> None:
    data = np.random.default_rng(0).normal(size=(8, 2)) + 1
    holes = np.vstack([data, np.full((3, 2), np.nan)])
    np.testing.assert_allclose(sign_flip_pvalues(holes, 5000, 0), sign_flip_pvalues(data, 5000, 0))
    holes[:, 1] = np.nan
    assert np.isnan(sign_flip_pvalues(holes, 5000, 0)[1])


def test_the_procedure_of_benjamini_and_hochberg() -> None:
    """Their own example (1995, section 4): four of fifteen at q = 0.05."""
    low = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    pvalues = np.array([*low, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000])
    assert benjamini_hochberg(pvalues, 0.05).sum() == 4
    shuffled = np.random.default_rng(0).permutation(15)
    np.testing.assert_array_equal(
        benjamini_hochberg(pvalues[shuffled], 0.05), (pvalues <= 0.0095)[shuffled]
    )
    with_hole = np.append(pvalues, np.nan)
    assert benjamini_hochberg(with_hole, 0.05).sum() == 4
    assert not benjamini_hochberg(np.full(3, np.nan), 0.05).any()


def test_without_an_effect_there_are_about_q_false_discoveries() -> None:
    """Any discovery is false, so their rate is the share of tables that report one."""
    rounds = 200
    found = [
        scores(n=12, shape=(4, 5), seed=s).significant(q=0.2).any().item() for s in range(rounds)
    ]
    assert 0.08 < np.mean(found) < 0.30


def test_an_effect_is_found_and_little_else() -> None:
    false, missed = [], []
    for seed in range(40):
        s = scores(n=20, shape=(6, 8), seed=seed)
        s.raw[:, 0, :] += 1.5
        found = s.significant(q=0.1, n_permutations=20_000)
        false.append(found[1:].sum().item() / max(1, found.sum().item()))
        missed.append(8 - found[0].sum().item())
    assert np.mean(missed) < 0.2
    assert np.mean(false) < 0.12


def test_pvalues_are_labelled_and_do_not_depend_on_the_scale() -> None:
    s = scores(n=10)
    found = s.permutation_pvalue()
    assert found.dims == ("layer", "head")
    np.testing.assert_array_equal(found, scores(n=10, scale=-7.0).permutation_pvalue())
    assert s.significant(q=0.9).dtype == bool


def test_only_the_cells_that_survive_are_ranked_and_drawn() -> None:
    s = scores(n=12)
    s.raw[:, 1, 2] += 5
    kept = s.where(s.significant(q=0.01))
    assert kept.top(9).indices == [(1, 2)]
    drawn = kept.plot().data[0].z
    assert np.isfinite(drawn).sum() == 1
    assert s.mean().where(s.significant(q=0.01)).top(9).indices == [(1, 2)]
    with pytest.raises(ResultError, match="The condition has the dimensions"):
        s.where(s.raw > 0)


def test_what_cannot_be_tested_is_refused() -> None:
    with pytest.raises(ResultError, match=r"no p-value can be below 0\.125"):
        scores(n=4).significant()
    with pytest.raises(ArgumentError, match="q is "):
        scores().significant(q=5)
    with pytest.raises(ResultError, match="averaged already"):
        scores().mean().permutation_pvalue()
