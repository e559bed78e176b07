"""Forward passes that begin at a layer and replace something there: what patching is made of."""

from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from icl_jax.config import ModelConfig, UserError
from icl_jax.maths.frozen_run import embedding
from icl_jax.measures.token_pairs import PairArrays
from icl_jax.model.execution import is_deep
from icl_jax.model.forward import layer_fn
from icl_jax.model.params import Params

# Tokens of a pass: of several rows, and with short ones of several patches side by side.
TOKENS_AT_A_TIME = 4096

Head = tuple[Any, Any]
"""Layer and head: numbers, or traced where layers are alike."""


class Passes:
    """Passes of one model over rows of one length."""

    def __init__(self, params: Params, config: ModelConfig, n_ctx: int) -> None:
        self._params, self._config = params, config
        self.layer = layer_fn(params, n_ctx, config)
        self.n_layers = config.n_layers
        self.are_alike = config.layers_are_alike
        """Then one program serves all layers, by their traced number."""

    def intact(self, tokens: Int[Array, "B T"], names: Container[str]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The residual stream after the last layer; activations of these names, the layer in front."""

        def one(resid: jax.Array, index: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            seen: dict[str, jax.Array] = {}
            return self.layer(resid, index, partial(_keep, seen), names), seen

        return self.scan(one, embedding(self._params, tokens, self._config))

    def scan(self, step: Callable[[jax.Array, Any], tuple[jax.Array, Any]], resid: jax.Array) -> tuple[jax.Array, Any]:
        """`step(resid, index)` -> resid and an answer, over all layers; the last stream, and the answers stacked."""
        if self.are_alike:
            return jax.lax.scan(step, resid, jnp.arange(self.n_layers))
        answers = []
        for index in range(self.n_layers):
            resid, answer = step(resid, index)
            answers.append(answer)
        return resid, jax.tree.map(lambda *values: jnp.stack(values), *answers)

    def behind(self, resid: jax.Array, first: Any) -> jax.Array:
        """The residual stream after the last layer, from what enters the layer `first`."""
        if isinstance(first, int):
            for index in range(first, self.n_layers):
                resid = self.layer(resid, index)
            return resid
        return jax.lax.fori_loop(first, self.n_layers, lambda index, x: self.layer(x, index), resid)

    def seen_at(self, resid: jax.Array, index: Any, names: tuple[str, ...]) -> dict[str, jax.Array]:
        """Activations of these names in a layer that reads `resid`."""
        seen: dict[str, jax.Array] = {}
        self.layer(resid, index, partial(_keep, seen), names)
        return seen

    def map_layers(self, fn: Callable[[Any], jax.Array], layers: Sequence[int]) -> jax.Array:
        """`fn(layer)` of each, stacked."""
        if self.are_alike:
            return jax.lax.map(fn, jnp.asarray(layers))
        return jnp.stack([fn(layer) for layer in layers])

    def map_heads(self, fn: Callable[[Any, Any], jax.Array], heads: Sequence[tuple[int, int]]) -> jax.Array:
        """`fn(layer, head)` of each, stacked; the head is traced."""
        if self.are_alike:
            return jax.lax.map(lambda pair: fn(pair[0], pair[1]), jnp.asarray(heads, jnp.int32))
        found: list[Any] = [None] * len(heads)
        for layer in sorted({layer for layer, _ in heads}):
            here = [i for i, head in enumerate(heads) if head[0] == layer]
            ids = jnp.asarray([heads[i][1] for i in here], jnp.int32)
            values = jax.lax.map(lambda head, layer=layer: fn(layer, head), ids)
            for i, value in zip(here, values, strict=True):
                found[i] = value
        return jnp.stack(found)

    def if_later(self, layer: Any, than: Any, fn: Callable[[], jax.Array]) -> jax.Array:
        """`fn()` where `layer` is later, else NaN, without computing it."""
        if isinstance(layer, int) and isinstance(than, int):
            return fn() if layer > than else _nothing(jax.eval_shape(fn))
        return jax.lax.cond(layer > than, fn, lambda: _nothing(jax.eval_shape(fn)))

    def gradients(
        self, tokens: Int[Array, "B T"], names: tuple[str, ...], of_resid: Callable[[jax.Array], jax.Array]
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Activations of these names in the intact model, the layer in front, and the gradient of each row's metric."""
        _, values = self.intact(tokens, names)

        def one(resid: jax.Array, args: tuple[Any, dict[str, jax.Array]]) -> tuple[jax.Array, None]:
            index, added = args
            return self.layer(resid, index, lambda name, _index, value: value + added[name], names), None

        each = jax.checkpoint(one) if is_deep(self._config) else one

        def total(added: dict[str, jax.Array]) -> jax.Array:
            resid = embedding(self._params, tokens, self._config)
            if self.are_alike:
                resid, _ = jax.lax.scan(each, resid, (jnp.arange(self.n_layers), added))
            else:
                for index in range(self.n_layers):
                    resid, _ = one(resid, (index, {name: value[index] for name, value in added.items()}))
            return jnp.sum(of_resid(resid))

        return values, jax.grad(total)(jax.tree.map(jnp.zeros_like, values))


def _keep(seen: dict[str, jax.Array], name: str, _index: Any, value: jax.Array) -> jax.Array:
    seen[name] = value
    return value


def _nothing(like: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.full(like.shape, jnp.nan, like.dtype)


def by_rows(fn: Callable[[PairArrays], Any], pairs: PairArrays, most: int | None = None) -> Any:
    """`fn(some rows)` -> arrays with the row last, of all rows: some 4,096 tokens at a time, or at most `most`."""
    n_rows, n_ctx = pairs.clean.shape
    n_each = max(1, min(n_rows, min(TOKENS_AT_A_TIME, most or TOKENS_AT_A_TIME) // n_ctx))
    # Filled up with the first rows again; what they give is cut off.
    order = np.arange(n_rows + -n_rows % n_each) % n_rows
    groups = jax.tree.map(lambda array: jnp.asarray(array)[order].reshape(-1, n_each, *array.shape[1:]), pairs)

    def rows_last(found: jax.Array) -> jax.Array:
        last = jnp.moveaxis(found, 0, -2)
        return last.reshape(*last.shape[:-2], -1)[..., :n_rows]

    return jax.tree.map(rows_last, jax.lax.map(fn, groups))


def patches_at_a_time(pairs: PairArrays) -> int:
    """How many patches of these rows go through the model side by side."""
    return max(1, TOKENS_AT_A_TIME // pairs.clean.size)


def check_heads(heads: Sequence[tuple[int, int]] | None, name: str, config: ModelConfig) -> list[tuple[int, int]]:
    """Heads as (layer, head), all of them for None. Raises UserError for none and for one that is not there."""
    if not config.n_layers:
        raise UserError("model.n_layers = 0: there is nothing to patch")
    if heads is None:
        return [(layer, head) for layer in range(config.n_layers) for head in range(config.n_heads)]
    found = [(int(layer), int(head)) for layer, head in heads]
    if not found:
        raise UserError(f"{name} = []: must name a head or more, such as [(0, 1)]")
    for layer, head in found:
        if not (0 <= layer < config.n_layers and 0 <= head < config.n_heads):
            allowed = f"heads are (0, 0) to ({config.n_layers - 1}, {config.n_heads - 1}), (layer, head)"
            raise UserError(f"{name} has ({layer}, {head}): {allowed}")
    return found
