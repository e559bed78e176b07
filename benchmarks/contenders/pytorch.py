"""The same model and optimiser in PyTorch, as someone who knows it would write them.

One matmul for q, k and v (the position embeddings that Shortformer adds to the inputs of q and k go through their part
of it by themselves, once for all rows), `scaled_dot_product_attention`, `cross_entropy`, fused AdamW.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from icl_jax import process
from icl_jax.config import Config, ModelConfig
from icl_jax.model.positions import sinusoidal


class _Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.n_heads, self.is_smeared, self.eps = config.n_heads, config.smeared_keys, config.norm_eps
        self.ln1_w = nn.Parameter(torch.ones(d))
        self.W_QKV = nn.Parameter(torch.empty(d, 3 * d))
        self.W_O = nn.Parameter(torch.empty(d, d))
        if self.is_smeared:
            self.smear_alpha = nn.Parameter(torch.zeros(config.n_heads))
        self.has_mlp = bool(config.d_mlp)
        if self.has_mlp:
            self.ln2_w = nn.Parameter(torch.ones(d))
            self.W_in = nn.Parameter(torch.empty(d, config.d_mlp))
            self.W_out = nn.Parameter(torch.empty(config.d_mlp, d))

    def forward(self, resid: torch.Tensor, pos_TD: torch.Tensor) -> torch.Tensor:
        B, T, D = resid.shape
        x = F.rms_norm(resid, (D,), self.ln1_w, self.eps)
        qkv = x @ self.W_QKV
        pos_qk = pos_TD @ self.W_QKV[:, : 2 * D]
        q, k, v = qkv.split(D, dim=-1)
        q, k = q + pos_qk[:, :D], k + pos_qk[:, D:]
        q, k, v = (y.view(B, T, self.n_heads, -1).transpose(1, 2) for y in (q, k, v))
        if self.is_smeared:
            own = torch.sigmoid(self.smear_alpha)[None, :, None, None].to(k.dtype)
            k = torch.cat([k[:, :, :1], own * k[:, :, 1:] + (1 - own) * k[:, :, :-1]], dim=2)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        resid = resid + z.transpose(1, 2).reshape(B, T, D) @ self.W_O
        if self.has_mlp:
            hidden = F.gelu(F.rms_norm(resid, (D,), self.ln2_w, self.eps) @ self.W_in, approximate="tanh")
            resid = resid + hidden @ self.W_out
        return resid


class Model(nn.Module):
    """Shortformer positions, RMSNorm, no biases: the shapes of `benchmarks.shapes`."""

    pos_TD: torch.Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.positions != "shortformer" or config.norm != "rmsnorm" or config.tied_unembedding:
            raise ValueError(
                "the PyTorch model is written for Shortformer positions, RMSNorm and an untied unembedding"
            )
        self.W_E = nn.Parameter(torch.empty(config.vocab_size, config.d_model))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.n_layers))
        self.eps = config.norm_eps
        self.ln_final_w = nn.Parameter(torch.ones(config.d_model))
        self.W_U = nn.Parameter(torch.empty(config.d_model, config.vocab_size))
        self.register_buffer("pos_TD", torch.from_numpy(sinusoidal(config.n_ctx, config.d_model)))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        resid = F.embedding(tokens, self.W_E)
        for block in self.blocks:
            resid = block(resid, self.pos_TD)
        return F.rms_norm(resid, resid.shape[-1:], self.ln_final_w, self.eps) @ self.W_U

    def load(self, params: dict[str, np.ndarray]) -> None:
        """Take icl_jax's parameters."""
        state: dict[str, Any] = {name: params[name] for name in ("W_E", "ln_final_w", "W_U")}
        for layer in range(len(self.blocks)):
            # N H D E -> D, H E side by side
            heads = [params[name][layer].transpose(1, 0, 2) for name in ("W_Q", "W_K", "W_V")]
            state[f"blocks.{layer}.W_QKV"] = np.concatenate([W.reshape(W.shape[0], -1) for W in heads], axis=1)
            state[f"blocks.{layer}.W_O"] = params["W_O"][layer].reshape(-1, params["W_O"].shape[-1])
            for name in ("ln1_w", "ln2_w", "W_in", "W_out", "smear_alpha"):
                if name in params:
                    state[f"blocks.{layer}.{name}"] = params[name][layer]
        tensors = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in state.items()}
        self.load_state_dict(tensors | {"pos_TD": self.pos_TD})


