"""What a model is: the section ``[model]`` of a config."""

from dataclasses import dataclass
from typing import Literal, get_args

from icl_jax.config.checks import check_types, require

Bias = Literal["b_Q", "b_K", "b_V", "b_O", "b_in", "b_gate", "b_out", "b_U"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A transformer with 0 to N layers, attention-only or with MLPs."""

    n_layers: int = 2
    """Number of layers; 0 leaves embedding and unembedding, a bigram model."""
    d_model: int = 64
    """Width of the residual stream."""
    n_heads: int = 4
    """Attention heads per layer."""
    d_head: int = 0
    """Width of a head; 0: d_model / n_heads."""
    n_kv_heads: int = 0
    """Heads of keys and values, each shared by n_heads / n_kv_heads heads in a row; 0: n_heads."""
    d_mlp: int = 0
    """Width of the MLP's hidden layer; 0 makes the model attention-only."""
    activation: Literal["gelu_tanh", "gelu", "silu", "relu", "relu2", "solu", "solu_ln"] = "gelu_tanh"
    """Of the MLP; gelu_tanh approximates gelu, relu2 is relu squared, solu_ln a LayerNorm without weights of solu."""
    gated_mlp: bool = False
    """The MLP's hidden layer is activation(x W_gate) times x W_in, entry by entry."""
    biases: tuple[Bias, ...] = ()
    """Biases that the model has: any of b_Q b_K b_V b_O b_in b_gate b_out b_U."""
    n_ctx: int = 128
    """Tokens that the model sees, the BOS token included."""
    vocab_size: int = 64
    """Number of token ids."""
    positions: Literal["shortformer", "rotary", "standard", "alibi"] = "shortformer"
    """shortformer: added to the inputs of Q and K only (the papers'); standard: added to the residual stream; alibi:
    scores fall with the distance."""
    position_embedding: Literal["sinusoidal", "learned"] = "sinusoidal"
    """How shortformer and standard positions are embedded; the others ignore it."""
    rotary_base: float = 10_000.0
    """Rotary: entry pair i of n turns by rotary_base ** (-i / n) a position."""
    rotary_dim: int = 0
    """Rotary: so many entries of a head turn, the first ones; 0: all."""
    rotary_scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    """How a longer context slows the rotation: linear all of it, llama3 and yarn where it takes few turns."""
    rotary_factor: float = 1.0
    """Rotary scaling: slowed so many times."""
    rotary_original_ctx: int = 0
    """llama3, yarn: tokens of the context before it was lengthened."""
    rotary_low_turns: float = 1.0
    """llama3, yarn: what turns less often than this in the original context is slowed in full (yarn: beta_slow)."""
    rotary_high_turns: float = 4.0
    """llama3, yarn: what turns more often than this is not slowed (llama3: 4, yarn: beta_fast, 32)."""
    no_rotary_layers: tuple[int, ...] = ()
    """Rotary: layers that rotate nothing, counted from 0."""
    window: int = 0
    """Tokens that a query sees, its own among them; 0: all before it."""
    window_layers: tuple[int, ...] = ()
    """Layers with the window, counted from 0; empty: all."""
    window_rotary_base: float = 0.0
    """Rotary: base of the layers with the window, which then take no scaling; 0: as the others."""
    smeared_keys: bool = False
    """Mix each key with the one before it, by one trained number per head (Olsson et al. 2022, Argument 2)."""
    key_offset: int = 0
    """The last entries of each key, so many, are those of the key before (modded-nanogpt: half of a head); 0: none."""
    smear_gate: bool = False
    """Add the embedding before to each embedding, through a gate that reads the embedding (nanochat)."""
    qk_norm: Literal["none", "head", "all"] = "none"
    """Normalise queries and keys before they are rotated: each head by itself, or all of a layer together."""
    attn_soft_cap: float = 0.0
    """Attention scores s become c tanh(s / c); 0: as they are."""
    logit_soft_cap: float = 0.0
    """Logits l become c tanh(l / c); 0: as they are."""
    norm: Literal["layernorm", "rmsnorm", "none"] = "rmsnorm"
    """Normalisation of what attention, MLP and unembedding read, or see norm_position."""
    norm_position: Literal["pre", "post", "both"] = "pre"
    """pre: of what attention and MLP read; post: of what they write; both. The unembedding's input has one always."""
    norm_eps: float = 1e-5
    """Added to the mean square under the norms' root."""
    parallel_residual: Literal["none", "one_norm", "two_norms"] = "none"
    """The MLP reads the stream as attention does, through the same norm or one of its own, and not after it."""
    tied_unembedding: bool = False
    """Use the transposed embedding as the unembedding."""
    init_std: float = 0.02
    """Standard deviation of the initial weights (normal)."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the activations; parameters and loss are always float32."""
    attention: Literal["auto", "reference", "blocked", "cudnn", "splash"] = "auto"
    """Implementation of attention; auto takes the fastest measured for the platform."""
    loss_chunk: int = 0
    """Tokens per chunk of the unembedding and cross-entropy, which bounds the memory of logits; 0: what is fastest."""

    def __post_init__(self) -> None:
        check_types("model", self, is_float32=True)
        for name in ("n_layers", "d_head", "n_kv_heads", "rotary_dim", "rotary_original_ctx", "window", "key_offset"):
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "must be 0 or more")
        for name in ("d_model", "n_heads", "vocab_size", "n_ctx"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "must be 1 or more")
        require(self.vocab_size >= 2, "model.vocab_size", self.vocab_size, "must be 2 or more")
        require(self.n_ctx >= 2, "model.n_ctx", self.n_ctx, "must be 2 or more")
        allowed = f"must be divisible by model.n_heads = {self.n_heads}, or set model.d_head"
        require(bool(self.d_head) or self.d_model % self.n_heads == 0, "model.d_model", self.d_model, allowed)
        allowed = f"must divide model.n_heads = {self.n_heads}"
        require(self.n_heads % self.key_heads == 0, "model.n_kv_heads", self.n_kv_heads, allowed)
        require(self.d_mlp >= 0, "model.d_mlp", self.d_mlp, "must be 0 (attention-only) or more")
        require(self.loss_chunk >= 0, "model.loss_chunk", self.loss_chunk, "must be 0 (what is fastest) or more")
        for name in ("init_std", "norm_eps", "rotary_base", "rotary_factor", "rotary_low_turns"):
            require(getattr(self, name) > 0, f"model.{name}", getattr(self, name), "must be greater than 0")
        for name in ("window", "rotary_original_ctx"):
            require(getattr(self, name) < 2**31, f"model.{name}", getattr(self, name), "must be less than 2**31")
        for name in ("attn_soft_cap", "logit_soft_cap", "window_rotary_base"):
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "must be 0 or more")
        self._check_parts()
        self._check_positions()
        self._check_attention()

    def _check_parts(self) -> None:
        """Options of a part go with the part, so that none is silently ignored."""
        for name in ("b_in", "b_gate", "b_out"):
            allowed = f"{name} only with model.d_mlp > 0"
            require(name not in self.biases or self.d_mlp > 0, "model.biases", self.biases, allowed)
        allowed = "b_gate only with model.gated_mlp = true"
        require("b_gate" not in self.biases or self.gated_mlp, "model.biases", self.biases, allowed)
        require(len(set(self.biases)) == len(self.biases), "model.biases", self.biases, "must name each once")
        # In one order, so that two configs of one model are equal.
        object.__setattr__(self, "biases", tuple(name for name in get_args(Bias) if name in self.biases))
        for name, plain in (("gated_mlp", False), ("parallel_residual", "none")):
            value = getattr(self, name)
            require(value == plain or self.d_mlp > 0, f"model.{name}", value, "only with model.d_mlp > 0")
        for name, plain in (("qk_norm", "none"), ("norm_position", "pre"), ("parallel_residual", "none")):
            value = getattr(self, name)
            is_used = name == "parallel_residual" or self.norm != "none"
            require(value == plain or is_used, f"model.{name}", value, "not with model.norm = 'none'")
        allowed = "only with model.norm_position = 'pre'"
        is_pre = self.parallel_residual != "one_norm" or self.norm_position == "pre"
        require(is_pre, "model.parallel_residual", self.parallel_residual, allowed)

    def _check_positions(self) -> None:
        if self.positions == "rotary":
            n = self.rotary_dim or self.head_width
            allowed = "must be even with model.positions = 'rotary'"
            name = "rotary_dim" if self.rotary_dim else "d_head" if self.d_head else "d_model // model.n_heads"
            require(n % 2 == 0, f"model.{name}", n, allowed)
            allowed = f"must be at most the width of a head, {self.head_width}"
            require(self.rotary_dim <= self.head_width, "model.rotary_dim", self.rotary_dim, allowed)
            if self.rotary_scaling in ("llama3", "yarn"):
                allowed = f"must be 1 or more with model.rotary_scaling = {self.rotary_scaling!r}"
                require(self.rotary_original_ctx >= 1, "model.rotary_original_ctx", self.rotary_original_ctx, allowed)
                allowed = f"must be greater than model.rotary_low_turns = {self.rotary_low_turns}"
                require(
                    self.rotary_high_turns > self.rotary_low_turns,
                    "model.rotary_high_turns", self.rotary_high_turns, allowed,
                )  # fmt: skip
        elif self.has_position_embedding and self.position_embedding == "sinusoidal":
            allowed = "must be even with sinusoidal positions"
            require(self.d_model % 2 == 0, "model.d_model", self.d_model, allowed)
        if self.positions != "rotary":
            for name, plain in (
                ("rotary_base", 10_000.0), ("rotary_dim", 0), ("rotary_scaling", "none"), ("no_rotary_layers", ()),
                ("window_rotary_base", 0.0),
            ):  # fmt: skip
                value = getattr(self, name)
                require(value == plain, f"model.{name}", value, "only with model.positions = 'rotary'")
        allowed = "only with model.rotary_scaling"
        is_scaled = self.rotary_scaling != "none"
        require(is_scaled or self.rotary_factor == 1, "model.rotary_factor", self.rotary_factor, allowed)
        for name in ("no_rotary_layers", "window_layers"):
            value = tuple(sorted(set(getattr(self, name))))
            object.__setattr__(self, name, value)
            allowed = f"must be layers from 0 to model.n_layers - 1 = {self.n_layers - 1}"
            require(all(0 <= layer < self.n_layers for layer in value), f"model.{name}", value, allowed)

    def _check_attention(self) -> None:
        allowed = f"must be at most the width of a head, {self.head_width}"
        require(self.key_offset <= self.head_width, "model.key_offset", self.key_offset, allowed)
        for name in ("window_layers", "window_rotary_base"):
            value = getattr(self, name)
            require(not value or self.window > 0, f"model.{name}", value, "only with model.window > 0")
        allowed = "must be 'auto', 'reference' or 'blocked' with model.window"
        is_plain = not self.window or self.attention in ("auto", "reference", "blocked")
        require(is_plain, "model.attention", self.attention, allowed)
        allowed = "must be 'auto' or 'reference' with model.attn_soft_cap or model.positions = 'alibi'"
        is_plain = not self.changes_scores or self.attention in ("auto", "reference")
        require(is_plain, "model.attention", self.attention, allowed)

    @property
    def head_width(self) -> int:
        """Width of a head, E: `d_head`, or what it stands for."""
        return self.d_head or self.d_model // self.n_heads

    @property
    def key_heads(self) -> int:
        """Heads of keys and values, G: `n_kv_heads`, or what it stands for."""
        return self.n_kv_heads or self.n_heads

    @property
    def has_position_embedding(self) -> bool:
        """Positions are vectors that are added to something."""
        return self.positions in ("shortformer", "standard")

    @property
    def keys_hold_tokens_before(self) -> bool:
        """A key of the first layer holds something of the token before, so that its heads can match prefixes."""
        return self.smeared_keys or self.key_offset > 0 or self.smear_gate

    @property
    def changes_scores(self) -> bool:
        """Something happens to attention scores besides division by sqrt(d_head)."""
        return self.attn_soft_cap > 0 or self.positions == "alibi"

    @property
    def layers_are_alike(self) -> bool:
        """All layers compute the same of their parameters, so that one program serves all."""
        every = set(range(self.n_layers))
        return all(not layers or set(layers) == every for layers in (self.no_rotary_layers, self.window_layers))

    def window_of(self, layer: int) -> int:
        """Tokens that a query of the layer sees; 0: all before it."""
        return self.window if not self.window_layers or layer in self.window_layers else 0
