"""Position embeddings that are computed, not trained."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def sinusoidal(n_ctx: int, d_model: int) -> Float[np.ndarray, "T D"]:
    """Sines in the first half of the width, cosines in the second, wavelengths 2 pi to 10,000 * 2 pi.

    Range [-1, 1], root mean square 1/sqrt(2). Source: Vaswani et al. 2017, section 3.5 (halves instead of interleaved).
    """
    wavenumber = 10_000.0 ** (-np.arange(d_model // 2) / max(d_model // 2 - 1, 1))
    angle_TD = np.arange(n_ctx)[:, None] * wavenumber[None, :]
    return np.concatenate([np.sin(angle_TD), np.cos(angle_TD)], axis=1).astype(np.float32)


def rotate(x: Float[Array, "B H T E"]) -> Float[Array, "B H T E"]:
    """Rotary position embedding over the whole head width: entry i is paired with entry i + E/2.

    Source: Su et al. 2021, section 3.2, in the half-split layout of GPT-NeoX.
    """
    n_ctx, half = x.shape[-2], x.shape[-1] // 2
    angle_TE = np.arange(n_ctx)[:, None] * 10_000.0 ** (-np.arange(half) / half)[None, :]
    cos, sin = (jnp.asarray(f(angle_TE), x.dtype)[None, None] for f in (np.cos, np.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jax.lax.concatenate([first * cos - second * sin, second * cos + first * sin], dimension=3)
