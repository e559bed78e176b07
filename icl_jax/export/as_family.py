"""A model as a family of `transformers` holds it: the way back of `icl_jax.importing`.

No rule says which class is exact for which options: a family's config.json is written, and read as an import would
read it. Where that gives the same architecture, the class is exact.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from icl_jax.config import ModelConfig, UserError
from icl_jax.importing.families import own
from icl_jax.importing.families.family import Arrays, Family
from icl_jax.importing.families.table import TABLE
from icl_jax.importing.map_weights import read_config
from icl_jax.model.params import param_shapes

# Of training, and of how the same is computed.
_NOT_OF_THE_MODEL = ("init_std", "compute_dtype", "attention", "loss_chunk")
_UNEMBEDDING = ("W_U", "b_U")


@dataclass(frozen=True)
class Form:
    """A family that is exact for a model."""

    family: Family
    config: dict[str, Any]
    """config.json."""
    model: ModelConfig
    """As it will be imported again: perhaps with more biases, which are zero."""

    @property
    def is_own(self) -> bool:
        """Whether it needs our modelling file."""
        return self.family is own.FAMILY

    def tensors(self, params: Arrays) -> dict[str, np.ndarray]:
        """Names and float32 arrays of model.safetensors; numbers are moved and not changed."""
        found: dict[str, np.ndarray] = {}
        shapes = param_shapes(self.model)
        for name, part in self.family.parts.items():
            if name.endswith("_b_"):  # of a norm: ours have none
                shape: tuple[int, ...] = (self.model.d_model,)
                layers = [np.zeros(shape, np.float32)] * (self.model.n_layers if "{}" in part.name else 1)
            elif name not in shapes:
                continue
            else:
                array = np.asarray(params[name]) if name in params else np.zeros(shapes[name], np.float32)
                layers = list(array) if "{}" in part.name else [array]
                shape = layers[0].shape if part.layout is None else part.layout.shape(layers[0].shape)
            prefix = "" if name in _UNEMBEDDING or not self.family.prefixes else self.family.prefixes[0]
            for layer, ours in enumerate(layers):
                tensor = found.setdefault(prefix + part.name.format(layer), np.zeros(shape, np.float32))
                if part.layout is None:
                    tensor[...] = ours
                else:
                    part.layout.write(ours, tensor, self.model)
        return found


def form_of(model: ModelConfig) -> Form:
    """The class of `transformers` that adds the fewest biases (of zero), of such the first in the table; else ours."""
    standard = [form for family in TABLE if family is not own.FAMILY for form in _exact(family, model)]
    return min(standard, key=lambda form: len(form.model.biases), default=None) or next(_exact(own.FAMILY, model))


def _exact(family: Family, model: ModelConfig) -> Iterator[Form]:
    """The model in this family, where it holds it."""
    # Their classes divide the width by the heads, even where heads have a width of their own.
    is_even = model.d_model % model.n_heads == 0 and model.n_layers > 0
    if family.config is None or not (is_even or family is own.FAMILY):
        return
    config = {"architectures": [family.architecture], "model_type": family.model_types[0]} | family.config(model)
    try:
        _, found, _ = read_config(config, family.name, model.n_ctx)
    except UserError:  # a value that it has no word for
        return
    has_place = all(name in found.biases and name in family.parts for name in model.biases)
    if has_place and _plain(found) == _plain(model):
        yield Form(family, config, found)


def _plain(model: ModelConfig) -> ModelConfig:
    """With what changes nothing as it is by default, and what can be left to other fields said. Biases are left out."""
    defaults = {field.name: field.default for field in fields(ModelConfig)}
    unused = [*_NOT_OF_THE_MODEL]
    if not model.has_position_embedding:
        unused.append("position_embedding")
    if model.rotary_scaling in ("none", "linear"):
        unused += ["rotary_original_ctx", "rotary_low_turns", "rotary_high_turns"]
    if not model.d_mlp:
        unused.append("activation")
    if model.window >= model.n_ctx and not model.window_rotary_base:
        unused += ["window", "window_layers"]
    plain: dict[str, Any] = {
        "biases": (),
        "d_head": model.head_width,
        "n_kv_heads": model.key_heads,
        "rotary_dim": 0 if model.rotary_dim == model.head_width else model.rotary_dim,
        "window_layers": () if len(model.window_layers) == model.n_layers else model.window_layers,
    }
    return replace(model, **plain | {name: defaults[name] for name in unused})
