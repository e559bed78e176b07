"""Qwen 2 and 2.5: Llama with biases of queries, keys and values."""

from typing import Any

from icl_jax.config import ModelConfig
from icl_jax.importing.families.common import (
    DECODER,
    LLAMA_PARTS,
    ROTARY_TABLES,
    decoder,
    decoder_of,
    windows,
    windows_of,
    yarn_amplitude,
)
from icl_jax.importing.families.family import Family, Fields, Options


def model(options: Options) -> Fields:
    found = decoder(options)
    return found | windows(options, found["n_layers"]) | {"biases": ("b_Q", "b_K", "b_V")}


def config(model: ModelConfig) -> dict[str, Any]:
    return decoder_of(model) | windows_of(model)


FAMILY = Family(
    name="qwen2",
    model_types=("qwen2",),
    defaults=DECODER | {"use_sliding_window": False, "max_window_layers": 28, "sliding_window": 4096},
    model=model,
    parts=LLAMA_PARTS,
    folds=(yarn_amplitude,),
    prefixes=("model.",),
    left_out=ROTARY_TABLES,
    config=config,
    architecture="Qwen2ForCausalLM",
)
