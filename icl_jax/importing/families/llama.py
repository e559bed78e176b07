"""Llama 1 to 3.2, and whatever is saved as one: SmolLM, SmolLM2, TinyLlama, Amber."""

from icl_jax.importing.families.common import DECODER, LLAMA_PARTS, ROTARY_TABLES, decoder, yarn_amplitude
from icl_jax.importing.families.family import Family, Series

FAMILY = Family(
    name="llama",
    model_types=("llama",),
    defaults=DECODER,
    model=decoder,
    parts=LLAMA_PARTS,
    folds=(yarn_amplitude,),
    prefixes=("model.",),
    left_out=ROTARY_TABLES,
    series=(
        Series(names="SmolLM2-135M-intermediate*", tokens_per_step=2**20),
        Series(names="SmolLM2-360M-intermediate*", tokens_per_step=2**20),
        Series(names="SmolLM2-1.7B-intermediate*", tokens_per_step=2**21),
    ),
)
