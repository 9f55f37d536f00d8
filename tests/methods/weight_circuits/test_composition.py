"""Composition scores against the dense formula, and the induction circuit that they show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nnattr import weights
from nnattr.errors import ArchError, ArgumentError, ResultError
from nnattr.methods.weight_circuits.composition import random_composition
from tests.methods.common import TEACHING, teaching, tiny
from tests.methods.weight_circuits.common import ov, qk
from tests.support.families import NORMED
from tests.tiny import FAMILIES, HEADS, LAYERS, tiny_model

KINDS: tuple[Any, ...] = ("Q", "K", "V")


def plain(first: torch.Tensor, second: torch.Tensor) -> float:
    """The notebook's get_comp_score."""
    norm = torch.linalg.matrix_norm
    return float(norm(first @ second) / (norm(first) * norm(second)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEACHING)
def test_scores_are_the_notebooks(name: str, kind: Any) -> None:
    model = teaching(name)
    found = weights.composition(model, kind, samples=2)
    assert found.values.shape == (12, 12)
    for sender, receiver in (((0, 0), (1, 0)), ((0, 3), (2, 1)), ((2, 2), (3, 1))):
        second = {"Q": qk(name, *receiver), "K": qk(name, *receiver).T, "V": ov(name, *receiver)}
        expected = plain(ov(name, *sender), second[kind])
        assert found.pair(sender, receiver) == pytest.approx(expected, rel=1e-4)
    assert int(found.values.isnull().sum()) == 4 * 4 * 3
    with pytest.raises(ResultError, match="not a head and a later one"):
        found.pair((1, 0), (1, 2))
    with pytest.raises(ResultError, match="not a head and a later one"):
        found.pair("L3H0", "L1H0")


@pytest.mark.parametrize("name", TEACHING)
def test_the_induction_head_reads_the_previous_token_head_in_its_keys(name: str) -> None:
    """K-composition of L0H0 and L1H0 is the strongest of all, far above random matrices."""
    found = weights.composition(teaching(name), "K")
    assert found.top(1)[0].index == ((0, 0), (1, 0))
    assert found.pair((0, 0), (1, 0)) > found.baseline + 20 * found.spread
    assert weights.composition(teaching(name), "V").pair((0, 0), (1, 0)) < found.pair(
        (0, 0), (1, 0)
    )
    table = found.to_dataframe()
    assert table["spreads"].max() > 20
    assert len(table) == 6 * 16
    assert "L0H0 → L1H0" in repr(found)


def test_random_matrices_give_the_notebooks_baseline() -> None:
    """Mean 0.0361 and spread 0.0004 at d_model 768 and d_head 64; about 1 / sqrt(d_model)."""
    mean, spread = random_composition(768, 64, samples=60, seed=0)
    assert mean == pytest.approx(0.0361, abs=2e-4)
    assert spread == pytest.approx(0.00042, abs=1.5e-4)
    assert mean == pytest.approx(768**-0.5, rel=0.01)
    again = random_composition(768, 64, samples=5, seed=3)
    assert again == random_composition(768, 64, samples=5, seed=3)
    assert again != random_composition(768, 64, samples=5, seed=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_composes_or_says_why_not(family: str) -> None:
    model = tiny(family)
    pairs = HEADS**2 * model.n_layers * (model.n_layers - 1) // 2
    for kind in KINDS:
        if family in NORMED and kind != "V":
            with pytest.raises(ArchError, match="V-composition exist"):
                weights.composition(model, kind, samples=2)
            continue
        found = weights.composition(model, kind, samples=2, fold_norm=True)
        values = found.values.to_numpy()
        assert np.isfinite(values).sum() == pairs
        assert 0.02 < np.nanmean(values) < 0.5


def test_a_simulated_server_gives_the_same() -> None:
    here, there = tiny("falcon-new"), tiny_model("falcon-new", backend="simulated")
    for kind in KINDS:
        one, other = (weights.composition(model, kind, samples=2) for model in (here, there))
        np.testing.assert_allclose(other.values, one.values, rtol=1e-5)
        assert other.baseline == one.baseline


def test_the_figure_is_the_matrix_above_the_baseline() -> None:
    found = weights.composition(teaching("teaching-gpt2"), "K", samples=20)
    figure: Any = found.plot()
    z = figure.data[0].z
    assert z.shape == (12, 12)
    assert z[0, 0] == pytest.approx(found.pair((0, 0), (1, 0)) - found.baseline)
    assert "random matrices 0.08" in figure.layout.title.text
    assert "spreads from random" in figure.data[0].text[0][0]
    assert figure.layout.xaxis.ticktext[0] == "L1H0"


def test_what_cannot_compose_is_refused() -> None:
    with pytest.raises(ArgumentError, match="kind is "):
        weights.composition(tiny("llama"), "k")  # type: ignore[arg-type]
    assert LAYERS == 3
    with pytest.raises(ArchError, match="has one layer"):
        weights.composition(tiny_model("llama", num_hidden_layers=1), "K")
