"""OLMo 2 and 3: norms on what each block gives, and over all queries and all keys; OLMo 3 has windows."""

from typing import Any

from icl_jax.config import ModelConfig, UserError
from icl_jax.importing.families.common import (
    ATTENTION,
    DECODER,
    ENDS,
    GATED_MLP,
    ROTARY_TABLES,
    decoder,
    decoder_of,
    has_attention_biases,
    rotary_of,
    windows,
)
from icl_jax.importing.families.family import Family, Fields, Options, Part
from icl_jax.importing.families.layouts import head_vectors


def model(options: Options) -> Fields:
    of_types = options.get("rope_parameters") or {}
    if "full_attention" not in of_types:
        return _fields(decoder(options), options)
    return _fields(decoder(options.replaced(rope_parameters=of_types["full_attention"])), options) | _of_window(options)


def _fields(found: Fields, options: Options) -> Fields:
    return found | windows(options, found["n_layers"]) | {"norm_position": "post", "qk_norm": "all"}


def _of_window(options: Options) -> Fields:
    given = options.get("rope_parameters").get("sliding_attention") or {}
    fields = rotary_of(given, options, 2)
    if "rotary_scaling" in fields:
        raise UserError(f"{options.where}: rope_parameters.sliding_attention = {given!r}: must be of the type default")
    return {"window_rotary_base": fields["rotary_base"]}


def config(model: ModelConfig) -> dict[str, Any]:
    """Of OLMo 2, which has no windows."""
    return decoder_of(model) | {"attention_bias": has_attention_biases(model)}


FAMILY = Family(
    name="olmo2",
    model_types=("olmo2", "olmo3"),
    defaults=DECODER | {"rms_norm_eps": 1e-5, "rope_theta": 500_000.0},
    model=model,
    parts=ENDS | ATTENTION | GATED_MLP | {
        "ln1_post_w": Part(name="layers.{}.post_attention_layernorm.weight"),
        "ln2_post_w": Part(name="layers.{}.post_feedforward_layernorm.weight"),
        "q_norm_w": Part(name="layers.{}.self_attn.q_norm.weight", layout=head_vectors),
        "k_norm_w": Part(name="layers.{}.self_attn.k_norm.weight", layout=head_vectors),
    },
    prefixes=("model.",),
    left_out=ROTARY_TABLES,
    config=config,
    architecture="Olmo2ForCausalLM",
)  # fmt: skip
