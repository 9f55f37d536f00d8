"""TransformerLens 4.3's weights and composition scores, as it boots and with its norms folded.

Folded means its compatibility mode: the norms' weights in the matrices next to them, writing
weights and the unembedding centred. That is what our ``fold_norm=True`` says it does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nnattr import weights
from tests.methods.common import TEACHING, teaching

pytest.importorskip("transformer_lens", reason="needs transformer-lens")

from tests.support.peers import bridge, folded

IDS = [4, 77, 500, 1600]
CASES = [(name, fold) for name in TEACHING for fold in (False, True)]


def theirs(name: str, fold: bool) -> Any:
    return (folded if fold else bridge)(name)


def shared(matrix: torch.Tensor, head: int) -> torch.Tensor:
    """A head's key or value matrix; it keeps one for each group."""
    return matrix[head * len(matrix) // 4]


def near(found: Any, expected: torch.Tensor) -> None:
    expected = expected.detach()
    size = float(expected.abs().max())
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4 * max(1.0, size))


@pytest.mark.parametrize(("name", "fold"), CASES)
def test_ov_and_qk_circuits(name: str, fold: bool) -> None:
    model, lens = teaching(name), theirs(name, fold)
    for layer, head in ((0, 0), (1, 0), (3, 2)):
        ov = lens.OV[layer, head]
        full = lens.W_E @ ov.A @ ov.B @ lens.W_U
        near(weights.ov(model, (layer, head), fold_norm=fold).block(IDS), full[IDS][:, IDS])
        inner = lens.W_Q[layer, head] @ shared(lens.W_K[layer], head).T
        full = lens.W_E @ inner @ lens.W_E.T
        near(weights.qk(model, (layer, head), fold_norm=fold).block(IDS), full[IDS][:, IDS])


@pytest.mark.parametrize(("name", "fold"), CASES)
@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_composition(name: str, fold: bool, kind: Any) -> None:
    model = teaching(name)
    scores = theirs(name, fold).all_composition_scores(kind).scores.detach().reshape(16, 16)
    found = weights.composition(model, kind, fold_norm=fold, samples=2).values.to_numpy()
    there = np.isfinite(found)
    assert there.sum() == 96
    np.testing.assert_allclose(found[there], scores[:-4, 4:].numpy()[there], rtol=0, atol=1e-4)


def test_position_circuit() -> None:
    lens = bridge("teaching-gpt2")
    inner = lens.W_Q[0, 0] @ lens.W_K[0, 0].T
    scores = lens.W_pos @ inner @ lens.W_pos.T / inner.new_tensor(32).sqrt()
    past = torch.ones_like(scores).tril().bool()
    near(
        weights.position_pattern(teaching("teaching-gpt2"), (0, 0)),
        scores.masked_fill(~past, float("-inf")).softmax(-1),
    )
