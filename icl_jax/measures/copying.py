"""Copying: does a head raise the tokens that it attends to?

Two forms. The eigenvalue form reads it off the weights: a head whose OV circuit has positive eigenvalues raises, for
mixtures of tokens, what it attends to. The logit form asks on 25 random tokens how much of what the head raises is the
token attended to. Norm weights are folded in, W_U is centred over the vocabulary. The eigenvalue form leaves biases
out; the logit form has b_V, which is written whatever is attended to. A norm of what is written is taken at scale 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.maths.activations import Activations
from icl_jax.maths.factored_matrix import FactoredMatrix, eigenvalue_sum_ratio
from icl_jax.maths.frozen_run import centred
from icl_jax.measures import head_scores
from icl_jax.measures.circuits import Weights, centred_unembedding, fold_norms, without_mlps
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable
from icl_jax.measures.snapshot import Snapshot
from icl_jax.model.forward import unembedding_DV
from icl_jax.model.params import Params
from icl_jax.model.tokens import takes_tokens

# Source tokens that the share of top-1 copying is taken over, at most: V by V for every head is costly.
_MAX_TOP1_TOKENS = 1024
_BLOCK = 256


def copying_eigenvalue(circuit: FactoredMatrix) -> Float[np.ndarray, "..."]:
    """Sum of the real parts of the OV circuit's eigenvalues over the sum of their absolute values.

    Range [-1, 1]; 1 for a head that copies every token. A random head scores 0 with a standard deviation of about
    1.6 / d_head, a little less where d_model is much larger: 0.10 (d_head 16), 0.05 (32), 0.025 (64). A circuit that
    has no eigenvalue but zero, such as one that moves tokens out of the unembedding's sight, scores 0.
    Source: Elhage et al. 2021, "Detecting copying behavior". Departure: with MLPs, too, W_E is taken as it is.
    """
    return eigenvalue_sum_ratio(circuit.eigenvalues())


def copying_top1(circuit: FactoredMatrix, tokens: Int[np.ndarray, " R"]) -> Float[np.ndarray, "..."]:
    """Share of `tokens` whose own logit is what attending to them raises most. Range [0, 1]; chance is 1/V.

    Source: Elhage et al. 2021, "Detecting copying behavior", among the alternatives. Computed in float32.
    """
    leading = circuit.shape[:-2]
    A = np.broadcast_to(circuit.A, (*leading, *circuit.A.shape[-2:]))
    B = np.broadcast_to(circuit.B, (*leading, *circuit.B.shape[-2:]))
    return _top1(
        np.stack([A[index][tokens] for index in np.ndindex(leading)]), B.reshape(-1, *B.shape[-2:]), tokens
    ).reshape(leading)


def _top1(
    values_PRE: Float[np.ndarray, "P R E"], out_PEV: Float[np.ndarray, "P E V"], tokens: Int[np.ndarray, " R"]
) -> Float[np.ndarray, " P"]:
    """Of each head, the share of tokens, whose values those are, that raise their own logit most."""
    share = np.zeros(len(values_PRE))
    # One buffer for all: memory fresh from the system costs more than the products.
    logits = np.empty((min(_BLOCK, len(tokens)), out_PEV.shape[-1]), np.float32)
    for i, (values, out) in enumerate(zip(values_PRE, out_PEV, strict=True)):
        values, out = values.astype(np.float32), out.astype(np.float32)
        n_own = 0
        for start in range(0, len(tokens), _BLOCK):
            block = slice(start, start + _BLOCK)
            product = np.matmul(values[block], out, out=logits[: len(values[block])])
            n_own += int(np.count_nonzero(np.argmax(product, axis=-1) == tokens[block]))
        share[i] = n_own / len(tokens)
    return share


class LogitCopying(NamedTuple):
    """Parts of the logit form; averages over the sequences' tokens."""

    ratio: Array
    """Share of what is raised that falls on the token attended to; [0, 1]."""
    paper_range: Array
    """``4 a / (a + S) - 1``, [-1, 1]: a is what the token attended to gains and S what all of the sample gain."""
    n_undefined: Array
    """Positions where nothing is raised; they count as ratio 0."""


