"""How a model is computed on a platform: whatever config fields leave to be chosen, chosen in one place."""

import math
from dataclasses import dataclass
from typing import Literal

import jax

from icl_jax.config import ModelConfig, TrainConfig

# The best over the shapes of benchmarks/: with 256 and 2,048 steps take up to a fifth longer, uncut 20 to 70 percent.
# The logits of more tokens do not stay in a CPU's caches either.
CPU_TOKENS_AT_A_TIME = 512
# Elsewhere a larger chunk adds up the gradient of W_U less often: 2 GiB, 4 percent faster than 0.5 on an H200.
_LOGITS_AT_A_TIME = 2**29
# Above this, layers run under one scan; below, unrolled layers compile in seconds and run without copies.
_MAX_UNROLLED_LAYERS = 8
# Scores of longer rows are taken in blocks where nothing else bounds them.
_MAX_SCORES_CTX = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """Choices that change a result in its last bits at most. `resolve` makes them."""

    attention: Literal["reference", "blocked", "cudnn", "splash"]
    loss_chunk: int
    """Tokens whose logits are held at a time."""
    n_micro_batches: int
    """Equal parts of a device's rows in a training step, one after the other."""
    remat: bool
    """One residual stream per layer is kept for the backward pass, and the rest computed again."""
    scan_layers: bool
    """Layers run under one scan in place of one after the other."""
    own_gradients: bool
    """Gradients in forms of their own, faster and in reverse mode only: the training step."""

    def __str__(self) -> str:
        parts = [
            f"{self.attention} attention",
            f"logits of {self.loss_chunk} tokens at a time",
            f"{self.n_micro_batches} micro-batches" if self.n_micro_batches > 1 else "",
            "layers scanned" if self.scan_layers else "",
            "rematerialised" if self.remat else "",
        ]
        return ", ".join(part for part in parts if part)


def resolve(
    config: ModelConfig, platform: str | None = None, train: TrainConfig | None = None, n_devices: int = 1
) -> Execution:
    """The execution of a training step over so many devices, or without `train` of any other use of the model.

    The latter takes plain forms, which JAX differentiates in either mode and which run anywhere: a run whose config
    names a kernel of one platform is analyzed on another. platform: "cpu", "gpu", "tpu"; None: JAX's default.
    """
    platform = platform or jax.default_backend()
    n_micro = 1
    if train is not None:
        rows = (train.batch_size // n_devices, config.n_ctx + 1)
        n_micro = n_micro_batches(rows, train.accum_steps, platform)
    return Execution(
        attention=_plain_attention(config, platform) if train is None else _fast_attention(config, platform),
        loss_chunk=_loss_chunk(config, platform),
        n_micro_batches=n_micro,
        remat=is_deep(config),
        scan_layers=is_deep(config) and config.layers_are_alike,
        own_gradients=train is not None,
    )


def is_deep(config: ModelConfig) -> bool:
    """So many layers that they are computed under a scan, and that what all of them hold at once is large."""
    return config.n_layers > _MAX_UNROLLED_LAYERS


def _plain_attention(config: ModelConfig, platform: str) -> Literal["reference", "blocked"]:
    if config.changes_scores:
        return "reference"
    if config.attention in ("reference", "blocked"):
        return config.attention
    return "blocked" if platform == "cpu" or config.n_ctx > _MAX_SCORES_CTX else "reference"


def _fast_attention(config: ModelConfig, platform: str) -> Literal["reference", "blocked", "cudnn", "splash"]:
    """What the config names; "auto" takes the fastest measured for the platform that does what the model does."""
    if config.changes_scores or config.window:
        return _plain_attention(config, platform)
    if config.attention != "auto":
        return config.attention
    fastest: dict[str, Literal["blocked", "cudnn", "splash"]] = {"cpu": "blocked", "gpu": "cudnn", "tpu": "splash"}
    return fastest.get(platform, "reference")


def _loss_chunk(config: ModelConfig, platform: str) -> int:
    if config.loss_chunk:
        return config.loss_chunk
    return CPU_TOKENS_AT_A_TIME if platform == "cpu" else max(1, _LOGITS_AT_A_TIME // config.vocab_size)


def n_micro_batches(shape: tuple[int, ...], accum_steps: int, platform: str) -> int:
    """Into how many equal parts a device cuts its rows, of shape [B, T + 1], to take them one after the other.

    `accum_steps` parts for the sake of memory; on a CPU further, so that activations and logits stay in its caches.
    """
    n_rows, n_ctx = shape[0] // accum_steps, shape[1] - 1
    if platform != "cpu":
        return accum_steps
    small = [n for n in range(1, math.isqrt(n_rows) + 1) if n_rows % n == 0]
    fitting = (n for n in (*small, *(n_rows // n for n in reversed(small))) if n * n_ctx >= CPU_TOKENS_AT_A_TIME)
    return accum_steps * (n_rows // next(fitting, n_rows))
