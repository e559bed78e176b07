"""SmolLM 3: Llama without rotary embeddings in every fourth layer."""

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
    windows,
    windows_of,
    yarn_amplitude,
)
from icl_jax.importing.families.family import Family, Fields, Options, Series


def model(options: Options) -> Fields:
    found = decoder(options)
    n, every = found["n_layers"], options.number("no_rope_layer_interval")
    is_rotary = options.get("no_rope_layers") or [(layer + 1) % every for layer in range(n)]  # 1: rotary!
    without = tuple(layer for layer, rotates in enumerate(is_rotary) if not rotates)
    return found | windows(options, n) | {"no_rotary_layers": without}


def config(model: ModelConfig) -> dict[str, Any]:
    return decoder_of(model) | windows_of(model) | {
        "no_rope_layers": [int(layer not in model.no_rotary_layers) for layer in range(model.n_layers)],
        "attention_bias": has_attention_biases(model),
        "mlp_bias": has_mlp_biases(model),
    }  # fmt: skip


FAMILY = Family(
    name="smollm3",
    model_types=("smollm3",),
    defaults=DECODER
    | {
        "no_rope_layer_interval": 4,
        "use_sliding_window": False,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
    },
    model=model,
    parts=LLAMA_PARTS,
    folds=(yarn_amplitude,),
    prefixes=("model.",),
    left_out=ROTARY_TABLES,
    config=config,
    architecture="SmolLM3ForCausalLM",
    series=(Series(names="SmolLM3-3B-checkpoints", tokens_per_step=2_359_296),),
)
