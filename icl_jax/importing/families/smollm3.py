"""SmolLM 3: Llama without rotary embeddings in every fourth layer."""

from icl_jax.importing.families.common import DECODER, LLAMA_PARTS, ROTARY_TABLES, decoder, windows, yarn_amplitude
from icl_jax.importing.families.family import Family, Fields, Options, Series


def model(options: Options) -> Fields:
    found = decoder(options)
    n, every = found["n_layers"], options.number("no_rope_layer_interval")
    is_rotary = options.get("no_rope_layers") or [(layer + 1) % every for layer in range(n)]  # 1: rotary!
    without = tuple(layer for layer, rotates in enumerate(is_rotary) if not rotates)
    return found | windows(options, n) | {"no_rotary_layers": without}


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
    series=(Series(names="SmolLM3-3B-checkpoints", tokens_per_step=2_359_296),),
)
