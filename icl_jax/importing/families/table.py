"""All families."""

from typing import Any

from icl_jax.config import UserError
from icl_jax.importing.families import (
    bloom,
    gemma,
    gpt2,
    gpt_neo,
    gpt_neox,
    gptj,
    llama,
    mistral,
    olmo,
    olmo2,
    opt,
    own,
    phi,
    pico,
    qwen2,
    qwen3,
    smollm3,
    transformer_lens,
)
from icl_jax.importing.families.family import Family

TABLE: tuple[Family, ...] = (
    bloom.FAMILY,
    gemma.GEMMA,
    gemma.GEMMA_2,
    gemma.GEMMA_3,
    gpt2.FAMILY,
    gpt_neo.FAMILY,
    gpt_neox.FAMILY,
    gptj.FAMILY,
    llama.FAMILY,
    mistral.FAMILY,
    olmo.FAMILY,
    olmo2.FAMILY,
    opt.FAMILY,
    own.FAMILY,
    phi.FAMILY,
    pico.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    smollm3.FAMILY,
    transformer_lens.FAMILY,
)
# What a config.json of each kind has, and what it is called.
_REFUSED = {
    "is_encoder_decoder": "an encoder and a decoder",
    "num_experts": "a mixture of experts",
    "num_local_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "quantization_config": "quantised weights (of these, GGUF alone is read)",
}
# What TransformerLens's configs have, in place of a model_type.
_HOOKED = {"d_vocab", "d_head", "n_ctx", "n_layers"}
_ENCODERS = ("bert", "roberta", "electra", "distilbert", "albert", "deberta", "modernbert", "t5", "bart", "vit", "clip")


def family_of(config: dict[str, Any], where: str) -> Family:
    """By model_type. Raises UserError for a kind of model that is not represented, by name."""
    for name, what in _REFUSED.items():
        if config.get(name):
            raise UserError(f"{where}: {name} = {str(config[name])[:60]}: {what} is not represented here")
    kind = config.get("model_type")
    if kind is None and config.keys() >= _HOOKED:
        kind = "hooked_transformer"
    found = next((family for family in TABLE if kind in family.model_types), None)
    if found is None:
        known = ", ".join(sorted(name for family in TABLE for name in family.model_types))
        is_encoder = isinstance(kind, str) and any(name in kind for name in _ENCODERS)
        what = "an encoder, which predicts no next token" if is_encoder else "not a family that is known"
        raise UserError(f"{where}: model_type = {kind!r}: {what}; must be one of {known}")
    return found
