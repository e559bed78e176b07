"""The model as a Flax module: for notebooks, and for anyone's own training loop."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig, UserError
from icl_jax.model.forward import TapFn, forward
from icl_jax.model.loss import losses
from icl_jax.model.params import Parameters
from icl_jax.rundir import RunDir


class Transformer(Parameters):
    """A transformer: `icl_jax.Transformer(icl_jax.ModelConfig(n_layers=2), rngs=nnx.Rngs(0))`.

    Its parameters are `nnx.Param`s under the names of TransformerLens, stacked over layers, with their declaration as
    metadata. Differentiable in forward and in reverse mode. float32 products take all bits on every platform.
    """

    def __call__(self, tokens: Int[Array, "B T"], *, tap: TapFn | None = None) -> Float[Array, "B T V"]:
        """Logits, float32. `tap(name, layer, value) -> value` sees and may replace activations: see `forward`."""
        return forward(self.params, tokens, self.config, tap=tap)

    def loss(self, rows: Int[Array, "B T1"], *, tap: TapFn | None = None) -> Float[Array, "B T"]:
        """-log p of rows[:, 1:] in nats, each predicted from the tokens before it; logits never exist all at once."""
        return losses(self.params, rows, self.config, tap=tap)

    @classmethod
    def from_params(cls, params: Any, config: ModelConfig) -> "Transformer":
        """A model of given arrays by name, such as a snapshot's."""
        graph, state = nnx.split(nnx.eval_shape(lambda: cls(config, nnx.Rngs(0))))
        nnx.replace_by_pure_dict(state, {name: jnp.asarray(value) for name, value in params.items()})
        model: Transformer = nnx.merge(graph, state)
        return model

    @classmethod
    def from_run(cls, run: Any, step: int | None = None) -> "Transformer":
        """The model of a run's snapshot. run: what `icl_jax.open_run` gives, a path or a bucket URL.

        step: None takes the last. Raises UserError where there is no run, no such snapshot, or a damaged one.
        """
        opened = RunDir.open(str(run if isinstance(run, str | Path) else run.path)).one()
        if step is None:
            steps = [entry.step for entry in opened.read_snapshots()]
            if not steps:
                raise UserError(f"{opened.path}: has no snapshots yet")
            step = steps[-1]
        return cls.from_params(opened.load_params(step), opened.config.model)
