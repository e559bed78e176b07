"""Position embeddings that are computed, not trained."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from icl_jax.config import ModelConfig


def sinusoidal(n_ctx: int, d_model: int) -> Float[np.ndarray, "T D"]:
    """Sines in the first half of the width, cosines in the second, wavelengths 2 pi to 10,000 * 2 pi.

    Range [-1, 1], root mean square 1/sqrt(2). Source: Vaswani et al. 2017, section 3.5 (halves instead of interleaved).
    """
    wavenumber = 10_000.0 ** (-np.arange(d_model // 2) / max(d_model // 2 - 1, 1))
    angle_TD = np.arange(n_ctx)[:, None] * wavenumber[None, :]
    return np.concatenate([np.sin(angle_TD), np.cos(angle_TD)], axis=1).astype(np.float32)


def rotary_frequencies(config: ModelConfig, layer: int = 0) -> Float[np.ndarray, " F"]:
    """By how much the pairs of a head's entries turn a position, radians; empty for a layer without rotary positions.

    Pair i of n by ``base ** (-i / n)``, slowed by the scaling for contexts longer than the original one. llama3 goes
    from full to no slowing linearly in the turns that a pair takes in the original context, yarn linearly in i.
    Source: Su et al. 2021, section 3.2; scaling: Chen et al. 2023 (linear), Meta's Llama 3.1 (llama3), Peng et al. 2023
    (yarn), all as in `transformers`. Departure: yarn's factor on scores belongs to W_Q.
    """
    if config.positions != "rotary" or layer in config.no_rotary_layers:
        return np.zeros(0)
    half = (config.rotary_dim or config.head_width) // 2
    pair = np.arange(half)
    if config.window_rotary_base and config.window_of(layer):
        return config.window_rotary_base ** (-pair / half)
    frequencies = config.rotary_base ** (-pair / half)
    low, high, n_ctx = config.rotary_low_turns, config.rotary_high_turns, config.rotary_original_ctx
    if config.rotary_scaling == "none":
        return frequencies
    if config.rotary_scaling == "linear":
        kept = np.zeros(half)
    elif config.rotary_scaling == "llama3":
        kept = np.clip((n_ctx * frequencies / (2 * np.pi) - low) / (high - low), 0, 1)
    else:
        # The pair that takes so many turns in the original context.
        first, last = (half * math.log(n_ctx / (n * 2 * np.pi)) / math.log(config.rotary_base) for n in (high, low))
        first, last = max(math.floor(first), 0), min(math.ceil(last), 2 * half - 1)
        kept = 1 - np.clip((pair - first) / max(last - first, 1e-3), 0, 1)
    return frequencies * (kept + (1 - kept) / config.rotary_factor)


def rotate(x: Float[Array, "B H T E"], frequencies: Float[np.ndarray, " F"]) -> Float[Array, "B H T E"]:
    """Rotary position embedding of the first 2 F entries of a head: entry i is paired with entry i + F.

    Source: Su et al. 2021, section 3.2, in the half-split layout of GPT-NeoX.
    """
    n_ctx, n_turned = x.shape[-2], 2 * len(frequencies)
    if not n_turned:
        return x
    angle_TF = np.arange(n_ctx)[:, None] * frequencies[None, :]
    cos, sin = (jnp.asarray(f(angle_TF), x.dtype)[None, None] for f in (np.cos, np.sin))
    turned, still = (x, []) if n_turned == x.shape[-1] else (x[..., :n_turned], [x[..., n_turned:]])
    first, second = jnp.split(turned, 2, axis=-1)
    return jax.lax.concatenate([first * cos - second * sin, second * cos + first * sin, *still], dimension=3)


def alibi_slopes(n_heads: int) -> Float[np.ndarray, " H"]:
    """By how much each head's scores fall a position of distance: 2 ** (-8 / n), its square, ... for n a power of 2.

    For other numbers those of the power of 2 below, then every other one of twice that power.
    Source: Press et al. 2022, section 3, and its code.
    """

    def of_power(n: int) -> np.ndarray:
        return 2.0 ** (-8 * np.arange(1, n + 1) / n)

    below = 2 ** int(math.log2(n_heads))
    return np.concatenate([of_power(below), of_power(2 * below)[::2][: n_heads - below]])
