"""A product of two matrices that is never multiplied out.

The circuits of a head are V by V with the rank of a head: a product of a tall and a wide matrix says the same with a
thousandth of the numbers. Source: TransformerLens's type of the same name; the spectrum here goes through QR.
"""

from dataclasses import dataclass
from typing import Any, Union, overload

import numpy as np
from jaxtyping import Complex, Float

Index = Any
Matrix = Union["FactoredMatrix", np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class FactoredMatrix:
    """``A @ B``, A [..., l, m] and B [..., m, r], float64, broadcast over the leading axes.

    ``@`` with an array or another factored matrix stays factored and keeps the smaller inner axis.
    """

    A: np.ndarray
    B: np.ndarray

    # So that array @ factored comes here and not to NumPy's own product.
    __array_ufunc__ = None

    def __post_init__(self) -> None:
        if self.A.ndim < 2 or self.B.ndim < 2 or self.A.shape[-1] != self.B.shape[-2]:
            raise ValueError(f"no product of shapes {self.A.shape} and {self.B.shape}")
        np.broadcast_shapes(self.A.shape[:-2], self.B.shape[:-2])
        object.__setattr__(self, "A", np.asarray(self.A, np.float64))
        object.__setattr__(self, "B", np.asarray(self.B, np.float64))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the product."""
        leading = np.broadcast_shapes(self.A.shape[:-2], self.B.shape[:-2])
        return (*leading, self.A.shape[-2], self.B.shape[-1])

    @property
    def rank_bound(self) -> int:
        """The inner axis: no product has a higher rank."""
        return self.A.shape[-1]

    @property
    def AB(self) -> Float[np.ndarray, "... l r"]:
        """The product, multiplied out."""
        return self.A @ self.B

    @property
    def mT(self) -> "FactoredMatrix":
        """The transpose of the last two axes."""
        return FactoredMatrix(self.B.mT, self.A.mT)

    def __getitem__(self, index: Index) -> "FactoredMatrix":
        """Pick from the leading axes: matrix[snapshot, layer, head]."""
        leading = self.shape[:-2]
        A = np.broadcast_to(self.A, leading + self.A.shape[-2:])
        B = np.broadcast_to(self.B, leading + self.B.shape[-2:])
        return FactoredMatrix(A[index], B[index])

    def __mul__(self, scale: int | float) -> "FactoredMatrix":
        return FactoredMatrix(self.A * scale, self.B)

    __rmul__ = __mul__

    @overload
    def __matmul__(self, other: np.ndarray) -> "FactoredMatrix": ...
    @overload
    def __matmul__(self, other: "FactoredMatrix") -> "FactoredMatrix": ...
    def __matmul__(self, other: Matrix) -> "FactoredMatrix":
        if isinstance(other, np.ndarray):
            return FactoredMatrix(self.A, self.B @ other)
        middle = self.B @ other.A
        if self.rank_bound <= other.rank_bound:
            return FactoredMatrix(self.A, middle @ other.B)
        return FactoredMatrix(self.A @ middle, other.B)

    def __rmatmul__(self, other: np.ndarray) -> "FactoredMatrix":
        return FactoredMatrix(other @ self.A, self.B)

    def trace(self) -> Float[np.ndarray, "..."]:
        """Sum of the diagonal: sum of A times B transposed. Needs a square product."""
        self._require_square("trace")
        return np.asarray(np.einsum("...lm,...ml->...", self.A, self.B))

    def norm(self) -> Float[np.ndarray, "..."]:
        """Frobenius norm: the root of the trace of A^T A B B^T, to 1e-8 of |A| |B|."""
        squared = np.sum((self.A.mT @ self.A) * (self.B @ self.B.mT), axis=(-2, -1))
        return np.asarray(np.sqrt(np.maximum(squared, 0.0)))

    def eigenvalues(self) -> Complex[np.ndarray, "... n"]:
        """The eigenvalues that can differ from zero, n = min(l, m) of them; the l - n others are zero.

        AB and BA have the same spectrum up to zeros, so the smaller one is solved. In no particular order; complex128,
        in conjugate pairs. Needs a square product.
        """
        self._require_square("eigenvalues")
        small = self.B @ self.A if self.rank_bound <= self.A.shape[-2] else self.AB
        return np.linalg.eigvals(small).astype(np.complex128)

    def svd(
        self,
    ) -> tuple[Float[np.ndarray, "... l n"], Float[np.ndarray, "... n"], Float[np.ndarray, "... n r"]]:
        """U, S, Vh with n = min(l, m, r) singular values, falling; the others are zero.

        A = Q_A R_A and B^T = Q_B R_B, so that only the small R_A R_B^T is decomposed.
        """
        Q_A, R_A = np.linalg.qr(self.A)
        Q_B, R_B = np.linalg.qr(self.B.mT)
        U, S, Vh = np.linalg.svd(R_A @ R_B.mT, full_matrices=False)
        return Q_A @ U, S, Vh @ Q_B.mT

    def singular_values(self) -> Float[np.ndarray, "... n"]:
        """The n = min(l, m, r) singular values, falling; the others are zero."""
        return np.linalg.svd(self._core(), compute_uv=False)

    def _core(self) -> np.ndarray:
        """A small matrix with the same singular values."""
        R_A, R_B = (np.asarray(np.linalg.qr(matrix, mode="r")) for matrix in (self.A, self.B.mT))
        return R_A @ R_B.mT

    def _require_square(self, what: str) -> None:
        if self.shape[-2] != self.shape[-1]:
            raise ValueError(f"{what} of a matrix of shape {self.shape[-2:]}: it must be square")


def eigenvalue_sum_ratio(eigenvalues: Complex[np.ndarray, "*S n"]) -> Float[np.ndarray, "*S"]:
    """Sum of the real parts over the sum of the absolute values, in [-1, 1]; 0 where all eigenvalues are zero.

    1 for a circuit that maps things to themselves, -1 for one that does the opposite, 0 on average for a random one.
    Source: Elhage et al. 2021, "Detecting copying behavior".
    """
    total = np.sum(np.abs(eigenvalues), axis=-1)
    safe = np.where(total > 0, total, 1.0)
    return np.asarray(np.sum(eigenvalues.real, axis=-1) / safe)
