"""Against the dense product at V = 50, batched over two leading axes."""

from collections.abc import Callable

import numpy as np
import pytest

from icl_jax.maths.factored_matrix import FactoredMatrix, eigenvalue_sum_ratio

V, E = 50, 7


def _factored(
    seed: int = 0, shape: tuple[int, int, int] = (V, E, V), leading: tuple[int, ...] = (2, 3)
) -> FactoredMatrix:
    rng = np.random.default_rng(seed)
    n_rows, inner, n_columns = shape
    return FactoredMatrix(rng.normal(size=(*leading, n_rows, inner)), rng.normal(size=(*leading, inner, n_columns)))


def _by_size(eigenvalues: np.ndarray) -> np.ndarray:
    """Sorted by real, then imaginary part, after rounding noise away."""
    return np.sort_complex(np.round(eigenvalues, 8))


@pytest.mark.parametrize("shape", [(V, E, V), (V, V + 3, V)])
def test_eigenvalues_are_the_dense_ones_and_zeros(shape: tuple[int, int, int]) -> None:
    matrix = _factored(shape=shape)
    found, dense = matrix.eigenvalues(), np.linalg.eigvals(matrix.AB)
    assert found.shape == (2, 3, min(shape[:2]))
    padded = np.concatenate([found, np.zeros((2, 3, V - found.shape[-1]))], axis=-1)
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(_by_size(padded[index]), _by_size(dense[index]), atol=1e-7)
    np.testing.assert_allclose(found.sum(-1).real, matrix.trace(), rtol=1e-8)
    np.testing.assert_allclose(found.sum(-1).imag, 0, atol=1e-8)


@pytest.mark.parametrize("shape", [(V, E, 31), (31, E, V), (5, E, V), (V, E, 5), (20, 30, 40)])
def test_svd_and_norm_are_the_dense_ones(shape: tuple[int, int, int]) -> None:
    matrix = _factored(shape=shape)
    U, S, Vh = matrix.svd()
    n = min(shape)
    assert (U.shape, S.shape, Vh.shape) == ((2, 3, shape[0], n), (2, 3, n), (2, 3, n, shape[2]))
    np.testing.assert_allclose(S, np.linalg.svd(matrix.AB, compute_uv=False)[..., :n], rtol=1e-9)
    np.testing.assert_allclose((U * S[..., None, :]) @ Vh, matrix.AB, atol=1e-10)
    np.testing.assert_allclose(U.mT @ U, np.broadcast_to(np.eye(n), (2, 3, n, n)), atol=1e-12)
    np.testing.assert_allclose(matrix.singular_values(), S, rtol=1e-9)
    np.testing.assert_allclose(matrix.norm(), np.linalg.norm(matrix.AB, axis=(-2, -1)), rtol=1e-12)


def test_products_stay_factored_with_the_smaller_inner_axis() -> None:
    a, b = _factored(1, (V, E, 31)), _factored(2, (31, 5, V))
    dense = a.AB @ b.AB
    for product, inner in ((a @ b, 5), (b.mT @ a.mT, 5), (a @ b.AB, E), (a.AB @ b, 5)):
        assert isinstance(product, FactoredMatrix)
        assert product.rank_bound == inner
        assert product.shape == (2, 3, V, V)
    for product in (a @ b, (b.mT @ a.mT).mT, a @ b.AB, a.AB @ b, 0.5 * (2 * a @ b), (a * 2) @ (b * 0.5)):
        np.testing.assert_allclose(product.AB, dense, atol=1e-11)


def test_leading_axes_broadcast_and_can_be_picked() -> None:
    rng = np.random.default_rng(3)
    matrix = FactoredMatrix(rng.normal(size=(4, 1, V, E)), rng.normal(size=(3, E, V)))
    assert matrix.shape == (4, 3, V, V)
    np.testing.assert_allclose(matrix[2, 1].AB, matrix.A[2, 0] @ matrix.B[1])
    np.testing.assert_allclose(matrix[:, 1].trace(), np.trace(matrix.AB[:, 1], axis1=-2, axis2=-1))
    assert matrix.norm().shape == matrix.trace().shape == (4, 3)


def test_arithmetic_is_in_float64() -> None:
    A = np.full((2, 3), np.float32(0.1))
    assert FactoredMatrix(A, A.T).AB.dtype == np.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FactoredMatrix(np.ones((2, 3)), np.ones((4, 2))), "no product of shapes"),
        (lambda: _factored(shape=(4, 2, 5)).trace(), r"trace of a matrix of shape \(4, 5\): it must be square"),
        (lambda: _factored(shape=(4, 2, 5)).eigenvalues(), "must be square"),
    ],
)
def test_what_is_not_defined_raises(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_eigenvalue_sum_ratio() -> None:
    ratio = eigenvalue_sum_ratio(np.array([[1, 2, 3], [-1, -2, -3], [3 + 4j, 3 - 4j, 0], [0, 0, 0]], np.complex128))
    np.testing.assert_allclose(ratio, [1, -1, 0.6, 0])
