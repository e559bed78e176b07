"""Cross-entropy of every token in chunks, so that B T V logits never exist at once."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.model.execution import Execution, resolve
from icl_jax.model.forward import final_resid, soft_capped, unembedding_DV, with_bias
from icl_jax.model.kernels import loss_kernel
from icl_jax.model.linear import weight_grad
from icl_jax.model.norm import normalise
from icl_jax.model.params import Params
from icl_jax.model.precision import einsum
from icl_jax.model.tokens import takes_rows


def reference_token_loss(
    x: Float[Array, "B T D"], W_U: Float[Array, "D V"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """-log p(target) in nats, all logits at once; the chunked form is tested against it."""
    logits_BTV = einsum("BTD,DV->BTV", x, W_U, preferred_element_type=jnp.float32)
    target_logit = jnp.take_along_axis(logits_BTV, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BTV, axis=-1) - target_logit


def _chunks(x: jax.Array, targets: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """Flatten B T and cut it into chunks, the last filled up with zeros."""
    n_tokens, d_model = targets.size, x.shape[-1]
    chunk = min(chunk, n_tokens)
    padding = -n_tokens % chunk
    x_ND = jnp.pad(x.reshape(n_tokens, d_model), ((0, padding), (0, 0)))
    targets_N = jnp.pad(targets.reshape(n_tokens), (0, padding), constant_values=-1)
    return x_ND.reshape(-1, chunk, d_model), targets_N.reshape(-1, chunk)


def _chunk_logits(x_CD: jax.Array, W_U: jax.Array, b_U: jax.Array | None, cap: float) -> jax.Array:
    logits_CV = einsum("CD,DV->CV", x_CD, W_U, preferred_element_type=jnp.float32)
    return soft_capped(with_bias(logits_CV, b_U), cap)


def _chunk_loss(logits_CV: jax.Array, targets_C: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss, probabilities before normalisation and their sums for one chunk."""
    highest_C = jnp.max(logits_CV, axis=-1)
    exp_CV = jnp.exp(logits_CV - highest_C[:, None])
    total_C = jnp.sum(exp_CV, axis=-1)
    target_logit_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=-1, mode="clip")[:, 0]
    return jnp.log(total_C) + highest_C - target_logit_C, exp_CV, total_C


def _loss_and_dlogits(
    logits_CV: jax.Array, targets_C: jax.Array, weight_C: jax.Array, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array]:
    """Loss of one chunk, and the gradient by its logits of the loss weighted by `weight_C`."""
    loss_C, exp_CV, total_C = _chunk_loss(logits_CV, targets_C)
    is_target_CV = targets_C[:, None] == jnp.arange(logits_CV.shape[1], dtype=targets_C.dtype)[None, :]
    dlogits_CV = exp_CV * (weight_C / total_C)[:, None] - jnp.where(is_target_CV, weight_C[:, None], 0.0)
    return loss_C, dlogits_CV.astype(dtype)


