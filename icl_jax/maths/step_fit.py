"""Least squares of a curve on columns with coefficients of 0 or more, and one step by each of many.

What `icl_jax.maths.change_point` asks thousands of times: the columns are decomposed once, and a step more is one
coordinate more. Tokens run from 0 to 1; noise is AR(1) in tokens.
"""

import contextlib
from dataclasses import dataclass

import numpy as np

RISE = 2 * np.log(9)
"""From 10 % to 90 % of a logistic step, in units of its scale."""
FLOOR = 0.01
"""The least noise, as a part of the curve's range."""


def logistic(u: np.ndarray, place: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Steps from 0 to 1, one a column."""
    return 1 / (1 + np.exp(-np.clip((u[:, None] - place) * (RISE / width), -40, 40)))


class ColumnFit:
    """Least squares of one curve on a constant, columns with coefficients of 0 or more, and one step."""

    def __init__(
        self, u: np.ndarray, y: np.ndarray, columns: np.ndarray, correlation: float, noise: float | None
    ) -> None:
        # AR(1): what a point shares with the one before it fades with the tokens between them.
        gaps = np.diff(u)
        shared = correlation ** (gaps / np.median(gaps)) if correlation > 0 else np.zeros(len(gaps))
        self._shared, self._scale = shared[:, None], np.sqrt(1 - shared**2)[:, None]
        constant = self._whiten(np.ones((len(u), 1)))
        self._constant = constant / np.linalg.norm(constant)
        self.y = self._less_constant(y[:, None])[:, 0]
        columns = self._less_constant(columns)
        self.columns = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-12)
        self._q, self.r = np.linalg.qr(self.columns)
        self.qy = self._q.T @ self.y
        self._y_left = self.y - self._q @ self.qy
        self._rss_left = float(self._y_left @ self._y_left)
        self.noise, self.n = noise, len(u)
        self._floor = len(u) * FLOOR**2 if noise is None else 0.0

    def _whiten(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([x[:1], (x[1:] - self._shared * x[:-1]) / self._scale])

    def _less_constant(self, x: np.ndarray) -> np.ndarray:
        x = self._whiten(x)
        return x - self._constant @ (self._constant.T @ x)

    def without(self) -> float:
        """Residual sum of squares without a step, the floor of the noise in it."""
        from scipy.optimize import nnls

        return float(nnls(self.r, self.qy, maxiter=500)[1] ** 2 + self._rss_left + self._floor)

    def with_each(self, steps: np.ndarray, n_tried: int | None = None) -> "StepFits":
        """The fits with each column of `steps` by itself, in the few coordinates that the others leave.

        With `n_tried`, only so many, twice: those that gain most beside the columns of the best fit without one, then
        beside those of the best of them.
        """
        from scipy.optimize import nnls

        steps = self._less_constant(steps)
        inside = self._q.T @ steps
        outside = steps - self._q @ inside
        norm = np.maximum(np.linalg.norm(outside, axis=0), 1e-9)
        along = (self._y_left @ outside) / norm
        k, n = self.r.shape[1], steps.shape[1]
        a, b = np.zeros((len(self.r) + 1, k + 1)), np.append(self.qy, 0.0)
        a[:-1, :k] = self.r
        rss, x = np.full(n, np.inf), np.zeros((n, k + 1))

        def fit(which: np.ndarray) -> None:
            for i in which:
                a[:-1, k], a[-1, k], b[-1] = inside[:, i], norm[i], along[i]
                with contextlib.suppress(RuntimeError):  # it cycles, seldom, on columns that are all but the same
                    x[i], distance = nnls(a, b, maxiter=200)
                    rss[i] = max(distance**2 + self._rss_left - along[i] ** 2, 0.0) + self._floor

        if n_tried is None:
            fit(np.arange(n))
        else:
            used = nnls(self.r, self.qy, maxiter=500)[0] > 0
            for _ in range(2):
                q = np.linalg.qr(self.r[:, used])[0]
                left, step = self.qy - q @ (q.T @ self.qy), inside - q @ (q.T @ inside)
                gain = np.maximum(left @ step + along * norm, 0) ** 2 / ((step**2).sum(axis=0) + norm**2)
                gain[np.isfinite(rss)] = -1
                fit(np.argsort(-gain)[:n_tried])
                used = x[np.argmin(rss), :-1] > 0
        return StepFits(self, steps, rss, x, np.concatenate([inside, norm[None]]))

    def gain(self, without: float, with_more: float) -> float:
        """The test statistic."""
        if self.noise is not None:
            return (without - with_more) / self.noise**2
        return float(self.n * np.log(without / with_more))


@dataclass(frozen=True, slots=True)
class StepFits:
    """What `ColumnFit.with_each` found, one row a step."""

    fit: ColumnFit
    steps: np.ndarray
    rss: np.ndarray
    x: np.ndarray
    coordinates: np.ndarray

    @property
    def best(self) -> int:
        return int(np.argmin(self.rss))

    @property
    def n_left(self) -> int:
        """Points less what the best fit has taken from them: constant, place, width and coefficients."""
        return max(self.fit.n - 3 - int(np.count_nonzero(self.x[self.best])), 3)

    @property
    def noise(self) -> float:
        return float(np.sqrt(self.rss.min() / self.n_left)) if self.fit.noise is None else self.fit.noise

    def log_likelihood(self) -> np.ndarray:
        if self.fit.noise is not None:
            return -self.rss / (2 * self.fit.noise**2)
        return -self.n_left / 2 * np.log(self.rss)

    def residual(self) -> np.ndarray:
        x = self.x[self.best]
        return self.fit.y - self.fit.columns @ x[:-1] - self.steps[:, self.best] * x[-1]

    def size_errors(self) -> np.ndarray:
        """Standard error of each step's size, in units of the noise, beside the columns that the best fit uses."""
        inside, outside = self.coordinates[:-1], self.coordinates[-1]
        q = np.linalg.qr(self.fit.r[:, self.x[self.best, :-1] > 0])[0]
        inside = inside - q @ (q.T @ inside)
        return 1 / np.sqrt(np.maximum((inside**2).sum(axis=0) + outside**2, 1e-12))
