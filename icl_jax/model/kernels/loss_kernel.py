"""Cross-entropy of a chunk and its gradient by the logits, on an NVIDIA GPU: one Pallas program per token.

XLA makes three kernels of it, for the largest logit, the sum and the gradient, each of which starts and ends in the
GPU's memory; this takes two thirds of their time.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

# The best on an H200 of blocks from 2,048 to 16,384 logits with 4 to 32 warps.
_BLOCK = 16384
_LOGITS_PER_WARP = 512


def _token(logits_ref: Any, targets_ref: Any, weight_ref: Any, loss_ref: Any, dlogits_ref: Any, *, block: int) -> None:
    """Blocks of one token's logits, twice: their sum with the largest so far taken out, then the gradient."""
    token, vocab_size = pl.program_id(0), logits_ref.shape[1]
    n_blocks = pl.cdiv(vocab_size, block)
    target, weight = targets_ref[token], weight_ref[token]

    def place(i: jax.Array) -> tuple[Any, jax.Array, jax.Array | None]:
        """Where the i-th block is, its token ids, and which of them exist."""
        ids = i * block + jnp.arange(block)
        return (token, pl.ds(i * block, block)), ids, ids < vocab_size if vocab_size % block else None

    def add(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        highest, total_B = carry
        at, _, exists = place(i)
        other = None if exists is None else -jnp.inf
        # To stay in the cache, if it can, for the second time.
        logits_B = plgpu.load(logits_ref.at[at], mask=exists, other=other, eviction_policy="evict_last")
        higher = jnp.maximum(highest, jnp.max(logits_B))
        return higher, total_B * jnp.exp(highest - higher) + jnp.exp(logits_B - higher)

    start = jnp.float32(-jnp.inf), jnp.zeros(block, jnp.float32)
    highest, total_B = jax.lax.fori_loop(0, n_blocks, add, start)
    total = jnp.sum(total_B)
    loss_ref[token] = jnp.log(total) + highest - logits_ref[token, jnp.maximum(target, 0)]

    def store(i: jax.Array, carry: jax.Array) -> jax.Array:
        at, ids, exists = place(i)
        other = None if exists is None else 0.0
        logits_B = plgpu.load(logits_ref.at[at], mask=exists, other=other, eviction_policy="evict_first")
        dlogits_B = jnp.exp(logits_B - highest) * (weight / total) - jnp.where(ids == target, weight, 0.0)
        dlogits_B = dlogits_B.astype(dlogits_ref.dtype)
        plgpu.store(dlogits_ref.at[at], dlogits_B, mask=exists, eviction_policy="evict_first")
        return carry

    jax.lax.fori_loop(0, n_blocks, store, jnp.int32(0))


def loss_and_dlogits(
    logits: Float[Array, "C V"],
    targets: Int[Array, " C"],
    weight: Float[Array, " C"],
    dtype: DTypeLike,
    *,
    block: int = _BLOCK,
    interpret: bool = False,
) -> tuple[Float[Array, " C"], Float[Array, "C V"]]:
    """-log p(target) of each token in nats, and the gradient in `dtype` of their sum weighted by `weight`.

    Logits are float32; a target of -1 stands for a token that is not there, and its weight must be 0. `block` is a
    power of 2; `interpret` runs it anywhere, slowly, for tests.
    """
    n_tokens, vocab_size = logits.shape
    block = min(block, pl.next_power_of_2(vocab_size))
    return pl.pallas_call(
        partial(_token, block=block),
        out_shape=(jax.ShapeDtypeStruct((n_tokens,), jnp.float32), jax.ShapeDtypeStruct(logits.shape, dtype)),
        grid=(n_tokens,),
        compiler_params=plgpu.CompilerParams(num_warps=max(1, block // _LOGITS_PER_WARP), num_stages=1),
        interpret=interpret,
        name="cross_entropy",
    )(logits, targets, weight)
