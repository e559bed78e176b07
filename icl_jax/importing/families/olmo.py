"""OLMo 1: Llama with a LayerNorm that has no weights."""

from icl_jax.importing.families.common import ATTENTION, DECODER, ENDS, GATED_MLP, ROTARY_TABLES, decoder
from icl_jax.importing.families.family import Family, Fields, Options


def model(options: Options) -> Fields:
    options.only("clip_qkv", None)
    return decoder(options) | {"norm": "layernorm", "norm_eps": 1e-5}


FAMILY = Family(
    name="olmo",
    model_types=("olmo",),
    defaults=DECODER,
    model=model,
    parts={name: part for name, part in (ENDS | ATTENTION | GATED_MLP).items() if name != "ln_final_w"},
    prefixes=("model.",),
    left_out=ROTARY_TABLES,
    norms_without_weights=lambda _options: True,
)
