"""The weight-circuit sections of the notebook on induction circuits, by public calls alone.

Its numbers are of its own toy; a teaching model has numbers of its own, and the same story. Each
test names the section it stands for. That the numbers are right is shown elsewhere
(`tests/methods/weight_circuits`, `tests/peers`, and
`tests/methods/direct/test_next_token_attribution.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nnattr
from tests.methods.common import TEACHING, teaching

PREVIOUS, INDUCTION = (0, 0), (1, 0)


def repeated(model: Any) -> Any:
    return nnattr.tasks.repeated_tokens(model.tokenizer, n=2, seed=3, length=12)


@pytest.mark.parametrize("name", TEACHING)
def test_building_interpretability_tools(name: str) -> None:
    """Logit attribution: the first half has nothing to copy, the second is copied by one head."""
    model = teaching(name)
    scores = nnattr.next_token_attribution(model, repeated(model))
    assert scores.rest is not None
    total = scores.raw.sum(("layer", "head")) + scores.rest.sum("component")
    first, second = total.isel(pos=slice(0, 10)), total.isel(pos=slice(13, None))
    assert float(second.mean()) > float(first.mean()) + 5
    head = scores.sel(layer=1, head=0).raw
    assert float(head.isel(pos=slice(13, None)).mean()) > 2
    figure: Any = nnattr.plots.parts(scores)
    assert figure.data[0].z.shape[1] == total.sizes["pos"]


@pytest.mark.parametrize("name", TEACHING)
def test_ov_copying_circuit(name: str) -> None:
    """OV copying circuit: a sample of the matrix, its accuracy, and that of two heads summed."""
    model = teaching(name)
    circuit = nnattr.weights.ov(model, INDUCTION)
    sample = circuit.block(list(range(100, 300, 10)))
    diagonal = np.diag(sample)
    others = np.array(sample)[~np.eye(20, dtype=bool)]
    assert diagonal.mean() > others.mean() + 2 * others.std()
    figure: Any = sample.plot(unit="logit")
    assert figure.data[0].z.shape == (20, 20)
    assert circuit.copying_accuracy() > 0.8
    effective = nnattr.weights.ov(model, [INDUCTION, (1, 1)])
    assert 0 < effective.copying_accuracy(5) <= 1


def test_qk_previous_token_circuit() -> None:
    """QK prev-token circuit: positions alone make L0H0 look back by one."""
    model = teaching("teaching-gpt2")
    pattern = nnattr.weights.position_pattern(model, PREVIOUS, fold_norm=True)
    back = np.diag(pattern, -1).mean()
    assert back > 0.5
    assert back > 10 * np.diag(pattern, -2).mean()


@pytest.mark.parametrize("name", TEACHING)
def test_decomposing_queries_keys_and_scores(name: str) -> None:
    """K-composition circuit: parts of q and k, and which pair of them makes the scores vary."""
    model = teaching(name)
    parts = nnattr.decompose_attention(model, repeated(model), INDUCTION, pairs=1)
    lengths = parts.data["key"].mean(("example", "pos"))
    heads = [name for name in parts.components if name.startswith("L0H")]
    assert float(lengths.sel(component="L0H0")) > float(lengths.sel(component=heads).mean())
    assert parts.top(1)[0].index[1] == "L0H0"
    for what in ("query", "key", "spread", "scores"):
        assert parts.plot(what).data  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TEACHING)
def test_the_full_k_composition_circuit(name: str) -> None:
    """Find full K-composition circuit: the strongest query of a key is the same token."""
    circuit = nnattr.weights.qk(teaching(name), INDUCTION, key_via=PREVIOUS)
    assert circuit.copying_accuracy(by="column") > 0.8  # as the notebook counts
    assert circuit.copying_accuracy(by="row") > 0.85  # as its text says


@pytest.mark.parametrize("name", TEACHING)
def test_composition_scores(name: str) -> None:
    """Composition scores: every pair, against random matrices."""
    model = teaching(name)
    for kind in ("Q", "K", "V"):
        found = nnattr.weights.composition(model, kind)  # type: ignore[arg-type]
        assert found.plot().data
        assert found.baseline == pytest.approx(128**-0.5, rel=0.02)
    keys = nnattr.weights.composition(model, "K")
    assert keys.top(1)[0].index == ((0, 0), (1, 0))
