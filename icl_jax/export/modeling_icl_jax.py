"""A model of icl_jax in PyTorch, for `transformers` with ``trust_remote_code=True``: config, layers, language model.

`icl-jax export --to transformers` puts this file beside the weights where no class of `transformers` computes the same.
Every option of icl_jax's `ModelConfig` is here: positions that are added to the inputs of queries and keys only
(Shortformer), smeared and offset keys, attention-only layers, windows, grouped keys, norms before and after, caps.
There is no cache of keys: each token that is generated computes the row again.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

FIELDS: dict[str, Any] = {
    "n_layers": 2, "d_model": 64, "n_heads": 4, "d_head": 0, "n_kv_heads": 0, "d_mlp": 0, "activation": "gelu_tanh",
    "gated_mlp": False, "biases": [], "n_ctx": 128, "vocab_size": 64, "positions": "shortformer",
    "position_embedding": "sinusoidal", "rotary_base": 10_000.0, "rotary_dim": 0, "rotary_scaling": "none",
    "rotary_factor": 1.0, "rotary_original_ctx": 0, "rotary_low_turns": 1.0, "rotary_high_turns": 4.0,
    "no_rotary_layers": [], "window": 0, "window_layers": [], "window_rotary_base": 0.0, "smeared_keys": False,
    "key_offset": 0, "smear_gate": False,
    "qk_norm": "none", "attn_soft_cap": 0.0, "logit_soft_cap": 0.0, "norm": "rmsnorm", "norm_position": "pre",
    "norm_eps": 1e-5, "parallel_residual": "none", "tied_unembedding": False,
}  # fmt: skip
"""Of icl_jax's `ModelConfig`, with its defaults."""


class IclJaxConfig(PretrainedConfig):
    """The fields of icl_jax's `ModelConfig`, by their names there; docs/architectures.md says what they do."""

    model_type = "icl_jax"
    attribute_map = {  # noqa: RUF012 - transformers' own way
        "num_hidden_layers": "n_layers", "hidden_size": "d_model", "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads", "head_dim": "d_head", "intermediate_size": "d_mlp",
        "max_position_embeddings": "n_ctx",
        "hidden_act": "activation",
    }  # fmt: skip

    def __init__(self, **kwargs: Any) -> None:
        given = {name: kwargs.pop(name, default) for name, default in FIELDS.items()}
        given["d_head"] = given["d_head"] or given["d_model"] // given["n_heads"]
        given["n_kv_heads"] = given["n_kv_heads"] or given["n_heads"]
        for name, value in given.items():
            setattr(self, name, value)
        kwargs |= {"tie_word_embeddings": given["tied_unembedding"], "use_cache": False}
        super().__init__(**kwargs)

    @property
    def use_parallel_residual(self) -> bool:
        """The MLP reads what attention reads (for TransformerLens)."""
        return self.parallel_residual != "none"

    def window_of(self, layer: int) -> int:
        """Tokens that a query of the layer sees; 0: all before it."""
        return self.window if not self.window_layers or layer in self.window_layers else 0