def logit_copying(logits: Float[Array, "... K R"], attended: Int[Array, "... K"]) -> LogitCopying:
    """How much of what is raised among the R sampled tokens falls on the one attended to; averaged over K.

    logits[k, r]: what position k adds to the r-th sampled token; attended[k] is the r of the token attended to. Each
    row is centred over the sample, then cut at 0. Random logits of 25 tokens: ratio 0.040 (2 ratio - 1 = -0.92);
    perfect copying: ratio 1.
    Source: Olsson et al. 2022, appendix "Head activation evaluators" (copying); the paper's formula is not disclosed in
    full: "from 0 (only raises other tokens) to 0.5, so we scale it" fits ``a / (a + S)``, which is `paper_range`.
    """
    raised = jax.nn.relu(logits - jnp.mean(logits, axis=-1, keepdims=True))
    total = jnp.sum(raised, axis=-1)
    own = jnp.take_along_axis(raised, attended[..., None], axis=-1)[..., 0]
    is_defined = total > 0
    safe = jnp.where(is_defined, total, 1.0)
    ratio = jnp.where(is_defined, own / safe, 0.0)
    paper = 4 * jnp.where(is_defined, own / (own + safe), 0.0) - 1
    return LogitCopying(jnp.mean(ratio, -1), jnp.mean(paper, -1), jnp.sum(~is_defined, -1))


@takes_tokens
def copying_on_random_tokens(
    params: Params, tokens: Int[Array, "B T"], config: ModelConfig
) -> dict[str, Float[Array, "N H"]]:
    """The logit form on rows of BOS and distinct random tokens, for every head.

    ``source``: the value at each position through W_O and W_U, whatever the pattern. ``output``: the head's actual
    output at each query, against the token that it attends to most (BOS, where heads rest, aside; the first query sees
    itself alone and is left out). Both as 2 ratio - 1, `source` in the paper's range as well.
    ``undefined``, ``output_undefined``: positions, over all rows, where either raises nothing.
    Frozen final norm: its scale cancels, its weight and LayerNorm's centring are applied.
    """
    return _copying(Activations(params, tokens, config, ("v", "result", "pattern")))


def _copying(seen: Activations) -> dict[str, Float[Array, "N H"]]:
    params, tokens, config = seen.params, seen.tokens, seen.config
    W_U = unembedding_DV(params)
    if "ln_final_w" in params:
        W_U = params["ln_final_w"][:, None] * W_U
    if config.norm == "layernorm":
        W_U = W_U - jnp.mean(W_U, axis=0, keepdims=True)
    # [row, D, sampled token]
    W_U_BDR = jnp.moveaxis(W_U[:, tokens[:, 1:]], 1, 0)
    n_sampled = tokens.shape[1] - 1
    itself_11K = jnp.arange(n_sampled)[None, None]

    def of_layer(seen: dict[str, Array], layer: Params) -> dict[str, Array]:
        value_BHKD = jnp.einsum("BHKE,HED->BHKD", seen["v"][:, :, 1:], layer["W_O"])
        result_BQHD = seen["result"]
        if "ln1_post_w" in layer:
            weight_111D = layer["ln1_post_w"][None, None, None]
            value_BHKD, result_BQHD = (centred(x, config) * weight_111D for x in (value_BHKD, result_BQHD))
        logits_BHKR = jnp.einsum("BHKD,BDR->BHKR", value_BHKD, W_U_BDR)
        source = logit_copying(logits_BHKR, jnp.broadcast_to(itself_11K, logits_BHKR.shape[:-1]))
        logits_BHQR = jnp.einsum("BQHD,BDR->BHQR", result_BQHD[:, 2:], W_U_BDR)
        output = logit_copying(logits_BHQR, jnp.argmax(seen["pattern"][:, :, 2:, 1:], axis=-1))
        return {
            "source": 2 * jnp.mean(source.ratio, 0) - 1,
            "source_paper": jnp.mean(source.paper_range, 0),
            "output": 2 * jnp.mean(output.ratio, 0) - 1,
            "undefined": jnp.sum(source.n_undefined, 0),
            "output_undefined": jnp.sum(output.n_undefined, 0),
        }

    found: dict[str, Array] = seen.each_layer(("v", "result", "pattern"), of_layer)
    return found