def token_loss(
    x: Float[Array, "B T D"], W_U: Float[Array, "D V"], targets: Int[Array, "B T"], chunk: int,
    b_U: Float[Array, " V"] | None = None, cap: float = 0.0,
) -> Float[Array, "B T"]:  # fmt: skip
    """-log p(target) in nats, float32, `chunk` tokens at a time, in derivatives of either mode too.

    `cap`: model.logit_soft_cap.
    """

    @jax.checkpoint
    def one_chunk(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _chunk_loss(_chunk_logits(args[0], W_U, b_U, cap), args[1])[0]

    loss_IC = jax.lax.map(one_chunk, _chunks(x, targets, chunk))
    return loss_IC.reshape(-1)[: targets.size].reshape(targets.shape)


def token_loss_and_rank(
    x: Float[Array, "B T D"], W_U: Float[Array, "D V"], targets: Int[Array, "B T"], chunk: int,
    b_U: Float[Array, " V"] | None = None, cap: float = 0.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:  # fmt: skip
    """`token_loss`, and each target's rank among all tokens by the same logits: 1 is the likeliest, ties count half.

    Ranks are in [1, V]; equal logits throughout give (V + 1) / 2. Ours.
    """

    def one_chunk(args: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits_CV, targets_C = _chunk_logits(args[0], W_U, b_U, cap), args[1]
        right_C1 = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=-1, mode="clip")
        above_C = jnp.sum(logits_CV > right_C1, axis=-1, dtype=jnp.float32)
        equal_C = jnp.sum(logits_CV == right_C1, axis=-1, dtype=jnp.float32)  # the right token itself among them
        return _chunk_loss(logits_CV, targets_C)[0], above_C + (equal_C + 1) / 2

    found = jax.lax.map(one_chunk, _chunks(x, targets, chunk))
    loss, rank = (of_IC.reshape(-1)[: targets.size].reshape(targets.shape) for of_IC in found)
    return loss, rank


@takes_rows
def losses(
    params: Params,
    rows: Int[Array, "B T1"],
    config: ModelConfig,
    *,
    execution: Execution | None = None,
    **options: Any,
) -> Float[Array, "B T"]:
    """-log p of rows[:, 1:] in nats, float32, each predicted from the tokens before it: what analysis measures.

    Differentiable in either mode. `options`: `tap`, `seen` and `start` of `final_resid`.
    """
    execution = execution or resolve(config)
    x_BTD = final_resid(params, rows[:, :-1], config, execution=execution, **options)
    return _loss_of(x_BTD, params, rows, config, execution)


@takes_rows
def loss_of_resid(
    params: Params, resid: Float[Array, "B T D"], rows: Int[Array, "B T1"], config: ModelConfig
) -> Float[Array, "B T"]:
    """The same from the residual stream after the last layer."""
    return _loss_of(normalise(resid, params.get("ln_final_w"), config), params, rows, config, resolve(config))


def _loss_of(x_BTD: jax.Array, params: Params, rows: jax.Array, config: ModelConfig, execution: Execution) -> jax.Array:
    W_U = unembedding_DV(params).astype(x_BTD.dtype)
    return token_loss(x_BTD, W_U, rows[:, 1:], execution.loss_chunk, params.get("b_U"), config.logit_soft_cap)


@partial(jax.custom_vjp, nondiff_argnums=(3, 5))
def mean_loss(
    x: Float[Array, "B T D"], W_U: Float[Array, "D V"], targets: Int[Array, "B T"], chunk: int,
    b_U: Float[Array, " V"] | None = None, cap: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, " T"]]:  # fmt: skip
    """Mean loss over all tokens, and the mean over the batch at each position, in nats: the training step's.

    Reverse mode alone; gradients flow through the mean only. They are formed in the forward pass, while a chunk's
    logits are at hand, and scaled in the backward pass: one matmul less than recomputing the logits.
    """
    loss_BT = token_loss(x, W_U, targets, chunk, b_U, cap)
    return jnp.mean(loss_BT), jnp.mean(loss_BT, axis=0)


def _mean_loss_fwd(
    x: jax.Array, W_U: jax.Array, targets: jax.Array, chunk: int, b_U: jax.Array | None, cap: float
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array | None, ...]]:
    x_ICD, targets_IC = _chunks(x, targets, chunk)

    def one_chunk(grads: Any, args: tuple[jax.Array, jax.Array]) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        (dW_U, db_U), (x_CD, targets_C) = grads, args
        # Filled-up tokens have target -1: their weight is 0.
        weight_C = jnp.where(targets_C >= 0, 1.0 / targets.size, 0.0).astype(jnp.float32)
        logits_CV = _chunk_logits(x_CD, W_U, b_U, cap)
        loss_C, dlogits_CV = jax.lax.platform_dependent(
            logits_CV,
            targets_C,
            weight_C,
            cuda=partial(loss_kernel.loss_and_dlogits, dtype=jnp.float32 if cap else x.dtype),
            default=partial(_loss_and_dlogits, dtype=jnp.float32 if cap else x.dtype),
        )
        if cap:
            dlogits_CV = (dlogits_CV * (1 - jnp.square(logits_CV / cap))).astype(x.dtype)
        dx_CD = einsum("CV,DV->CD", dlogits_CV, W_U)
        dW_U = dW_U + weight_grad(x_CD, dlogits_CV, jnp.float32)
        if b_U is not None:
            db_U = db_U + jnp.sum(dlogits_CV, axis=0, dtype=jnp.float32)
        return (dW_U, db_U), (loss_C, dx_CD)

    zero = jnp.zeros(W_U.shape, jnp.float32), None if b_U is None else jnp.zeros(b_U.shape, jnp.float32)
    (dW_U, db_U), (loss_IC, dx_ICD) = jax.lax.scan(one_chunk, zero, (x_ICD, targets_IC))
    loss_BT = loss_IC.reshape(-1)[: targets.size].reshape(targets.shape)
    dx = dx_ICD.reshape(-1, x.shape[-1])[: targets.size].reshape(x.shape)
    return (jnp.mean(loss_BT), jnp.mean(loss_BT, axis=0)), (dx, dW_U.astype(W_U.dtype), db_U)


def _mean_loss_bwd(
    _chunk: int, _cap: float, saved: tuple[jax.Array, jax.Array, jax.Array | None],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array | None, ...]:  # fmt: skip
    dx, dW_U, db_U = saved
    scale = cotangents[0]
    db_U = None if db_U is None else db_U * scale
    return dx * scale.astype(dx.dtype), dW_U * scale.astype(dW_U.dtype), None, db_U


mean_loss.defvjp(_mean_loss_fwd, _mean_loss_bwd)
