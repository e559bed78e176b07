"""A forward pass in NumPy, float64, with the taps of `icl_jax.model.forward`: what patching is tested against.

Of models with RMSNorm before, learned `shortformer` positions and, where there are any, MLPs of gelu_tanh and biases.
"""

from collections.abc import Callable

import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.measures.token_pairs import TokenPairs

Tap = Callable[[str, int, np.ndarray], np.ndarray]


def _norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class NumpyModel:
    def __init__(self, params: dict, config: ModelConfig) -> None:
        self.params = {name: np.asarray(value, np.float64) for name, value in params.items()}
        self.config = config

    def logits(self, tokens: np.ndarray, tap: Tap = lambda _name, _layer, value: value) -> np.ndarray:
        p, config = self.params, self.config
        resid, positions = p["W_E"][tokens], p["W_pos"][: tokens.shape[1]]
        visible = np.tril(np.ones((tokens.shape[1],) * 2, bool))
        for n in range(config.n_layers):
            bias = {name: p[name][n] if name in p else 0.0 for name in ("b_O", "b_in", "b_out")}
            resid = tap("resid_pre", n, resid)
            x = _norm(resid, p["ln1_w"][n])
            qkv = {}
            for letter in "QKV":
                read = x if letter == "V" else x + positions
                value = np.einsum("btd,hde->bhte", read, p[f"W_{letter}"][n])
                if f"b_{letter}" in p:
                    value = value + p[f"b_{letter}"][n][:, None]
                qkv[letter] = tap(letter.lower(), n, value)
            scores = np.einsum("bhqe,bhke->bhqk", qkv["Q"], qkv["K"]) / np.sqrt(config.head_width)
            scores = tap("attn_scores", n, np.where(visible, scores, -np.inf))
            pattern = np.exp(scores - scores.max(-1, keepdims=True))
            pattern = tap("pattern", n, pattern / pattern.sum(-1, keepdims=True))
            z = tap("z", n, np.einsum("bhqk,bhke->bhqe", pattern, qkv["V"]))
            result = tap("result", n, np.einsum("bhte,hed->bthd", z, p["W_O"][n]))
            resid = tap("resid_mid", n, resid + result.sum(2) + bias["b_O"])
            if config.d_mlp:
                hidden = _gelu(_norm(resid, p["ln2_w"][n]) @ p["W_in"][n] + bias["b_in"])
                resid = resid + tap("mlp_out", n, hidden @ p["W_out"][n] + bias["b_out"])
            resid = tap("resid_post", n, resid)
        return _norm(resid, p["ln_final_w"]) @ p["W_U"] + p.get("b_U", 0.0)

    def cache(self, tokens: np.ndarray) -> dict[tuple[str, int], np.ndarray]:
        seen: dict[tuple[str, int], np.ndarray] = {}

        def keep(name: str, layer: int, value: np.ndarray) -> np.ndarray:
            seen[name, layer] = value
            return value

        self.logits(tokens, keep)
        return seen

    def metric(self, pairs: TokenPairs, metric: str, tokens: np.ndarray, tap: Tap = lambda _n, _i, x: x) -> np.ndarray:
        """Of each row, what `icl_jax.measures.token_pairs` says, in loops."""
        logits = self.logits(tokens, tap)
        found = []
        for row, logits_TV in enumerate(logits):
            values = []
            for t in np.flatnonzero(pairs.asked[row]):
                right = pairs.clean[row, t + 1]
                wrong = pairs.corrupted[row, t + 1] if pairs.wrong is None else pairs.wrong[row, t]
                loss = np.log(np.exp(logits_TV[t]).sum()) - logits_TV[t, right]
                difference = logits_TV[t, right] - logits_TV[t, wrong]
                values.append({"loss": loss, "logit_difference": difference, "probability": np.exp(-loss)}[metric])
            found.append(np.mean(values))
        return np.array(found)
