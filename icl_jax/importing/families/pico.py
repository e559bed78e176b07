"""pico-lm: Llama with rotary embeddings of neighbours, under names of its own."""

from icl_jax.importing.families.common import heads
from icl_jax.importing.families.family import Family, Fields, Options, Part
from icl_jax.importing.families.folds import halves_of_pairs
from icl_jax.importing.families.layouts import transposed


def model(options: Options) -> Fields:
    options.ignore("batch_size")
    return {
        "n_layers": options.number("n_layers"),
        "d_model": options.number("d_model"),
        "n_heads": options.number("attention_n_heads"),
        "n_kv_heads": options.number("attention_n_kv_heads"),
        "d_mlp": options.number("activation_hidden_dim"),
        "vocab_size": options.number("vocab_size"),
        "n_ctx": options.number("max_seq_len"),
        "positions": "rotary",
        "rotary_base": options.number("position_emb_theta"),
        "norm": "rmsnorm",
        "norm_eps": options.number("norm_eps"),
        "activation": "silu",
        "gated_mlp": True,
    }


_LAYER = "layers.{}."
FAMILY = Family(
    name="pico",
    model_types=("pico_decoder",),
    defaults={"norm_eps": 1e-6, "position_emb_theta": 10_000.0, "max_seq_len": 2048},
    model=model,
    parts={
        "W_E": Part(name="embedding_proj.weight"),
        "W_U": Part(name="de_embedding_proj.weight", layout=transposed),
        "W_gate": Part(name=f"{_LAYER}swiglu.w_0.weight", layout=transposed),
        "W_in": Part(name=f"{_LAYER}swiglu.w_1.weight", layout=transposed),
        "W_out": Part(name=f"{_LAYER}swiglu.w_2.weight", layout=transposed),
        "ln1_w": Part(name=f"{_LAYER}attention_norm.weight"),
        "ln2_w": Part(name=f"{_LAYER}swiglu_norm.weight"),
        "ln_final_w": Part(name="output_norm.weight"),
    }
    | heads(f"{_LAYER}attention."),
    folds=(halves_of_pairs,),
    prefixes=("pico_decoder.",),
)
