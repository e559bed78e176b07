"""A snapshot for TransformerLens's `HookedTransformer` (TransformerLens 3; version 4 has no such class).

`icl-jax export` writes the weights as safetensors, which load without pickle, and the config as JSON. Neither torch nor
TransformerLens is imported here. The model then gives the same logits; weights are not folded, so `fold_ln` and the
like stay possible. ``strict=False`` in `loading_code`: TransformerLens counts its masks and rotary tables as state.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from safetensors.numpy import save

from icl_jax.config import ModelConfig, UserError
from icl_jax.rundir import RunDir, SnapshotEntry
from icl_jax.rundir.files import absolute, reason, replace_text

_SUFFIX = ".safetensors"


# "gelu_new" is the approximation by tanh.
_ACTIVATIONS = {"gelu_tanh": "gelu_new", **{name: name for name in ("gelu", "silu", "relu", "solu", "solu_ln")}}
# What `HookedTransformer` has no form for: field, what it can be, and what is missing.
_MISSING: dict[str, tuple[tuple[Any, ...], str]] = {
    "smeared_keys": ((False,), "smeared keys"),
    "key_offset": ((0,), "keys that take entries of the key before"),
    "smear_gate": ((False,), "gate between embeddings"),
    "qk_norm": (("none",), "such norms of queries and keys"),
    "norm_position": (("pre",), "such norms of what a layer writes"),
    "activation": (tuple(_ACTIVATIONS), "such activation"),
    "rotary_scaling": (("none",), "rotary frequencies of one's own"),
    "no_rotary_layers": (((),), "layers without rotary positions"),
    "window_rotary_base": ((0.0,), "such rotary frequencies"),
}


def hooked_config(config: ModelConfig) -> dict[str, Any]:
    """Keyword arguments of `HookedTransformerConfig`. Raises UserError for a model that it has no form for."""
    for name, (values, what) in _MISSING.items():
        value = getattr(config, name)
        if value not in values:
            said = "true" if value is True else repr(value)
            raise UserError(f"model.{name} = {said}: TransformerLens has no {what}")
    if config.positions == "alibi" and config.n_heads & (config.n_heads - 1):
        raise UserError(f"model.n_heads = {config.n_heads}: TransformerLens has other ALiBi slopes if no power of 2")
    if config.gated_mlp and {"b_in", "b_gate"} & set(config.biases):
        raise UserError(f"model.biases = {config.biases!r}: TransformerLens has no b_in and b_gate of a gated MLP")
    options: dict[str, Any] = {}
    if config.positions == "rotary":
        # Halves paired: GPT-NeoX's layout.
        options |= {"rotary_dim": config.rotary_dim or config.head_width, "rotary_base": config.rotary_base}
    if config.window:
        kinds = ["local" if config.window_of(layer) else "global" for layer in range(config.n_layers)]
        options |= {"use_local_attn": True, "window_size": config.window, "attn_types": kinds}
    caps = {"attn_scores_soft_cap": config.attn_soft_cap, "output_logits_soft_cap": config.logit_soft_cap}
    options |= {name: cap for name, cap in caps.items() if cap}
    return options | {
        "n_layers": config.n_layers,
        "d_model": config.d_model,
        "n_heads": config.n_heads,
        "d_head": config.head_width,
        "d_mlp": config.d_mlp or None,
        "n_ctx": config.n_ctx,
        "d_vocab": config.vocab_size,
        "attn_only": not config.d_mlp,
        "act_fn": _ACTIVATIONS[config.activation] if config.d_mlp else None,
        "gated_mlp": config.gated_mlp,
        "normalization_type": {"layernorm": "LN", "rmsnorm": "RMS", "none": None}[config.norm],
        "eps": config.norm_eps,
        "positional_embedding_type": config.positions,
        "parallel_attn_mlp": config.parallel_residual != "none",
    }


def hooked_state_dict(params: Mapping[str, Any], config: ModelConfig) -> dict[str, np.ndarray]:
    """Names and float32 arrays of `HookedTransformer.state_dict()`.

    Biases that the model lacks are zero, keys and values that heads share are there for each of them, and a norm that
    attention and MLP share is there twice.
    """
    from icl_jax.model.params import declarations, per_head  # with JAX, without which can be refused
    from icl_jax.model.positions import sinusoidal

    hooked_config(config)
    state = {"unembed.b_U": np.zeros(config.vocab_size, np.float32)}
    for layer in range(config.n_layers):
        block = f"blocks.{layer}"
        heads = (config.n_heads, config.head_width)
        biases: dict[str, tuple[int, ...]] = {f"attn.b_{letter}": heads for letter in "QKV"}
        biases["attn.b_O"] = (config.d_model,)
        if config.d_mlp:
            biases |= {"mlp.b_in": (config.d_mlp,), "mlp.b_out": (config.d_model,)}
        state |= {f"{block}.{name}": np.zeros(shape, np.float32) for name, shape in biases.items()}
        if config.activation == "solu_ln" and config.d_mlp and config.norm == "layernorm":
            state[f"{block}.mlp.ln.w"] = np.ones(config.d_mlp, np.float32)
    whole = per_head({name: np.asarray(value, np.float32) for name, value in params.items()}, config)
    for name, declared in declarations(config).items():
        assert declared.hooked is not None, name
        array = np.array(whole[name])
        layers = enumerate(array) if declared.is_stacked else [(0, array)]
        state |= {declared.hooked.format(layer): value for layer, value in layers}
    if config.parallel_residual == "one_norm":
        for layer in range(config.n_layers):
            state[f"blocks.{layer}.ln2.w"] = state[f"blocks.{layer}.ln1.w"].copy()
    if config.tied_unembedding:
        state["unembed.W_U"] = state["embed.W_E"].T.copy()
    if config.has_position_embedding and config.position_embedding == "sinusoidal":
        state["pos_embed.W_pos"] = sinusoidal(config.n_ctx, config.d_model)
    if config.norm == "layernorm":
        norms = [name.removesuffix(".w") for name in state if name.endswith((".ln1.w", ".ln2.w", "ln_final.w"))]
        state |= {f"{name}.b": np.zeros(config.d_model, np.float32) for name in norms}
    if config.activation == "solu_ln":
        norms = [name.removesuffix(".w") for name in state if name.endswith(".mlp.ln.w")]
        state |= {f"{name}.b": np.zeros(config.d_mlp, np.float32) for name in norms}
    return state


def check_export(run: RunDir, step: int | None, out: str | None) -> SnapshotEntry:
    """The snapshot that `export_snapshot` would write. Raises UserError as it does, before JAX is there."""
    if out is not None and not out.endswith(_SUFFIX):
        raise UserError(f"--out = {out!r}: must end in {_SUFFIX}")
    hooked_config(run.config.model)
    entries = run.snapshots()
    return entries[-1] if step is None else run.snapshot(step)


def export_snapshot(run: RunDir, step: int | None = None, out: str | None = None) -> tuple[epath.Path, epath.Path]:
    """Write a snapshot's weights and config, and return the two files; existing ones are replaced.

    step: None takes the last. out: the weights' file, a path or bucket URL that ends in .safetensors; default
    RUN/export/STEP.safetensors. The file's metadata name the run, the step and the snapshot's SHA-256. Raises UserError
    for a model that TransformerLens has no form for, a step without a snapshot and a file that cannot be written.
    """
    entry = check_export(run, step, out)
    step, config = entry.step, hooked_config(run.config.model)
    state = hooked_state_dict(run.load_params(step), run.config.model)
    # safetensors writes the buffer as it lies in memory.
    state = {name: np.ascontiguousarray(value) for name, value in state.items()}
    weights = epath.Path(out) if out else run.path / "export" / f"{step}{_SUFFIX}"
    config_path = weights.parent / f"{weights.name.removesuffix(_SUFFIX)}.json"
    metadata = {"format": "pt", "run_id": run.run_id, "step": str(step), "sha256": entry.sha256}
    try:
        weights.parent.mkdir(parents=True, exist_ok=True)
        replace_text(config_path, json.dumps(config, indent=1) + "\n")
        partial = weights.parent / f".{weights.name}.partial"
        partial.write_bytes(save(state, metadata=metadata))
        partial.replace(weights)
    except OSError as error:
        raise UserError(f"{weights}: cannot write the export: {reason(error)}") from error
    return weights, config_path


def loading_code(weights: epath.Path, config: epath.Path) -> list[str]:
    """Lines of Python that load what `export_snapshot` wrote, where TransformerLens 3 and safetensors are installed.

    In any folder.
    """
    weights, config = absolute(weights), absolute(config)
    return [
        "import json, pathlib, safetensors.torch, transformer_lens",
        f"config = transformer_lens.HookedTransformerConfig(**json.loads(pathlib.Path({str(config)!r}).read_text()))",
        "model = transformer_lens.HookedTransformer(config)",
        f"model.load_state_dict(safetensors.torch.load_file({str(weights)!r}), strict=False)",
    ]
