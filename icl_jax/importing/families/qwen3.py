"""Qwen 3: queries and keys of each head are normalised."""

from typing import Any

from icl_jax.config import ModelConfig
from icl_jax.importing.families.common import (
    DECODER,
    LLAMA_PARTS,
    ROTARY_TABLES,
    decoder,
    decoder_of,
    has_attention_biases,
    windows,
    windows_of,
    yarn_amplitude,
)
from icl_jax.importing.families.family import Family, Fields, Options, Part


def model(options: Options) -> Fields:
    found = decoder(options)
    return found | windows(options, found["n_layers"]) | {"qk_norm": "head"}


def config(model: ModelConfig) -> dict[str, Any]:
    return decoder_of(model) | windows_of(model) | {"attention_bias": has_attention_biases(model)}


FAMILY = Family(
    name="qwen3",
    model_types=("qwen3",),
    defaults=DECODER | {"use_sliding_window": False, "max_window_layers": 28, "sliding_window": 4096, "head_dim": 128},
    model=model,
    parts=LLAMA_PARTS
    | {
        "q_norm_w": Part(name="layers.{}.self_attn.q_norm.weight"),
        "k_norm_w": Part(name="layers.{}.self_attn.k_norm.weight"),
    },
    folds=(yarn_amplitude,),
    prefixes=("model.",),
    left_out=ROTARY_TABLES,
    config=config,
    architecture="Qwen3ForCausalLM",
)
