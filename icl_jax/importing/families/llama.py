"""Llama 1 to 3.2, and whatever is saved as one: SmolLM, SmolLM2, TinyLlama, Amber."""

from typing import Any

from icl_jax.config import ModelConfig
from icl_jax.importing.families.common import (
    DECODER,
    LLAMA_PARTS,
    ROTARY_TABLES,
    decoder,
    decoder_of,
    has_attention_biases,
    has_mlp_biases,
    yarn_amplitude,
)
from icl_jax.importing.families.family import Family


def config(model: ModelConfig) -> dict[str, Any]:
    return decoder_of(model) | {"attention_bias": has_attention_biases(model), "mlp_bias": has_mlp_biases(model)}


FAMILY = Family(
    name="llama",
    model_types=("llama",),
    defaults=DECODER,
    model=decoder,
    parts=LLAMA_PARTS,
    folds=(yarn_amplitude,),
    prefixes=("model.",),
    left_out=ROTARY_TABLES,
    config=config,
    architecture="LlamaForCausalLM",
)
