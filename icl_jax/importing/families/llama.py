"""Llama 1 to 3.2, and whatever is saved as one: SmolLM, SmolLM2, TinyLlama, Amber."""

from icl_jax.importing.families.common import DECODER, LLAMA_PARTS, ROTARY_TABLES, decoder, yarn_amplitude
from icl_jax.importing.families.family import Family

FAMILY = Family(
    name="llama",
    model_types=("llama",),
    defaults=DECODER,
    model=decoder,
    parts=LLAMA_PARTS,
    folds=(yarn_amplitude,),
    prefixes=("model.",),
    left_out=ROTARY_TABLES,
)
