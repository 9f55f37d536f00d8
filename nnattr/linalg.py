r"""Products of two thin matrices, kept as their factors.

A head's circuit is a large matrix of small rank: :math:`W_E W_V W_O W_U` has a row and a column for
every token and the rank of a head. `FactoredMatrix` holds :math:`M = AB` as :math:`A` and
:math:`B`, and finds norms, traces, eigenvalues and singular values from the factors:

.. math:: A = Q_A R_A,\; B^\top = Q_B R_B \;\Rightarrow\;
          \|AB\|_F = \|R_A R_B^\top\|_F, \quad
          AB = Q_A (U S V^\top) Q_B^\top \text{ with } U S V^\top = R_A R_B^\top,
          \quad \lambda(AB) \setminus 0 = \lambda(BA) \setminus 0

For factors [n, r] and [r, n] the cost is that of :math:`n r^2`, never of :math:`n^2`. The functions
need nothing but torch, so jobs take them along; everything is computed in float32 or better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from nnattr.errors import ResultError


def product_norm(a: Tensor, b: Tensor) -> Tensor:
    """Frobenius norm of ``a @ b`` [...], for ``a`` [..., left, mid] and ``b`` [..., mid, right]."""
    return torch.linalg.matrix_norm(triangle(a) @ triangle(b.mT).mT)


def product_svd(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``U`` [..., left, k], ``S`` [..., k] and ``Vh`` [..., k, right] with ``a @ b = U S Vh``."""
    left, inner = torch.linalg.qr(precise(a))
    right, outer = torch.linalg.qr(precise(b).mT)
    u, s, vh = torch.linalg.svd(inner @ outer.mT, full_matrices=False)
    return left @ u, s, vh @ right.mT


def product_eigenvalues(a: Tensor, b: Tensor) -> Tensor:
    """Eigenvalues of ``a @ b`` [..., mid], without the zeros that its rank leaves over."""
    return torch.linalg.eigvals(precise(b) @ precise(a))


def triangle(a: Tensor) -> Tensor:
    """R of ``a = QR`` [..., mid, mid]: ``R @ x`` is as long as ``a @ x`` for every x."""
    return torch.linalg.qr(precise(a), mode="r").R


def precise(a: Tensor) -> Tensor:
    """In float32, unless it is better than that already."""
    return a if a.dtype == torch.float64 else a.float()


@dataclass(frozen=True, eq=False)
class FactoredMatrix:
    """The matrix ``A @ B``, kept as its factors; leading axes are a batch of matrices.

    ::

        ov = FactoredMatrix(W_V, W_O)           # [head, d_model, d_model], rank d_head
        circuit = W_E @ ov @ W_U                # [head, d_vocab, d_vocab], still factored
        circuit.svd(), circuit.eigenvalues(), circuit.norm(), circuit.T

    Attributes:
        A: [..., left, mid].
        B: [..., mid, right].

    Raises:
        ResultError: the factors do not fit together.
    """

    A: Float[Tensor, "... left mid"]
    B: Float[Tensor, "... mid right"]

    def __post_init__(self) -> None:
        shapes = tuple(self.A.shape), tuple(self.B.shape)
        try:
            fit = min(self.A.ndim, self.B.ndim) >= 2 and shapes[0][-1] == shapes[1][-2]
            torch.broadcast_shapes(shapes[0][:-2], shapes[1][:-2])
        except RuntimeError:
            fit = False
        if not fit:
            raise ResultError(
                f"The factors have the shapes {shapes[0]} and {shapes[1]}; expected "
                "[..., left, mid] and [..., mid, right] with one mid."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The product's shape [..., left, right]."""
        batch = torch.broadcast_shapes(self.A.shape[:-2], self.B.shape[:-2])
        return (*batch, self.A.shape[-2], self.B.shape[-1])

    @property
    def T(self) -> FactoredMatrix:  # noqa: N802  as torch calls it
        """The transpose, factored."""
        return FactoredMatrix(self.B.mT, self.A.mT)

    def dense(self) -> Float[Tensor, "... left right"]:
        """The product itself: as large as it is."""
        return self.A @ self.B

    def trace(self) -> Float[Tensor, "..."]:
        """The sum of the diagonal.

        Raises:
            ResultError: the matrix is not square.
        """
        self._square("trace")
        return (precise(self.A) * precise(self.B).mT).sum((-2, -1))

    def norm(self) -> Float[Tensor, "..."]:
        """The Frobenius norm."""
        return product_norm(self.A, self.B)

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """``U``, ``S`` and ``Vh`` with ``U @ S.diag() @ Vh`` the matrix; as many as its rank."""
        return product_svd(self.A, self.B)

    def eigenvalues(self) -> Complex[Tensor, "... mid"]:
        """The eigenvalues, as many as ``mid``; those left over are zero.

        Raises:
            ResultError: the matrix is not square.
        """
        self._square("eigenvalues")
        return product_eigenvalues(self.A, self.B)

    def __matmul__(self, other: Any) -> Any:
        """``self @ other``: factored for a matrix, a vector for a vector."""
        if isinstance(other, FactoredMatrix):
            return (self @ other.A) @ other.B
        if not isinstance(other, Tensor):
            return NotImplemented
        if other.ndim == 1:
            return (self.A @ (self.B @ other)[..., None])[..., 0]
        if self.B.shape[-1] <= self.A.shape[-1]:  # the product is smaller than its factors
            return FactoredMatrix(self.dense(), other)
        return FactoredMatrix(self.A, self.B @ other)

    def __rmatmul__(self, other: Any) -> Any:
        """``other @ self``, likewise."""
        if not isinstance(other, Tensor):
            return NotImplemented
        if other.ndim == 1:
            return ((other @ self.A)[..., None, :] @ self.B)[..., 0, :]
        if self.A.shape[-2] <= self.B.shape[-2]:
            return FactoredMatrix(other, self.dense())
        return FactoredMatrix(other @ self.A, self.B)

    def __add__(self, other: FactoredMatrix) -> FactoredMatrix:
        """The sum, with the ranks added: what several heads that attend alike do together."""
        return FactoredMatrix(torch.cat([self.A, other.A], -1), torch.cat([self.B, other.B], -2))

    def __mul__(self, number: float) -> FactoredMatrix:
        """The matrix times a number."""
        return FactoredMatrix(self.A * number, self.B)

    __rmul__ = __mul__

    def __getitem__(self, index: Any) -> FactoredMatrix:
        """One matrix, or several, of the batch."""
        batch = self.shape[:-2]
        whole = [part.expand(*batch, *part.shape[-2:]) for part in (self.A, self.B)]
        return FactoredMatrix(*(part[index] for part in whole))

    def __repr__(self) -> str:
        return f"FactoredMatrix({list(self.shape)}, rank at most {self.A.shape[-1]})"

    def _square(self, what: str) -> None:
        if self.shape[-2] != self.shape[-1]:
            raise ResultError(f"Only a square matrix has {what}; this one is {list(self.shape)}.")
