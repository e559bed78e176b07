"""Mistral 7B and its like: Llama with a window."""

from typing import Any

from icl_jax.config import ModelConfig
from icl_jax.importing.families.common import (
    DECODER,
    LLAMA_PARTS,
    ROTARY_TABLES,
    decoder,
    decoder_of,
    windows,
    yarn_amplitude,
)
from icl_jax.importing.families.family import Family, Fields, Options


def model(options: Options) -> Fields:
    found = decoder(options)
    return found | windows(options, found["n_layers"])


def config(model: ModelConfig) -> dict[str, Any]:
    # A window in all layers or none: it has no others.
    return decoder_of(model) | {"sliding_window": model.window if not model.window_layers else None}


FAMILY = Family(
    name="mistral",
    model_types=("mistral",),
    defaults=DECODER | {"sliding_window": 4096, "num_key_value_heads": 8},
    model=model,
    parts=LLAMA_PARTS,
    folds=(yarn_amplitude,),
    prefixes=("model.",),
    left_out=ROTARY_TABLES,
    config=config,
    architecture="MistralForCausalLM",
)
