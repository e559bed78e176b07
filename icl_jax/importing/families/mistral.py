"""Mistral 7B and its like: Llama with a window."""

from icl_jax.importing.families.common import DECODER, LLAMA_PARTS, ROTARY_TABLES, decoder, windows, yarn_amplitude
from icl_jax.importing.families.family import Family, Fields, Options


def model(options: Options) -> Fields:
    found = decoder(options)
    return found | windows(options, found["n_layers"])


FAMILY = Family(
    name="mistral",
    model_types=("mistral",),
    defaults=DECODER | {"sliding_window": 4096, "num_key_value_heads": 8},
    model=model,
    parts=LLAMA_PARTS,
    folds=(yarn_amplitude,),
    prefixes=("model.",),
    left_out=ROTARY_TABLES,
)