def look(at: Snapshot) -> dict[str, Array]:
    n_rows, n_tokens = at.repeated.tokens.shape
    return _copying(at.repeated.cut(n_rows, 1 + (n_tokens - 1) // 4))


def finish(context: Context, params: StackedParams, seen: Arrays) -> Arrays:
    config = context.config.model
    weights = fold_norms(without_mlps(params), config)
    # The token and the logit meet in one D by D matrix, whatever the vocabulary: eigenvalues need no more.
    W_U = centred_unembedding(weights)
    from_logits = (W_U @ weights["W_E"])[:, None, None]
    eigen = FactoredMatrix(weights["W_O"] @ from_logits, weights["W_V"])
    tokens = np.arange(config.vocab_size, dtype=np.int64)
    if len(tokens) > _MAX_TOP1_TOKENS:
        tokens = np.sort(np.random.default_rng(context.seed).choice(tokens, _MAX_TOP1_TOKENS, replace=False))
    return {
        "copying_eigenvalue": copying_eigenvalue(eigen),
        "copying_top1": _top1_by_layer(weights, W_U, tokens),
        "copying_logit": seen["source"],
        "copying_logit_paper_range": seen["source_paper"],
        "copying_logit_output": seen["output"],
        "copying_logit_undefined": seen["undefined"],
        "copying_logit_output_undefined": seen["output_undefined"],
    }


def _top1_by_layer(weights: Weights, W_U: np.ndarray, tokens: Int[np.ndarray, " R"]) -> Float[np.ndarray, "S N H"]:
    """`copying_top1` of every head, a layer at a time: products with a vocabulary of 50,000 are large."""
    share = np.empty(weights["W_O"].shape[:3])
    for s, layer in np.ndindex(share.shape[:2]):
        share[s, layer] = _top1(
            weights["W_E"][s, tokens] @ weights["W_V"][s, layer], weights["W_O"][s, layer] @ W_U[s], tokens
        )
    return share


_HEAD = ("layer", "head")

MEASUREMENT = Measurement(
    name="copying",
    source="Elhage et al. 2021, Detecting copying behavior; Olsson et al. 2022, Head activation evaluators",
    variables={
        "copying_eigenvalue": Variable(
            _HEAD, "1", "sum of the OV circuit's eigenvalues over that of their sizes; [-1, 1]"
        ),
        "copying_top1": Variable(_HEAD, "1", "share of tokens that raise their own logit most; [0, 1], chance 1/V"),
        "copying_logit": Variable(
            _HEAD, "1", "twice the share of what a token raises among random tokens that falls on itself, less 1; "
            "[-1, 1], random -0.92 for 25 tokens",
        ),
        "copying_logit_paper_range": Variable(_HEAD, "1", "the same as 4a/(a + S) - 1; [-1, 1], random -0.86"),
        "copying_logit_output": Variable(
            _HEAD, "1", "copying_logit of the head's output, against the token that it attends to most; [-1, 1]"
        ),
        "copying_logit_undefined": Variable(
            _HEAD, "1", "positions at which a token raised nothing, counted as share 0 in copying_logit"
        ),
        "copying_logit_output_undefined": Variable(
            _HEAD, "1", "positions at which the head's output raised nothing, so counted in copying_logit_output"
        ),
    },
    look=look,
    finish=finish,
    why_not=head_scores.why_not,  # on a block of the same random tokens
)  # fmt: skip
