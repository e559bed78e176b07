"""Causal attention for CPUs: a few heads at a time so that scores stay in cache, and no work above the diagonal.

Heads of all rows are taken a few at a time by `lax.map`; queries are cut into blocks, and a block reads only the keys
that one of its queries sees. The training step's backward pass recomputes the pattern from the saved log-sum-exp, so
that nothing of size T x T outlives a block.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from icl_jax.model.precision import einsum


def _sizes(n_ctx: int) -> tuple[int, int]:
    """Heads at a time and queries in a block; the fastest of those measured (docs/benchmarks.md).

    A block's scores and their gradients grow with the row, and have to stay in a cache of about a megabyte.
    """
    return (4, 64) if n_ctx <= 512 else (1, 128)


def _blocks(n_ctx: int, window: int) -> list[tuple[int, int, int]]:
    """Of each block of queries the first key that one of them sees, the first query, and where both end."""
    block = _sizes(n_ctx)[1]
    starts = range(0, n_ctx, block)
    return [(max(0, start + 1 - window) if window else 0, start, min(start + block, n_ctx)) for start in starts]


def _masked_scores(q_GQE: jax.Array, k_GKE: jax.Array, first: int, start: int, window: int) -> jax.Array:
    """Scaled float32 scores of the queries from `start` on against the keys from `first` up to the last query."""
    scores_GQK = einsum("GQE,GKE->GQK", q_GQE, k_GKE, preferred_element_type=jnp.float32)
    n_queries, n_keys = scores_GQK.shape[1:]
    query_Q1, key_1K = np.arange(start, start + n_queries)[:, None], np.arange(first, first + n_keys)[None, :]
    is_visible_QK = key_1K <= query_Q1
    if window:
        is_visible_QK &= query_Q1 - key_1K < window
    return jnp.where(is_visible_QK[None], scores_GQK * np.float32(1 / math.sqrt(q_GQE.shape[-1])), -jnp.inf)


def _forward_group(qkv: tuple[jax.Array, jax.Array, jax.Array], window: int) -> tuple[jax.Array, jax.Array]:
    q, k, v = qkv
    z, log_sums = [], []
    for first, start, end in _blocks(q.shape[1], window):
        scores_GQK = _masked_scores(q[:, start:end], k[:, first:end], first, start, window)
        highest = jnp.max(scores_GQK, axis=-1, keepdims=True)
        unnormalised = jnp.exp(scores_GQK - highest)
        total = jnp.sum(unnormalised, axis=-1, keepdims=True)
        mixed = einsum("GQK,GKE->GQE", unnormalised.astype(v.dtype), v[:, first:end])
        z.append((mixed / total.astype(v.dtype)).astype(v.dtype))
        log_sums.append((highest + jnp.log(total))[..., 0])
    return jnp.concatenate(z, axis=1), jnp.concatenate(log_sums, axis=1)


def _backward_group(args: tuple[jax.Array, ...], window: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, k, v, z, log_sum_GT, dz = args
    scale = np.float32(1 / math.sqrt(q.shape[-1]))
    # Transposed here once, or each product for dk and dv is one that sums over the first axis of both, twice as slow.
    q_GET, dz_GET = (jax.lax.optimization_barrier(jnp.swapaxes(x, 1, 2)) for x in (q, dz))
    dq = []
    dk_GET = jnp.zeros(q_GET.shape, jnp.float32)
    dv_GET = jnp.zeros(q_GET.shape, jnp.float32)
    inner_GT = jnp.sum(dz.astype(jnp.float32) * z.astype(jnp.float32), axis=-1)
    for first, start, end in _blocks(q.shape[1], window):
        scores_GQK = _masked_scores(q[:, start:end], k[:, first:end], first, start, window)
        pattern_GQK = jnp.exp(scores_GQK - log_sum_GT[:, start:end, None])
        dpattern = einsum("GQE,GKE->GQK", dz[:, start:end], v[:, first:end], preferred_element_type=jnp.float32)
        dscores = (pattern_GQK * (dpattern - inner_GT[:, start:end, None]) * scale).astype(q.dtype)
        dq.append(einsum("GQK,GKE->GQE", dscores, k[:, first:end]))
        dk_GET = dk_GET.at[:, :, first:end].add(_mixed(q_GET[:, :, start:end], dscores))
        dv_GET = dv_GET.at[:, :, first:end].add(_mixed(dz_GET[:, :, start:end], pattern_GQK.astype(dz.dtype)))
    dk, dv = (jnp.swapaxes(x, 1, 2).astype(q.dtype) for x in (dk_GET, dv_GET))
    return jnp.concatenate(dq, axis=1), dk, dv


def _mixed(x_GEQ: jax.Array, weights_GQK: jax.Array) -> jax.Array:
    """For each key, the queries' x by their weights: float32, shape G E K."""
    return einsum("GEQ,GQK->GEK", x_GEQ, weights_GQK, preferred_element_type=jnp.float32)


def _grouped(x: jax.Array) -> jax.Array:
    """B H T ... -> groups, heads in a group, T ...; the number of heads is cut evenly."""
    n_heads = x.shape[0] * x.shape[1]
    in_group = math.gcd(n_heads, _sizes(x.shape[2])[0])
    return x.reshape(n_heads // in_group, in_group, *x.shape[2:])


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
    z, log_sum = jax.lax.map(partial(_forward_group, window=window), (_grouped(q), _grouped(k), _grouped(v)))
    return z.reshape(q.shape), log_sum.reshape(q.shape[:-1])


def blocked_attention(
    q: Float[Array, "B H T E"], k: Float[Array, "B H T E"], v: Float[Array, "B H T E"], window: int = 0
) -> Float[Array, "B H T E"]:
    """Equal to `reference_attention` up to rounding, in value and derivatives of either mode."""
    return _forward(q, k, v, window)[0]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def trained_blocked_attention(
    q: Float[Array, "B H T E"], k: Float[Array, "B H T E"], v: Float[Array, "B H T E"], window: int = 0
) -> Float[Array, "B H T E"]:
    """The same with a gradient of its own, for reverse mode alone."""
    return _forward(q, k, v, window)[0]


def _fwd(q: jax.Array, k: jax.Array, v: jax.Array, window: int) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    z, log_sum = _forward(q, k, v, window)
    return z, (q, k, v, z, log_sum)


def _bwd(window: int, saved: tuple[jax.Array, ...], dz: jax.Array) -> tuple[jax.Array, ...]:
    grouped = tuple(_grouped(x) for x in (*saved, dz))
    return tuple(d.reshape(dz.shape) for d in jax.lax.map(partial(_backward_group, window=window), grouped))


trained_blocked_attention.defvjp(_fwd, _bwd)
