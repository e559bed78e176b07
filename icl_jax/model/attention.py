"""Causal attention: the readable reference, and the faster forms that `icl_jax.model.execution` chooses from.

All forms take ``q, k, v`` of shape B H T E and return ``z`` of the same shape; scores are divided by sqrt(E). What else
happens to scores in a layer, `Scores` says.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from icl_jax.config import ModelConfig
from icl_jax.model.execution import Execution
from icl_jax.model.kernels.blocked_attention import blocked_attention, trained_blocked_attention
from icl_jax.model.positions import alibi_slopes
from icl_jax.model.precision import einsum, matmul_precision

AttentionFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Scores(NamedTuple):
    """What a layer does with its scores, besides leaving out keys after the query."""

    window: int = 0
    """Keys that a query sees, its own among them; 0: all."""
    is_alibi: bool = False
    """They fall with the distance, by `alibi_slopes`."""
    soft_cap: float = 0.0
    """c tanh(s / c) in place of s, before they fall; 0: s."""

    @classmethod
    def of(cls, config: ModelConfig, layer: int) -> "Scores":
        """Of a layer of a model."""
        return cls(config.window_of(layer), config.positions == "alibi", config.attn_soft_cap)


_PLAIN = Scores()


def attn_scores(
    q: Float[Array, "B H T E"], k: Float[Array, "B H T E"], scores: Scores = _PLAIN
) -> Float[Array, "B H T T"]:
    """Scores before the softmax, float32; minus infinity where the query does not see the key."""
    scores_BHQK = einsum("BHQE,BHKE->BHQK", q, k, preferred_element_type=jnp.float32)
    position_T = jnp.arange(q.shape[-2])
    is_visible_QK = position_T[:, None] >= position_T[None, :]
    if scores.window:
        is_visible_QK &= position_T[:, None] - position_T[None, :] < scores.window
    is_visible_11QK = is_visible_QK[None, None]
    scores_BHQK = scores_BHQK / math.sqrt(q.shape[-1])
    if scores.soft_cap:
        scores_BHQK = scores.soft_cap * jnp.tanh(scores_BHQK / scores.soft_cap)
    if scores.is_alibi:
        distance_QK = jnp.asarray(position_T[:, None] - position_T[None, :], jnp.float32)
        slope_H = jnp.asarray(alibi_slopes(q.shape[1]), jnp.float32)
        scores_BHQK = scores_BHQK - (slope_H[:, None, None] * distance_QK[None])[None]
    return jnp.where(is_visible_11QK, scores_BHQK, -jnp.inf)


def attend(pattern: Float[Array, "B H T T"], v: Float[Array, "B H T E"]) -> Float[Array, "B H T E"]:
    """Values mixed by the pattern."""
    return einsum("BHQK,BHKE->BHQE", pattern.astype(v.dtype), v)


def reference_attention(
    q: Float[Array, "B H T E"], k: Float[Array, "B H T E"], v: Float[Array, "B H T E"], scores: Scores = _PLAIN
) -> Float[Array, "B H T E"]:
    """Softmax attention that materialises the pattern; every other form is tested against it."""
    return attend(jax.nn.softmax(attn_scores(q, k, scores), axis=-1), v)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """cuDNN's flash attention; half precision only, so float32 takes the reference."""
    if q.dtype != jnp.bfloat16:
        return reference_attention(q, k, v)
    q_BTHE, k_BTHE, v_BTHE = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    z_BTHE = jax.nn.dot_product_attention(q_BTHE, k_BTHE, v_BTHE, is_causal=True, implementation="cudnn")
    return jnp.swapaxes(z_BTHE, 1, 2)


@jax.custom_vjp
def _splash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`_splash_kernel`; its backward pass, traced later than this, has to be told the precision again."""
    with matmul_precision(q.dtype):
        return _splash_kernel(q, k, v)


def _splash_fwd(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Callable[..., tuple[jax.Array, ...]]]:
    with matmul_precision(q.dtype):
        z, pull_back = jax.vjp(_splash_kernel, q, k, v)
    return z, pull_back


def _splash_bwd(pull_back: Callable[..., tuple[jax.Array, ...]], dz: jax.Array) -> tuple[jax.Array, ...]:
    with matmul_precision(dz.dtype):
        return pull_back(dz)


_splash.defvjp(_splash_fwd, _splash_bwd)


def _splash_kernel(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """JAX's own Pallas kernel for TPU. Its block sizes want at least 128 positions; shorter rows take the reference.

    Each block of queries reads all keys and values before it again: with the kernel's default of 128 positions that
    takes longer than the arithmetic at n_ctx 8192, with 512 it does not.
    """
    n_heads, n_ctx = q.shape[1], q.shape[2]
    if n_ctx % 128:
        return reference_attention(q, k, v)
    block = math.gcd(n_ctx, 512)
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((n_ctx, n_ctx))] * n_heads)
    blocks = splash_attention_kernel.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    kernel = splash_attention_kernel.make_splash_mha(mask=mask, block_sizes=blocks, head_shards=1, q_seq_shards=1)
    scale = jnp.asarray(1 / math.sqrt(q.shape[-1]), q.dtype)
    z: jax.Array = jax.vmap(kernel)(q * scale, k, v)
    return z


def attention_fn(execution: Execution, scores: Scores = _PLAIN) -> AttentionFn:
    """The form that an execution names, for a layer's scores. Raises ValueError for one that cannot do them."""
    blocked = trained_blocked_attention if execution.own_gradients else blocked_attention
    forms: dict[str, AttentionFn] = {
        "reference": reference_attention if scores == _PLAIN else partial(reference_attention, scores=scores),
        "blocked": partial(blocked, window=scores.window) if scores.window else blocked,
        "cudnn": _cudnn,
        "splash": _splash,
    }
    can_do = {"reference": scores, "blocked": Scores(window=scores.window)}.get(execution.attention, _PLAIN)
    if can_do != scores:
        raise ValueError(f"{execution.attention} attention has no {scores}")
    return forms[execution.attention]
