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

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.maths.activations import Activations, AnyParams
from icl_jax.maths.frozen_run import embedding, frozen_norm, head_results, norm_scale
from icl_jax.model.forward import unembedding_DV
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
    params, config, logits = seen.params, seen.config, seen.logits
    embed = embedding(params, seen.tokens, config).astype(jnp.float32)
    last = seen["resid_post", config.n_layers - 1].astype(jnp.float32) if config.n_layers else embed
    scale_BP = norm_scale(last, config)
    W_U = unembedding_DV(params)
    # [B, P, D]: the direction that raises the true token over the mean.
    direction = jnp.moveaxis((W_U - jnp.mean(W_U, axis=1, keepdims=True))[:, targets], 0, -1)

    def to_logit(terms: Array) -> Array:
        """[terms, B, P, D] -> [B, P, terms]"""
        seen_terms = frozen_norm(terms.astype(jnp.float32), scale_BP, params.get("ln_final_w"), config)
        return jnp.einsum("...BPD,BPD->BP...", seen_terms, direction)

    embedding_logit = to_logit(embed)
    n_rows, n_predicted = targets.shape
    heads, mlps, biases = (
        jnp.zeros((n_rows, n_predicted, config.n_layers, config.n_heads)),
        jnp.zeros((n_rows, n_predicted, config.n_layers)),
        jnp.zeros((n_rows, n_predicted)),
    )
    if config.n_layers:
        layers = range(config.n_layers)
        results, added = zip(*(head_results(seen, layer) for layer in layers), strict=True)
        heads = jnp.stack([to_logit(jnp.moveaxis(result, 2, 0)) for result in results], axis=2)
        if "b_O" in params:
            biases = to_logit(sum(added, jnp.zeros(embed.shape)))
        if config.d_mlp:
            mlps = to_logit(jnp.stack([seen["mlp_out", layer] for layer in layers]))
    if "b_U" in params:
        biases = biases + (params["b_U"] - jnp.mean(params["b_U"]))[targets]
    true_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    centred_logit = true_logit - jnp.mean(logits, axis=-1)
    if config.logit_soft_cap:
        centred_logit = embedding_logit + jnp.sum(heads, (-2, -1)) + jnp.sum(mlps, -1) + biases
    return LogitAttribution(
        logit=centred_logit,
        embedding=embedding_logit,
        heads=heads,
        mlps=mlps,
        biases=biases,
        loss_nats=jax.nn.logsumexp(logits, axis=-1) - true_logit,
    )