def normalised(x: torch.Tensor, eps: float, *, is_centred: bool) -> torch.Tensor:
    """LayerNorm or RMSNorm without weights."""
    if is_centred:
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class Norm(nn.Module):
    """LayerNorm or RMSNorm with a scale and no bias, in float32."""

    def __init__(self, width: int, config: IclJaxConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.is_centred, self.eps = config.norm == "layernorm", config.norm_eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (normalised(x.float(), self.eps, is_centred=self.is_centred) * self.weight).to(x.dtype)


def _norm(config: IclJaxConfig, *, is_there: bool) -> nn.Module:
    return Norm(config.d_model, config) if is_there and config.norm != "none" else nn.Identity()


def rotary_frequencies(config: IclJaxConfig, layer: int) -> torch.Tensor | None:
    """By how much the pairs of a head's entries turn a position, radians; None for a layer that rotates nothing."""
    if config.positions != "rotary" or layer in config.no_rotary_layers:
        return None
    half = (config.rotary_dim or config.d_head) // 2
    pair = torch.arange(half, dtype=torch.float64)
    if config.window_rotary_base and config.window_of(layer):
        return config.window_rotary_base ** (-pair / half)
    frequencies = config.rotary_base ** (-pair / half)
    low, high, n_ctx = config.rotary_low_turns, config.rotary_high_turns, config.rotary_original_ctx
    if config.rotary_scaling == "none":
        return frequencies
    if config.rotary_scaling == "linear":
        kept = torch.zeros(half, dtype=torch.float64)
    elif config.rotary_scaling == "llama3":
        kept = ((n_ctx * frequencies / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    else:  # yarn: the pair that takes so many turns in the original context
        first, last = (half * math.log(n_ctx / (n * 2 * math.pi)) / math.log(config.rotary_base) for n in (high, low))
        first, last = max(math.floor(first), 0), min(math.ceil(last), 2 * half - 1)
        kept = 1 - ((pair - first) / max(last - first, 1e-3)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / config.rotary_factor)


def rotate(x: torch.Tensor, frequencies: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """Turn the first entries of a head, [B, H, T, E]: entry i is paired with entry i + half."""
    angle = position_ids[:, None, :, None].double() * frequencies.to(x.device)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    n = 2 * len(frequencies)
    first, second = x[..., :n].chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, x[..., n:]], dim=-1)


def alibi_slopes(n_heads: int) -> torch.Tensor:
    """By how much each head's scores fall a position of distance."""

    def of_power(n: int) -> torch.Tensor:
        return 2.0 ** (-8 * torch.arange(1, n + 1, dtype=torch.float64) / n)

    below = 2 ** int(math.log2(n_heads))
    return torch.cat([of_power(below), of_power(2 * below)[::2][: n_heads - below]])


class Attention(nn.Module):
    """Causal attention of one layer; gives its output and the pattern."""

    accepts_pattern_fn = True  # what TransformerLens asks for

    def __init__(self, config: IclJaxConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer, config.d_head
        wide, narrow, biases = config.n_heads * config.d_head, config.n_kv_heads * config.d_head, config.biases
        self.q_proj = nn.Linear(config.d_model, wide, bias="b_Q" in biases)
        self.k_proj = nn.Linear(config.d_model, narrow, bias="b_K" in biases)
        self.v_proj = nn.Linear(config.d_model, narrow, bias="b_V" in biases)
        self.o_proj = nn.Linear(wide, config.d_model, bias="b_O" in biases)
        if config.qk_norm != "none":
            is_of_heads = config.qk_norm == "head"
            self.q_norm = Norm(config.d_head if is_of_heads else wide, config)
            self.k_norm = Norm(config.d_head if is_of_heads else narrow, config)
        if config.smeared_keys:
            self.smear_alpha = nn.Parameter(torch.zeros(config.n_heads))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, heads E] to [B, heads, T, E]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        added: torch.Tensor | None = None,
        pattern_fn: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`added`: to the inputs of queries and keys. `attention_mask`: [B, T], 1 for tokens that are there.

        `pattern_fn` sees, and may replace, the pattern.
        """
        config = self.config
        read = hidden_states if added is None else hidden_states + added
        q, k, v = self.q_proj(read), self.k_proj(read), self.v_proj(hidden_states)
        if config.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = self._heads(q), self._heads(k), self._heads(v)
        if config.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        frequencies = rotary_frequencies(config, self.layer_idx)
        if frequencies is not None:
            q, k = rotate(q, frequencies, position_ids), rotate(k, frequencies, position_ids)
        k, v = (x.repeat_interleave(config.n_heads // config.n_kv_heads, dim=1) for x in (k, v))
        is_there = attention_mask.bool()
        if n := config.key_offset:
            kept, late = k[..., :-n], k[..., -n:]
            k = torch.cat([kept, _before(late, late, is_there[:, None, :, None])], dim=-1)
        if config.smeared_keys:
            own = self.smear_alpha.sigmoid()[None, :, None, None]
            k = own * k + (1 - own) * _before(k, k, is_there[:, None, :, None])
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
        if config.attn_soft_cap:
            scores = config.attn_soft_cap * torch.tanh(scores / config.attn_soft_cap)
        place = torch.arange(scores.shape[-1], device=scores.device)
        distance = place[:, None] - place[None, :]
        if config.positions == "alibi":
            slopes = alibi_slopes(config.n_heads).to(scores)
            scores = scores - slopes[:, None, None] * distance.to(scores.dtype)
        sees = distance >= 0
        if window := config.window_of(self.layer_idx):
            sees = sees & (distance < window)
        # What stands in for a token that is not there sees itself, so that no row is empty.
        sees = sees & (is_there[:, None, None, :] | (distance == 0))
        pattern = scores.masked_fill(~sees, -math.inf).float().softmax(dim=-1).to(v.dtype)
        if pattern_fn is not None:
            pattern = pattern_fn(pattern)
        return self.o_proj((pattern @ v).transpose(1, 2).flatten(2)), pattern


def _before(x: torch.Tensor, other: torch.Tensor, is_there: torch.Tensor) -> torch.Tensor:
    """What stands a place before in x, axis -2; `other` where there is nothing before."""
    has_before = F.pad(is_there[..., :-1, :], (0, 0, 1, 0))
    return torch.where(has_before, F.pad(x[..., :-1, :], (0, 0, 1, 0)), other)


def _solu(x: torch.Tensor) -> torch.Tensor:
    return x * x.softmax(dim=-1)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "silu": F.silu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "solu": _solu,
    "solu_ln": _solu,  # and a LayerNorm without weights
}


class MLP(nn.Module):
    """One hidden layer, times a gate if there is one."""

    def __init__(self, config: IclJaxConfig) -> None:
        super().__init__()
        self.activation, self.eps, biases = config.activation, config.norm_eps, config.biases
        if config.gated_mlp:
            self.gate_proj = nn.Linear(config.d_model, config.d_mlp, bias="b_gate" in biases)
        self.is_gated = config.gated_mlp
        self.up_proj = nn.Linear(config.d_model, config.d_mlp, bias="b_in" in biases)
        self.down_proj = nn.Linear(config.d_mlp, config.d_model, bias="b_out" in biases)

    def _activate(self, x: torch.Tensor) -> torch.Tensor:
        x = ACTIVATIONS[self.activation](x)
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) if self.activation == "solu_ln" else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(x)
        return self.down_proj(self._activate(self.gate_proj(x)) * up if self.is_gated else self._activate(up))


class Layer(nn.Module):
    """Attention, then the MLP if there is one; side by side in a parallel block."""

    def __init__(self, config: IclJaxConfig, layer: int) -> None:
        super().__init__()
        is_pre, is_post = config.norm_position != "post", config.norm_position != "pre"
        self.ln1, self.ln1_post = _norm(config, is_there=is_pre), _norm(config, is_there=is_post)
        self.self_attn = Attention(config, layer)
        self.parallel_residual, self.has_mlp = config.parallel_residual, config.d_mlp > 0
        if self.has_mlp:
            if self.parallel_residual != "one_norm":
                self.ln2 = _norm(config, is_there=is_pre)
            self.ln2_post = _norm(config, is_there=is_post)
            self.mlp = MLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        added: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.ln1(hidden_states)
        written, pattern = self.self_attn(x, position_ids=position_ids, attention_mask=attention_mask, added=added)
        middle = hidden_states + self.ln1_post(written)
        if not self.has_mlp:
            return middle, pattern
        if self.parallel_residual == "none":
            x = self.ln2(middle)
        elif self.parallel_residual == "two_norms":
            x = self.ln2(hidden_states)
        return middle + self.ln2_post(self.mlp(x)), pattern


class SinusoidalPositions(nn.Module):
    """Sines in the first half of the width, cosines in the second, wavelengths 2 pi to 10,000 * 2 pi."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        half = self.d_model // 2
        place = torch.arange(half, dtype=torch.float64, device=position_ids.device)
        wavenumber = 10_000.0 ** (-place / max(half - 1, 1))
        angle = position_ids[..., None].double() * wavenumber
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class Decoder(nn.Module):
    """Embedding, layers, the last norm."""

    def __init__(self, config: IclJaxConfig) -> None:
        super().__init__()
        self.positions, self.norm, self.eps = config.positions, config.norm, config.norm_eps
        if config.smear_gate:
            self.smear_gate_w = nn.Parameter(torch.zeros(config.d_model))
            self.smear_lambda = nn.Parameter(torch.zeros(()))
        self.has_gate = config.smear_gate
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        if config.position_embedding == "learned" and config.positions != "rotary":
            self.embed_positions: nn.Module = nn.Embedding(config.n_ctx, config.d_model)
        elif config.positions in ("shortformer", "standard"):
            self.embed_positions = SinusoidalPositions(config.d_model)
        self.layers = nn.ModuleList([Layer(config, layer) for layer in range(config.n_layers)])
        self.ln_final = _norm(config, is_there=True)

    def _gate(self, x: torch.Tensor) -> torch.Tensor:
        """How much of the embedding before is added to each. Source: nanochat."""
        if self.norm != "none":
            x = normalised(x, self.eps, is_centred=self.norm == "layernorm")
        return self.smear_lambda * (x @ self.smear_gate_w).sigmoid()

    def forward(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, attention_mask: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The stream before each layer and, normalised, after the last; the patterns."""
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if self.has_gate:
            x = x + self._gate(x)[..., None] * _before(x, torch.zeros_like(x), attention_mask.bool()[..., None])
        position_ids = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
        added = None
        if self.positions in ("shortformer", "standard"):
            added = self.embed_positions(position_ids).to(x.dtype)
        if self.positions == "standard":
            x, added = x + added, None
        streams, patterns = [x], []
        for layer in self.layers:
            x, pattern = layer(x, position_ids=position_ids, attention_mask=attention_mask, added=added)
            streams.append(x)
            patterns.append(pattern)
        streams[-1] = self.ln_final(x)
        return streams, patterns


class IclJaxForCausalLM(PreTrainedModel, GenerationMixin):
    """Logits of the next token."""

    config_class = IclJaxConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _no_split_modules = ["Layer"]  # noqa: RUF012 - transformers' own way

    def __init__(self, config: IclJaxConfig) -> None:
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias="b_U" in config.biases)
        self._tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"} if config.tied_unembedding else {}
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_kwargs: Any
    ) -> dict[str, Any]:
        """The whole row: nothing of it is kept between tokens."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_kwargs: Any,
    ) -> CausalLMOutput | tuple[torch.Tensor, ...]:
        """Logits, and with `labels` (the row itself, -100 for what does not count) their mean loss in nats."""
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None, "input_ids or inputs_embeds"
        if attention_mask is None:
            attention_mask = torch.ones(given.shape[:2], dtype=torch.long, device=given.device)
        streams, patterns = self.model(input_ids, inputs_embeds, attention_mask)
        logits = self.lm_head(streams[-1]).float()
        if cap := self.config.logit_soft_cap:
            logits = cap * torch.tanh(logits / cap)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        found = CausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=tuple(streams) if _asked(output_hidden_states, self.config, "output_hidden_states") else None,
            attentions=tuple(patterns) if _asked(output_attentions, self.config, "output_attentions") else None,
        )
        return found.to_tuple() if return_dict is False else found


def _asked(given: bool | None, config: IclJaxConfig, name: str) -> bool:
    return bool(getattr(config, name, False)) if given is None else given
