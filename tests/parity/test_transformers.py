"""Tiny random models of `transformers`, their weights in ours: the same logits and patterns."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.config import ModelConfig
from icl_jax.model.forward import run_with_cache

pytestmark = [pytest.mark.slow, pytest.mark.ci]
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`: make test-parity")
torch = pytest.importorskip("torch")

D, H, G, E, M, V, T = 24, 4, 2, 6, 40, 53, 19
SIZES = {"n_layers": 2, "d_model": D, "n_heads": H, "d_mlp": M, "n_ctx": T, "vocab_size": V}


def gpt2() -> tuple[Any, ModelConfig, dict[str, Any]]:
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=2, n_embd=D, n_head=H, n_inner=M, n_positions=T, vocab_size=V)
    )
    w = randomised(model)

    def layer(n: int) -> dict[str, Any]:
        at = f"transformer.h.{n}."
        W, b = w[at + "attn.c_attn.weight"], w[at + "attn.c_attn.bias"]
        found = {f"W_{x}": W[:, i * D : (i + 1) * D].reshape(D, H, E).swapaxes(0, 1) for i, x in enumerate("QKV")}
        found |= {f"b_{x}": b[i * D : (i + 1) * D].reshape(H, E) for i, x in enumerate("QKV")}
        found |= {"W_O": w[at + "attn.c_proj.weight"].reshape(H, E, D), "b_O": w[at + "attn.c_proj.bias"]}
        found |= {"W_in": w[at + "mlp.c_fc.weight"], "b_in": w[at + "mlp.c_fc.bias"]}
        found |= {"W_out": w[at + "mlp.c_proj.weight"], "b_out": w[at + "mlp.c_proj.bias"]}
        return found | norms(w, found, at + "ln_1", at + "ln_2")

    last = w["transformer.ln_f.weight"], w["transformer.ln_f.bias"]
    params = stacked(layer) | {"W_E": w["transformer.wte.weight"], "W_pos": w["transformer.wpe.weight"]}
    params |= {"ln_final_w": last[0], "W_U": params["W_E"].T, "b_U": last[1] @ params["W_E"].T}
    config = ModelConfig(
        **SIZES, positions="standard", position_embedding="learned", norm="layernorm",
        biases=("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "b_U"),
    )  # fmt: skip
    return model, config, params


def gpt_neox() -> tuple[Any, ModelConfig, dict[str, Any]]:
    model = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            num_hidden_layers=2, hidden_size=D, num_attention_heads=H, intermediate_size=M, max_position_embeddings=T,
            vocab_size=V, rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1 / 3},
            use_parallel_residual=True,
        )
    )  # fmt: skip
    w = randomised(model)

    def layer(n: int) -> dict[str, Any]:
        at = f"gpt_neox.layers.{n}."
        W = w[at + "attention.query_key_value.weight"].reshape(H, 3, E, D)
        b = w[at + "attention.query_key_value.bias"].reshape(H, 3, E)
        found = {f"W_{x}": W[:, i].swapaxes(1, 2) for i, x in enumerate("QKV")}
        found |= {f"b_{x}": b[:, i] for i, x in enumerate("QKV")}
        found |= {"W_O": w[at + "attention.dense.weight"].T.reshape(H, E, D), "b_O": w[at + "attention.dense.bias"]}
        found |= {"W_in": w[at + "mlp.dense_h_to_4h.weight"].T, "b_in": w[at + "mlp.dense_h_to_4h.bias"]}
        found |= {"W_out": w[at + "mlp.dense_4h_to_h.weight"].T, "b_out": w[at + "mlp.dense_4h_to_h.bias"]}
        return found | norms(w, found, at + "input_layernorm", at + "post_attention_layernorm")

    W_U = w["lm_head.weight" if "lm_head.weight" in w else "embed_out.weight"].T
    params = stacked(layer) | {"W_E": w["gpt_neox.embed_in.weight"], "W_U": W_U}
    params |= {"ln_final_w": w["gpt_neox.final_layer_norm.weight"], "b_U": w["gpt_neox.final_layer_norm.bias"] @ W_U}
    config = ModelConfig(
        **SIZES, positions="rotary", rotary_dim=2, rotary_base=500.0, norm="layernorm", activation="gelu",
        parallel_residual="two_norms", biases=("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "b_U"),
    )  # fmt: skip
    return model, config, params


LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 50.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "beta_fast": 6.0, "beta_slow": 0.5,
    "original_max_position_embeddings": 40, "attention_factor": 1.0,
}  # fmt: skip
SCALED = {"rotary_base": 50.0, "rotary_factor": 4.0, "rotary_original_ctx": 40}


def llama(rope: dict[str, Any], **fields: Any) -> tuple[Any, ModelConfig, dict[str, Any]]:
    width = 12
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            num_hidden_layers=2, hidden_size=D, num_attention_heads=H, num_key_value_heads=G, head_dim=width,
            intermediate_size=M, max_position_embeddings=160, vocab_size=V, rms_norm_eps=1e-4, rope_parameters=rope,
            tie_word_embeddings=False,
        )
    )  # fmt: skip
    w = randomised(model)

    def layer(n: int) -> dict[str, Any]:
        at = f"model.layers.{n}."
        found = {
            f"W_{x}": w[f"{at}self_attn.{x.lower()}_proj.weight"].reshape(heads, width, D).swapaxes(1, 2)
            for x, heads in (("Q", H), ("K", G), ("V", G))
        }
        found |= {"W_O": w[at + "self_attn.o_proj.weight"].T.reshape(H, width, D)}
        names = {"W_gate": "gate", "W_in": "up", "W_out": "down"}
        found |= {ours: w[f"{at}mlp.{theirs}_proj.weight"].T for ours, theirs in names.items()}
        return found | {"ln1_w": w[at + "input_layernorm.weight"], "ln2_w": w[at + "post_attention_layernorm.weight"]}

    params = stacked(layer) | {"W_E": w["model.embed_tokens.weight"], "W_U": w["lm_head.weight"].T}
    config = ModelConfig(
        **SIZES,
        n_kv_heads=G,
        d_head=width,
        positions="rotary",
        norm_eps=1e-4,
        activation="silu",
        gated_mlp=True,
        **fields,
    )
    return model, config, params | {"ln_final_w": w["model.norm.weight"]}


def randomised(model: Any) -> dict[str, np.ndarray]:
    """All weights random, norms and biases too, in the model and as arrays."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(1.0 if "norm.weight" in name or ("ln_" in name and "weight" in name) else 0.0, 0.3)
    return {name: value.detach().numpy().astype(np.float64) for name, value in model.state_dict().items()}


