"""One snapshot as measurements see it: what its model computes on the run's rows, once for all of them.

Everything is made at the first question, while one program for all wanted measurements is traced; what none of them
reads is not in it.
"""

from collections.abc import Container
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.maths.activations import Activations, AnyParams, as_jax
from icl_jax.maths.head_scores import previous_token
from icl_jax.measures.map_rows import map_rows
from icl_jax.model.execution import resolve
from icl_jax.model.forward import ACTIVATIONS, final_resid, unembedding_DV
from icl_jax.model.loss import token_loss_and_rank
from icl_jax.model.params import Params
from icl_jax.model.tokens import takes_rows


class Snapshot:
    """Parameters of one snapshot, rows of the run (see `Context.arrays`), and what the model makes of them.

    `names`: the activations that can be asked for.
    """

    def __init__(
        self,
        params: AnyParams,
        rows: dict[str, jax.Array],
        config: ModelConfig,
        names: Container[str] = ACTIVATIONS,
    ) -> None:
        self.params, self.rows, self.config = as_jax(params), rows, config
        self._names = names

    @cached_property
    def repeated(self) -> Activations:
        """On BOS and a block of random tokens four times."""
        return self._seen("repeated")

    @cached_property
    def repeated_once(self) -> Activations:
        """On BOS and a block of random tokens twice."""
        return self._seen("repeated_once")

    @cached_property
    def natural(self) -> Activations:
        """On up to 10 held-out rows, cut at 512 tokens."""
        return self._seen("natural")

    @cached_property
    def attention_on_text(self) -> dict[str, Float[Array, "N H"]]:
        """Mean attention of every head, on `natural`, to the token before, to the query itself and to position 0."""

        def of_layer(seen: dict[str, jax.Array], _params: Params) -> dict[str, jax.Array]:
            pattern = seen["pattern"]
            return {
                "previous_token": previous_token(pattern),
                "current_token": jnp.mean(jnp.diagonal(pattern, axis1=-2, axis2=-1)[..., 1:], axis=(0, 2)),
                "first_token": jnp.mean(pattern[..., 1:, 0], axis=(0, 2)),
            }

        scores: dict[str, jax.Array] = self.natural.each_layer(("pattern",), of_layer)
        return scores

    def _seen(self, rows: str) -> Activations:
        return Activations(self.params, self.rows[rows], self.config, self._names)

    @cached_property
    def _predictions(self) -> tuple[jax.Array, jax.Array]:
        return predictions(self.params, self.rows["held_out"], self.config)

    @property
    def loss(self) -> Float[Array, "B T"]:
        """Of every held-out token but the first of each row, nats."""
        return self._predictions[0]

    @property
    def rank(self) -> Float[Array, "B T"]:
        """Of the same tokens: 1 is the likeliest, ties count half."""
        return self._predictions[1]


@takes_rows
def predictions(
    params: AnyParams, rows: Int[Array, "B tokens"] | np.ndarray, config: ModelConfig
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Loss (nats) and rank of every token of each row but its first. Rank 1 is the likeliest; ties count half."""
    params = as_jax(params)
    chunk = resolve(config).loss_chunk

    def some_rows(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_BTD = final_resid(params, rows[:, :-1], config)
        W_U = unembedding_DV(params).astype(x_BTD.dtype)
        return token_loss_and_rank(x_BTD, W_U, rows[:, 1:], chunk, params.get("b_U"), config.logit_soft_cap)

    return map_rows(some_rows, rows)
