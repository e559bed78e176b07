"""What a model computes on rows of tokens, computed once for all who ask."""

from collections.abc import Callable, Container
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.model.execution import is_deep
from icl_jax.model.forward import ACTIVATIONS, by_layer, run_with_cache
from icl_jax.model.params import Params, layer_names
from icl_jax.model.tokens import takes_tokens

AnyParams = Params | dict[str, np.ndarray]

# The axes of positions of each activation; all others have one axis, behind the rows.
_POSITION_AXES = dict.fromkeys(("q", "k", "v", "z"), (2,)) | dict.fromkeys(("attn_scores", "pattern"), (2, 3))


def as_jax(params: AnyParams) -> Params:
    """Parameters as JAX arrays, from a snapshot's NumPy arrays or from JAX arrays, traced or not."""
    return {name: jnp.asarray(value) for name, value in params.items()}


class Activations:
    """Logits and activations of a model on some rows; in a compiled function what nobody reads falls away.

    `names`: the activations that can be asked for. Outside of a compiled function all of them are computed.
    """

    def __init__(
        self,
        params: AnyParams,
        tokens: Int[Array, "B T"] | np.ndarray,
        config: ModelConfig,
        names: Container[str] = ACTIVATIONS,
    ) -> None:
        self.params, self.tokens, self.config = as_jax(params), jnp.asarray(tokens), config
        self._names = names

    @cached_property
    def _seen(self) -> tuple[jax.Array, dict[tuple[str, int], jax.Array]]:
        return run_with_cache(self.params, self.tokens, self.config, self._names)

    @property
    def logits(self) -> Float[Array, "B T V"]:
        return self._seen[0]

    def __getitem__(self, key: tuple[str, int]) -> jax.Array:
        """The activation of this name and layer, shaped as `icl_jax.model.forward` says."""
        return self._seen[1][key]

    def of_layers(self, name: str) -> list[jax.Array]:
        """An activation of every layer."""
        return [self[name, layer] for layer in range(self.config.n_layers)]

    @cached_property
    def last_resid(self) -> Float[Array, "B T D"]:
        """The residual stream after the last layer, before the final norm; there must be a layer."""
        if is_deep(self.config):
            return by_layer(self.params, self.tokens, self.config, (), lambda _seen, _layer: ())[0]
        return self["resid_post", self.config.n_layers - 1]

    def each_layer(self, names: tuple[str, ...], fn: Callable[[dict[str, jax.Array], Params], Any]) -> Any:
        """`fn(activations of these names, parameters)` of each layer, stacked.

        In a deep model a pass of its own: a layer's activations are gone before the next layer's are there.
        """
        config = self.config
        if is_deep(config):
            self.last_resid, answers = by_layer(self.params, self.tokens, config, names, fn)
            return answers
        stacked = {name: self.params[name] for name in layer_names(config)}
        answers = [
            fn({name: self[name, layer] for name in names}, {name: value[layer] for name, value in stacked.items()})
            for layer in range(config.n_layers)
        ]
        return jax.tree.map(lambda *found: jnp.stack(found), *answers)

    def cut(self, n_rows: int, n_ctx: int) -> "Activations":
        """The same of the first rows and positions: no row sees another, no position a later one."""
        return _Cut(self, n_rows, n_ctx)


class _Cut(Activations):
    def __init__(self, whole: Activations, n_rows: int, n_ctx: int) -> None:
        super().__init__(whole.params, whole.tokens[:n_rows, :n_ctx], whole.config)
        self._whole, self._shape = whole, self.tokens.shape

    @property
    def logits(self) -> Float[Array, "B T V"]:
        return self._whole.logits[: self._shape[0], : self._shape[1]]

    def __getitem__(self, key: tuple[str, int]) -> jax.Array:
        value = self._whole[key][: self._shape[0]]
        for axis in _POSITION_AXES.get(key[0], (1,)):
            value = jax.lax.slice_in_dim(value, 0, self._shape[1], axis=axis)
        return value


@takes_tokens
def patterns(
    params: AnyParams, tokens: Int[Array, "B T"] | np.ndarray, config: ModelConfig
) -> Float[Array, "N B H T T"]:
    """Attention patterns of every layer at once; `Activations.each_layer` holds one layer's at a time."""
    return jnp.stack(Activations(params, tokens, config, ("pattern",)).of_layers("pattern"))
