"""Models of this program, as `icl-jax export --to transformers` writes those that no class of `transformers` is."""

from dataclasses import fields
from typing import Any

import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.importing.families.common import ATTENTION, GATED_MLP
from icl_jax.importing.families.family import Family, Fields, Layout, Options, Part
from icl_jax.importing.families.layouts import transposed

_NOT_OF_THE_MODEL = ("init_std", "compute_dtype", "attention", "loss_chunk")
_FIELDS = {field.name: field.default for field in fields(ModelConfig) if field.name not in _NOT_OF_THE_MODEL}


def model(options: Options) -> Fields:
    found = {name: options.get(name) for name in _FIELDS}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def config(model: ModelConfig) -> dict[str, Any]:
    """Every field, by our name; widths that can be left to others are said."""
    found = {name: getattr(model, name) for name in _FIELDS}
    found |= {"d_head": model.head_width, "n_kv_heads": model.key_heads}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _read_norm(array: np.ndarray, model: ModelConfig) -> np.ndarray:
    return array if model.qk_norm == "head" else array.reshape(-1, model.head_width)


_of_queries = Layout(_read_norm, lambda ours: (int(np.prod(ours)),))
_LAYER = "layers.{}."
FAMILY = Family(
    name="icl_jax",
    model_types=("icl_jax",),
    defaults=_FIELDS,
    model=model,
    parts={
        "W_E": Part(name="embed_tokens.weight"),
        "W_pos": Part(name="embed_positions.weight"),
        "W_U": Part(name="lm_head.weight", layout=transposed),
        "b_U": Part(name="lm_head.bias"),
        **ATTENTION,
        "q_norm_w": Part(name=f"{_LAYER}self_attn.q_norm.weight", layout=_of_queries),
        "k_norm_w": Part(name=f"{_LAYER}self_attn.k_norm.weight", layout=_of_queries),
        "smear_gate_w": Part(name="smear_gate_w"),
        "smear_lambda": Part(name="smear_lambda"),
        "smear_alpha": Part(name=f"{_LAYER}self_attn.smear_alpha"),
        **GATED_MLP,
        "ln1_w": Part(name=f"{_LAYER}ln1.weight"),
        "ln1_post_w": Part(name=f"{_LAYER}ln1_post.weight"),
        "ln2_w": Part(name=f"{_LAYER}ln2.weight"),
        "ln2_post_w": Part(name=f"{_LAYER}ln2_post.weight"),
        "ln_final_w": Part(name="ln_final.weight"),
    },
    prefixes=("model.",),
    config=config,
    architecture="IclJaxForCausalLM",
)
