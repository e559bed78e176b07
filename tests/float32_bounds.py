"""How far a float32 result may be from the exact one, whatever the order of its sums: no processor sets a tolerance.

A sum of n products, each of whose operations rounds by at most u = 2**-24 of its result, is off by at most n u times
the sum of the products' absolute values (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1),
and, as roundings go either way, hardly ever by more than 4 sqrt(n) u times it (Higham and Mary 2019, A New Approach
to Probabilistic Rounding Error Analysis). The bounds below follow the smaller of the two, first order in u, through a
softmax and the gradients. They take any order, fused multiplications or none; a wrong term, or a factor rounded to
half precision, is far outside.
"""

from typing import Any, NamedTuple

import numpy as np

U = 2.0**-24
_EXP = 16 * U  # exp and log of the compilers are off by a few units in the last place


def _roundings(n: int) -> float:
    """By how much n roundings in a row may move a result, relative to the size of what is summed."""
    return min(n, 4 * n**0.5) * U


class Bounded(NamedTuple):
    """An exact value, float64, and how far a float32 one may be from it."""

    exact: np.ndarray
    error: np.ndarray


def product(spec: str, a: Any, b: Any) -> Bounded:
    """An einsum of two exact or bounded factors."""
    (a, da), (b, db) = _bounded(a), _bounded(b)
    exact, absolute = np.einsum(spec, a, b), np.einsum(spec, abs(a), abs(b))
    terms, out = spec.split("->")
    left, right = terms.split(",")
    sizes = dict(zip(left, a.shape, strict=True)) | dict(zip(right, b.shape, strict=True))
    n_terms = int(np.prod([size for letter, size in sizes.items() if letter not in out]))
    error = np.einsum(spec, da, abs(b)) + np.einsum(spec, abs(a), db)
    return Bounded(exact, error + _roundings(n_terms + 2) * absolute)


def softmax(scores: Bounded) -> tuple[Bounded, Bounded]:
    """Over the last axis: probabilities, and the logarithm of the sum. Minus infinity is exact."""
    is_seen = np.isfinite(scores.exact)
    x, dx = np.where(is_seen, scores.exact, -np.inf), np.where(is_seen, scores.error, 0)
    highest = x.max(-1, keepdims=True)
    total = np.exp(x - highest).sum(-1, keepdims=True)
    probs, log_sum = np.exp(x - highest) / total, highest + np.log(total)
    # Subtracting the highest score, or the logarithm, rounds by u of scores that may be large.
    size = abs(np.where(is_seen, x, 0)).max(-1, keepdims=True) + abs(log_sum)
    shift = dx.max(-1, keepdims=True) + 4 * U * size + _roundings(x.shape[-1]) + _EXP
    return Bounded(probs, probs * (dx + shift)), Bounded(log_sum[..., 0], shift[..., 0])


def attention(q: Any, k: Any, v: Any, dz: Any) -> dict[str, Bounded]:
    """Causal attention of q, k, v [B, H, T, E] and its gradients by them in the direction dz."""
    q, k, v, dz = (np.asarray(x, np.float64) for x in (q, k, v, dz))
    scale = 1 / np.sqrt(q.shape[-1])
    raw = product("bhqe,bhke->bhqk", q * scale, k)
    is_visible = np.tril(np.ones(raw.exact.shape[-2:], bool))
    pattern, _ = softmax(Bounded(np.where(is_visible, raw.exact, -np.inf), raw.error + 2 * U * abs(raw.exact)))
    z = product("bhqk,bhke->bhqe", pattern, v)
    dpattern = product("bhqe,bhke->bhqk", dz, v)
    # The sum over keys of pattern * dpattern, which is also that over E of dz * z.
    inner = product("bhqe,bhqe->bhq", dz, z)
    over_keys = product("bhqk,bhqk->bhq", pattern, dpattern)
    d_inner = np.maximum(inner.error, over_keys.error)[..., None]
    centred = dpattern.exact - inner.exact[..., None]
    size = abs(dpattern.exact) + abs(inner.exact[..., None])
    d_centred = dpattern.error + d_inner + U * size
    error = pattern.error * abs(centred) + pattern.exact * (d_centred + 4 * U * size)
    dscores = Bounded(pattern.exact * centred * scale, error * scale)
    return {
        "z": z,
        "dq": product("bhqk,bhke->bhqe", dscores, k),
        "dk": product("bhqk,bhqe->bhke", dscores, q),
        "dv": product("bhqk,bhqe->bhke", pattern, dz),
    }


def mean_loss(x: Any, W_U: Any, targets: Any) -> dict[str, Bounded]:
    """Cross-entropy [N] of logits x W_U, and the gradients of its mean."""
    x, W_U, targets = np.asarray(x, np.float64), np.asarray(W_U, np.float64), np.asarray(targets)
    logits = product("nd,dv->nv", x, W_U)
    loss, dlogits = loss_and_dlogits(logits, targets, np.full(len(targets), 1 / len(targets)))
    mean = loss.error.mean() + _roundings(len(targets) + 2) * abs(loss.exact).mean()
    return {
        "loss": loss,
        "mean": Bounded(loss.exact.mean(), mean),
        "dx": product("nv,dv->nd", dlogits, W_U),
        "dW_U": product("nd,nv->dv", x, dlogits),
    }


def loss_and_dlogits(logits: Any, targets: np.ndarray, weight: np.ndarray) -> tuple[Bounded, Bounded]:
    """Cross-entropy [N] and the gradient [N, V] of its sum weighted by `weight`."""
    logits, weight = _bounded(logits), np.asarray(weight, np.float64)[:, None]
    probs, log_sum = softmax(logits)
    at = (np.arange(len(targets)), targets)
    size = abs(log_sum.exact) + abs(logits.exact[at]) + abs(logits.exact).max(-1)
    loss = Bounded(log_sum.exact - logits.exact[at], log_sum.error + logits.error[at] + 4 * U * size)
    is_target = np.eye(logits.exact.shape[-1])[targets]
    error = (probs.error + 4 * U * (probs.exact + is_target)) * weight
    return loss, Bounded((probs.exact - is_target) * weight, error)


def assert_within(found: Any, expected: Bounded, name: str = "") -> None:
    """Each entry is as near as float32 can have it."""
    off = abs(np.asarray(found, np.float64) - expected.exact)
    assert off.shape == expected.exact.shape, name
    over = off / np.maximum(expected.error, np.finfo(np.float32).tiny)
    assert (over <= 1).all(), f"{name}: off by {off.max()}, {over.max()} times the bound"


def _bounded(x: Any) -> Bounded:
    if isinstance(x, Bounded):
        return x
    exact = np.asarray(x, np.float64)
    return Bounded(exact, np.zeros_like(exact))