def norms(w: dict[str, np.ndarray], layer: dict[str, Any], first: str, second: str) -> dict[str, Any]:
    """Weights of the norms; their biases go into what reads them."""
    folded = {"ln1_w": w[first + ".weight"], "ln2_w": w[second + ".weight"]}
    for name in "QKV":
        folded[f"b_{name}"] = layer[f"b_{name}"] + np.einsum("d,hde->he", w[first + ".bias"], layer[f"W_{name}"])
    return folded | {"b_in": layer["b_in"] + w[second + ".bias"] @ layer["W_in"]}


def stacked(layer: Any) -> dict[str, Any]:
    layers = [layer(n) for n in range(2)]
    return {name: np.stack([one[name] for one in layers]) for name in layers[0]}


@pytest.mark.parametrize(
    "make",
    [
        gpt2,
        gpt_neox,
        lambda: llama({"rope_type": "default", "rope_theta": 300.0}, rotary_base=300.0),
        lambda: llama({"rope_type": "linear", "rope_theta": 50.0, "factor": 4.0}, rotary_scaling="linear",
                      rotary_base=50.0, rotary_factor=4.0),
        lambda: llama(LLAMA_3, rotary_scaling="llama3", **SCALED),
        lambda: llama(YARN, rotary_scaling="yarn", rotary_high_turns=6.0, rotary_low_turns=0.5, **SCALED),
    ],
    ids=["GPT-2", "GPT-NeoX", "Llama", "Llama, linear", "Llama 3", "YaRN"],
)  # fmt: skip
def test_logits_and_patterns(make: Any) -> None:
    model, config, params = make()
    model.eval().set_attn_implementation("eager")
    tokens = np.random.default_rng(1).integers(0, V, (3, T))
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens), output_attentions=True)
    ours = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    logits, seen = run_with_cache(ours, jnp.asarray(tokens, jnp.int32), config, ("pattern",))
    np.testing.assert_allclose(logits, theirs.logits.numpy(), atol=1e-4)
    for layer in range(2):
        np.testing.assert_allclose(seen["pattern", layer], theirs.attentions[layer].numpy(), atol=1e-5)
