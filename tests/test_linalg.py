"""Factored matrices: everything they say is what the dense product says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nnattr.errors import ResultError
from nnattr.linalg import FactoredMatrix

SIZES = st.integers(1, 9)
BATCHES = st.sampled_from([(), (3,), (2, 3)])


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(left=SIZES, mid=SIZES, right=SIZES, new=SIZES, batch=BATCHES)
def test_products_transpose_norm_and_svd(
    left: int, mid: int, right: int, new: int, batch: Any
) -> None:
    m = FactoredMatrix(random(*batch, left, mid), random(*batch, mid, right, seed=1))
    dense = m.A @ m.B
    assert m.shape == tuple(dense.shape)
    same(m.dense(), dense)
    same(m.T.dense(), dense.mT)
    same(m.norm(), torch.linalg.matrix_norm(dense))
    behind, before = random(right, new, seed=2), random(new, left, seed=3)
    same((m @ behind).dense(), dense @ behind)
    same((before @ m).dense(), before @ dense)
    same(m @ behind[:, 0], dense @ behind[:, 0])
    same(before[0] @ m, before[0] @ dense)
    other = FactoredMatrix(behind, random(new, 4, seed=4))
    same((m @ other).dense(), dense @ other.dense())
    same((m + m).dense(), 2 * dense)
    same((2.5 * m).dense(), 2.5 * dense)
    u, s, vh = m.svd()
    assert s.shape[-1] == min(left, mid, right)
    same(u @ torch.diag_embed(s) @ vh, dense)
    whole = torch.linalg.svdvals(dense)
    shared = min(s.shape[-1], whole.shape[-1])
    same(s[..., :shared], whole[..., :shared])
    same(u.mT @ u, torch.eye(s.shape[-1], dtype=u.dtype).expand(*batch, -1, -1))
    if batch:
        same(m[0].dense(), dense[0])


@settings(max_examples=40, deadline=None)
@given(size=SIZES, mid=SIZES, batch=BATCHES)
def test_trace_and_eigenvalues(size: int, mid: int, batch: Any) -> None:
    m = FactoredMatrix(random(*batch, size, mid), random(*batch, mid, size, seed=1))
    dense = m.dense()
    same(m.trace(), torch.diagonal(dense, dim1=-2, dim2=-1).sum(-1))
    found, expected = m.eigenvalues(), torch.linalg.eigvals(dense)
    for power in (1, 2, 3):  # equal power sums: the same values, whatever their order
        scale = expected.abs().amax() ** power + 1
        gap = (found**power).sum(-1) - (expected**power).sum(-1)
        assert float((gap.abs() / scale).max()) < 1e-8


def test_a_batch_against_one_matrix() -> None:
    """Leading axes broadcast, as for torch's own product."""
    m = FactoredMatrix(random(3, 5, 2), random(2, 4, seed=1))
    assert m.shape == (3, 5, 4)
    same(m.norm(), torch.linalg.matrix_norm(m.A @ m.B))
    same(m[1:].dense(), (m.A @ m.B)[1:])


def test_half_precision_is_computed_in_single() -> None:
    a, b = random(30, 4).bfloat16(), random(4, 30, seed=1).bfloat16()
    m = FactoredMatrix(a, b)
    assert m.norm().dtype == torch.float32
    expected = torch.linalg.matrix_norm(a.float() @ b.float())
    torch.testing.assert_close(m.norm(), expected)
    u, s, vh = m.svd()
    torch.testing.assert_close(u @ s.diag() @ vh, a.float() @ b.float(), rtol=1e-4, atol=1e-4)


def test_the_product_is_never_formed() -> None:
    """A million rows and columns: the dense matrix would take four terabytes."""
    m = FactoredMatrix(torch.randn(1_000_000, 3), torch.randn(3, 1_000_000))
    assert np.isfinite(float(m.norm()))
    assert m.svd()[1].shape == (3,)
    assert m.eigenvalues().shape == (3,)
    assert "rank at most 3" in repr(m)


def test_what_does_not_fit_is_refused() -> None:
    for a, b in (((3, 2), (3, 2)), ((2, 3, 2), (4, 2, 3)), ((2,), (2, 3))):
        with pytest.raises(ResultError, match="The factors have the shapes"):
            FactoredMatrix(torch.ones(a), torch.ones(b))
    wide = FactoredMatrix(torch.ones(3, 2), torch.ones(2, 4))
    for call in (wide.trace, wide.eigenvalues):
        with pytest.raises(ResultError, match="Only a square matrix"):
            call()
