"""Which part of the model raised the token that came next: direct logit attribution.

The last residual stream is a sum: embedding, each head's output (its b_V among it), each MLP's (with b_out), biases
b_O. With the final norm's scale held at the
run's, the unembedding is linear, so the logit of the true next token is the sum of what each term writes to it. Logits
are taken less their mean over the vocabulary, which no probability sees. A term acts through later layers as well;
that is not counted here (`icl_jax.measures.ablation` counts it). Logits are those before a cap.

Source: Olsson et al. 2022, Argument 4 (blue in its figures: value, attention, W_O and W_U, "after normalising the
logit vector to zero mean"); Elhage et al. 2021, "Path expansion".
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.maths.activations import Activations, AnyParams
from icl_jax.maths.frozen_run import embedding, frozen_norm, head_results, norm_scale
from icl_jax.model.execution import resolve
from icl_jax.model.forward import unembedding_DV
from icl_jax.model.loss import token_loss
from icl_jax.model.norm import normalise
from icl_jax.model.params import Params
from icl_jax.model.tokens import takes_predicted_tokens


class LogitAttribution(NamedTuple):
    """Terms of the centred logit of each true next token. P = T - 1: entry t is about predicting token t + 1."""

    logit: Float[Array, "B P"]
    """The logit of the true token less the mean over the vocabulary; the sum of all terms below."""
    embedding: Float[Array, "B P"]
    """Of the direct path: the token seen last and, where positions are `standard`, its position."""
    heads: Float[Array, "B P N H"]
    mlps: Float[Array, "B P N"]
    """Zero in an attention-only model."""
    biases: Float[Array, "B P"]
    """Of b_O of all layers and b_U; zero in a model without."""
    loss_nats: Float[Array, "B P"]
    """-log p of the true token."""


@takes_predicted_tokens
def direct_logit_attribution(
    params: AnyParams, tokens: Int[Array, "B T"] | np.ndarray, config: ModelConfig
) -> LogitAttribution:
    """What each head, each MLP and the embedding add to the logit of the true next token, on rows that start with BOS.

    Unit: logits (nats up to a constant); any sign. Terms are float32; the sum is the logit to rounding, 1e-4 for logits
    of a few tens, less with model.compute_dtype = "bfloat16". Raises ValueError for ids that are none,
    and rows of fewer than two tokens or more than n_ctx + 1.
    """
    tokens = jnp.asarray(tokens)
    seen = Activations(params, tokens[:, :-1], config, ("result", "mlp_out", "resid_post"))
    return attribution(seen, tokens[:, 1:])


def attribution(seen: Activations, targets: Int[Array, "B P"]) -> LogitAttribution:
    """The same of a model that has run on all tokens but the last ones."""
    params, config = seen.params, seen.config
    W_U, b_U, ln_final_w = unembedding_DV(params), params.get("b_U"), params.get("ln_final_w")
    # [B, P, D]: the direction that raises the true token over the mean.
    direction = jnp.moveaxis((W_U - jnp.mean(W_U, axis=1, keepdims=True))[:, targets], 0, -1)

    def to_logit(terms: Array) -> Array:
        """[terms, B, P, D] -> [B, P, terms], but for the final norm's scale, known after the last layer."""
        seen_terms = frozen_norm(terms.astype(jnp.float32), jnp.ones(targets.shape), ln_final_w, config)
        return jnp.einsum("...BPD,BPD->BP...", seen_terms, direction)

    def of_layer(found: dict[str, Array], layer: Params) -> dict[str, Array]:
        result, added = head_results(found["result"], layer, config)
        terms = {"heads": to_logit(jnp.moveaxis(result, 2, 0))}
        if added is not None:
            terms["biases"] = to_logit(added)
        if config.d_mlp:
            terms["mlps"] = to_logit(found["mlp_out"])
        return terms

    embed = embedding(params, seen.tokens, config)
    names = ("result", "mlp_out") if config.d_mlp else ("result",)
    terms = seen.each_layer(names, of_layer) if config.n_layers else {}
    last = seen.last_resid if config.n_layers else embed
    scale_BP = norm_scale(last.astype(jnp.float32), config)
    b_U_BP = jnp.zeros(targets.shape) if b_U is None else (b_U - jnp.mean(b_U))[targets]
    heads_NBPH = terms.get("heads", jnp.zeros((0, *targets.shape, config.n_heads)))
    mlps_NBP = terms.get("mlps", jnp.zeros((config.n_layers, *targets.shape)))
    biases_NBP = terms.get("biases", jnp.zeros((0, *targets.shape)))
    chunk, final = resolve(config).loss_chunk, normalise(last, ln_final_w, config)
    return LogitAttribution(
        logit=scale_BP * to_logit(last) + b_U_BP,
        embedding=scale_BP * to_logit(embed),
        heads=jnp.moveaxis(heads_NBPH, 0, 2) * scale_BP[..., None, None],
        mlps=jnp.moveaxis(mlps_NBP, 0, 2) * scale_BP[..., None],
        biases=jnp.sum(biases_NBP, axis=0) * scale_BP + b_U_BP,
        loss_nats=token_loss(final, W_U.astype(final.dtype), targets, chunk, b_U, config.logit_soft_cap),
    )
