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
from icl_jax.model.forward import NORM_EPS
from icl_jax.model.params import declarations
from icl_jax.model.positions import sinusoidal
from icl_jax.rundir import RunDir
from icl_jax.rundir.files import absolute, reason, replace_text

_SUFFIX = ".safetensors"


def hooked_config(config: ModelConfig) -> dict[str, Any]:
    """Keyword arguments of `HookedTransformerConfig`. Raises UserError for smeared keys: it has none."""
    if config.smeared_keys:
        raise UserError("model.smeared_keys = true: TransformerLens has no smeared keys")
    return {
        "n_layers": config.n_layers,
        "d_model": config.d_model,
        "n_heads": config.n_heads,
        "d_head": config.d_head,
        "d_mlp": config.d_mlp or None,
        "n_ctx": config.n_ctx,
        "d_vocab": config.vocab_size,
        "attn_only": not config.d_mlp,
        "act_fn": "gelu_new" if config.d_mlp else None,
        "normalization_type": {"layernorm": "LN", "rmsnorm": "RMS", "none": None}[config.norm],
        "eps": NORM_EPS,
        "positional_embedding_type": config.positions,
        # Over the whole width of a head, halves paired: GPT-NeoX's layout.
        "rotary_dim": config.d_head if config.positions == "rotary" else None,
    }


def hooked_state_dict(params: Mapping[str, Any], config: ModelConfig) -> dict[str, np.ndarray]:
    """Names and float32 arrays of `HookedTransformer.state_dict()`; biases, which our models lack, are zero."""
    hooked_config(config)
    state = {"unembed.b_U": np.zeros(config.vocab_size, np.float32)}
    for name, declared in declarations(config).items():
        assert declared.hooked is not None, name
        array = np.array(params[name], np.float32)
        layers = enumerate(array) if declared.is_stacked else [(0, array)]
        state |= {declared.hooked.format(layer): value for layer, value in layers}
    if config.tied_unembedding:
        state["unembed.W_U"] = state["embed.W_E"].T.copy()
    if config.positions != "rotary" and config.position_embedding == "sinusoidal":
        state["pos_embed.W_pos"] = sinusoidal(config.n_ctx, config.d_model)
    for layer in range(config.n_layers):
        block = f"blocks.{layer}"
        heads = (config.n_heads, config.d_head)
        biases: dict[str, tuple[int, ...]] = {f"attn.b_{letter}": heads for letter in "QKV"}
        biases["attn.b_O"] = (config.d_model,)
        if config.d_mlp:
            biases |= {"mlp.b_in": (config.d_mlp,), "mlp.b_out": (config.d_model,)}
        state |= {f"{block}.{name}": np.zeros(shape, np.float32) for name, shape in biases.items()}
    if config.norm == "layernorm":
        norms = [name.removesuffix(".w") for name in state if name.endswith((".ln1.w", ".ln2.w", "ln_final.w"))]
        state |= {f"{name}.b": np.zeros(config.d_model, np.float32) for name in norms}
    return state


def export_snapshot(run: RunDir, step: int | None = None, out: str | None = None) -> tuple[epath.Path, epath.Path]:
    """Write a snapshot's weights and config, and return the two files; existing ones are replaced.

    step: None takes the last. out: the weights' file, a path or bucket URL that ends in .safetensors; default
    RUN/export/STEP.safetensors. The file's metadata name the run, the step and the snapshot's SHA-256. Raises UserError
    for a model that TransformerLens has no form for, a step without a snapshot and a file that cannot be written.
    """
    if out is not None and not out.endswith(_SUFFIX):
        raise UserError(f"--out = {out!r}: must end in {_SUFFIX}")
    config = hooked_config(run.config.model)
    entries = {entry.step: entry for entry in run.read_snapshots()}
    if not entries:
        raise UserError(f"{run.path}: has no snapshots yet")
    step = max(entries) if step is None else step
    state = hooked_state_dict(run.load_params(step), run.config.model)
    # safetensors writes the buffer as it lies in memory.
    state = {name: np.ascontiguousarray(value) for name, value in state.items()}
    weights = epath.Path(out) if out else run.path / "export" / f"{step}{_SUFFIX}"
    config_path = weights.parent / f"{weights.name.removesuffix(_SUFFIX)}.json"
    metadata = {"format": "pt", "run_id": run.run_id, "step": str(step), "sha256": entries[step].sha256}
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