def initial_params(config: Config) -> dict[str, np.ndarray]:
    """icl_jax's own, so that all start from the same numbers."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # the GPU's memory is for PyTorch
    from icl_jax.model.params import init_params

    return {name: np.asarray(value) for name, value in init_params(config.model, config.train.seed).items()}


def learning_rate(config: Config, step: int) -> float:
    """The schedule of `icl_jax.train.optimizer`, written down again."""
    opt = config.optimizer
    if step < opt.warmup_steps:
        return opt.lr * (step + 1) / opt.warmup_steps
    done = min((step - opt.warmup_steps) / max(config.train.n_steps - 1 - opt.warmup_steps, 1), 1.0)
    return opt.lr * (opt.final_lr_fraction + (1 - opt.final_lr_fraction) * 0.5 * (1 + math.cos(math.pi * done)))


def adamw(params: list[torch.Tensor], config: Config, least_axes: int) -> torch.optim.AdamW:
    """Fused, by the config. Parameters of fewer axes than `least_axes`, which are norms and biases, are not decayed."""
    opt = config.optimizer
    return torch.optim.AdamW(
        [
            {"params": [p for p in params if p.ndim >= least_axes]},
            {"params": [p for p in params if p.ndim < least_axes], "weight_decay": 0.0},
        ],
        lr=opt.lr,
        betas=(opt.b1, opt.b2),
        eps=opt.eps,
        weight_decay=opt.weight_decay,
        fused=True,
    )


class PyTorch:
    """Eager or compiled; on a GPU in bfloat16 by autocast."""

    def __init__(self, config: Config, device: str, per_position: bool, *, is_compiled: bool) -> None:
        torch.set_num_threads(process.cpu_count())
        self._config, self._device, self._per_position, self._n_done = config, torch.device(device), per_position, 0
        self._model = self._make_model(config).to(self._device)
        self._optimizer = adamw(list(self._model.parameters()), config, 2)
        self._loss = torch.compile(self._loss_fn) if is_compiled else self._loss_fn

    def _make_model(self, config: Config) -> nn.Module:
        model = Model(config.model)
        model.load(initial_params(config))
        return model

    def _loss_fn(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean loss, and what is recorded: the mean at each position, or the mean once more."""
        is_half = self._config.model.compute_dtype == "bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=is_half):
            logits = self._model(rows[:, :-1])
        logits, targets = logits.flatten(0, 1).float(), rows[:, 1:].flatten()
        if not self._per_position:
            loss = F.cross_entropy(logits, targets)
            return loss, loss.detach()
        loss_BT = F.cross_entropy(logits, targets, reduction="none").view(rows.shape[0], -1)
        return loss_BT.mean(), loss_BT.detach().mean(0)

    def run(self, batches: list[np.ndarray]) -> list[float]:
        recorded = []
        for rows in batches:
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate(self._config, self._n_done)
            self._n_done += 1
            tensor = torch.from_numpy(rows).to(self._device, torch.int64)
            loss, record = self._loss(tensor)
            loss.backward()
            if self._config.optimizer.clip_norm > 0:
                nn.utils.clip_grad_norm_(self._model.parameters(), self._config.optimizer.clip_norm)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            recorded.append(record)
        return [float(record.mean()) for record in recorded]

    def release(self) -> None:
        torch.cuda.empty_cache()
