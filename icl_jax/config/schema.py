"""The configuration of a run: frozen dataclasses that check themselves.

Every field can be set in a TOML file (``[model] n_layers = 2``) and overridden on the command line
(``--model.n-layers 3``). Field comments are the ``--help`` texts; marks (see
:mod:`~icl_jax.config.sameness`) say which fields make no other run. A value that cannot work raises
:class:`~icl_jax.config.errors.UserError` naming the field, the value and what is allowed.
"""

import dataclasses
import html
import math
import re
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from icl_jax.config.errors import UserError
from icl_jax.config.sameness import FREE, SEED


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise UserError(f"{name} = {value!r}: {allowed}")


def _check_types(section: str, config: Any) -> None:
    """Check each field against its annotation: bool, int, float, str or a Literal of strings."""
    for name, annotation in get_type_hints(type(config)).items():
        value = getattr(config, name)
        choices = get_args(annotation)
        if choices:
            allowed = "must be one of " + ", ".join(repr(choice) for choice in choices)
            _require(isinstance(value, str) and value in choices, f"{section}.{name}", value, allowed)
        elif annotation is float:
            is_number = isinstance(value, float) or _is_whole(value)
            _require(is_number and math.isfinite(value), f"{section}.{name}", value, "must be a finite number")
            object.__setattr__(config, name, float(value))
        elif annotation is int:
            _require(_is_whole(value), f"{section}.{name}", value, "must be a whole number of at most 64 bits")
        elif annotation is bool:
            _require(isinstance(value, bool), f"{section}.{name}", value, "must be true or false")
        else:
            _require(_is_text(value), f"{section}.{name}", value, "must be a string of valid Unicode")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_text(value: object) -> bool:
    # Bytes of a command line that are not UTF-8 arrive as lone surrogates, which no file can hold.
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A transformer with 0 to N layers, attention-only or with MLPs."""

    n_layers: int = 2
    """Number of layers; 0 leaves embedding and unembedding, a bigram model."""
    d_model: int = 64
    """Width of the residual stream."""
    n_heads: int = 4
    """Attention heads per layer; must divide d_model."""
    d_mlp: int = 0
    """Width of the MLP's hidden layer; 0 makes the model attention-only."""
    n_ctx: int = 128
    """Tokens that the model sees, the BOS token included."""
    vocab_size: int = 64
    """Number of token ids."""
    positions: Literal["shortformer", "rotary", "standard"] = "shortformer"
    """shortformer: added to the inputs of Q and K only (the papers'); standard: added to the residual stream."""
    position_embedding: Literal["sinusoidal", "learned"] = "sinusoidal"
    """How shortformer and standard positions are embedded; rotary ignores it."""
    smeared_keys: bool = False
    """Mix each key with the one before it, by one trained number per head (Olsson et al. 2022, Argument 2)."""
    norm: Literal["layernorm", "rmsnorm", "none"] = "rmsnorm"
    """Normalisation before each attention, MLP and the unembedding."""
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
        _check_types("model", self)
        _require(self.n_layers >= 0, "model.n_layers", self.n_layers, "must be 0 or more")
        for name in ("d_model", "n_heads", "vocab_size", "n_ctx"):
            _require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "must be 1 or more")
        _require(self.vocab_size >= 2, "model.vocab_size", self.vocab_size, "must be 2 or more")
        _require(self.n_ctx >= 2, "model.n_ctx", self.n_ctx, "must be 2 or more")
        _require(
            self.d_model % self.n_heads == 0,
            "model.d_model",
            self.d_model,
            f"must be divisible by model.n_heads = {self.n_heads}",
        )
        _require(self.d_mlp >= 0, "model.d_mlp", self.d_mlp, "must be 0 (attention-only) or more")
        _require(self.loss_chunk >= 0, "model.loss_chunk", self.loss_chunk, "must be 0 (what is fastest) or more")
        _require(self.init_std > 0, "model.init_std", self.init_std, "must be greater than 0")
        if self.positions == "rotary":
            allowed = "must be even with model.positions = 'rotary'"
            _require(self.d_head % 2 == 0, "model.d_model // model.n_heads", self.d_head, allowed)
        elif self.position_embedding == "sinusoidal":
            allowed = "must be even with sinusoidal positions"
            _require(self.d_model % 2 == 0, "model.d_model", self.d_model, allowed)

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads


_GENERATED = ("repeats", "patterns", "stories", "markov", "triggers", "classes")
_MAX_CHAIN_ENTRIES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the rows of tokens come from."""

    source: str = "repeats"
    """repeats | patterns | stories | markov | triggers | classes | python | text:PATH-OR-GLOB |
    `tfds:NAME[/CONFIG][:VERSION]`"""
    field: str = "text"
    """The text feature of a TensorFlow Datasets set."""
    split: str = "train"
    """The split of a TensorFlow Datasets set, TFDS slicing syntax allowed."""
    data_dir: str = dataclasses.field(default="", metadata=FREE)
    """Folder of prepared TensorFlow Datasets sets; empty: TFDS's own default."""
    tokenizer: str = "bpe"
    """bpe (a byte-level BPE of model.vocab_size tokens trained on the corpus) | PATH.json | a hub name such as gpt2"""
    held_out_rows: int = 512
    """Rows split off first and never trained on."""
    seed: int = dataclasses.field(default=0, metadata=SEED)
    """Fixes the split, the order of rows and everything generated."""
    phrase_len: int = 8
    """repeats: tokens in each of a row's fresh phrases."""
    n_phrases: int = 2
    """repeats: fresh phrases per row."""
    phrase_prob: float = 0.2
    """repeats: chance that a phrase starts at a free position."""
    chain_order: int = 1
    """markov: states that the next state depends on."""
    chain_prior: Literal["dirichlet", "doubly_stochastic", "unigram"] = "dirichlet"
    """markov: dirichlet: any chain; doubly_stochastic: all states equally common; unigram: independent states."""
    n_triggers: int = 5
    """triggers: characters whose successor is the row's own."""
    trigger_choice: Literal["fixed", "random"] = "fixed"
    """triggers: fixed: the most common characters in every row; random: drawn for each row."""
    n_classes: int = 2048
    """classes: classes of training rows."""
    n_labels: int = 32
    """classes: labels that they share."""
    burstiness: int = 2
    """classes: times that each class of a bursty row stands in its context."""
    bursty: float = 1.0
    """classes: share of training rows that are bursty."""

    def __post_init__(self) -> None:
        _check_types("data", self)
        kind, _, rest = self.source.partition(":")
        is_known = self.source in _GENERATED or self.source == "python" or (kind in ("text", "tfds") and bool(rest))
        names = ", ".join(repr(name) for name in (*_GENERATED, "python", "text:PATH-OR-GLOB"))
        allowed = f"must be {names} or 'tfds:NAME[/CONFIG][:VERSION]'"
        _require(is_known, "data.source", self.source, allowed)
        for name in ("field", "split", "tokenizer"):
            _require(bool(getattr(self, name)), f"data.{name}", getattr(self, name), "must not be empty")
        _require(self.held_out_rows >= 1, "data.held_out_rows", self.held_out_rows, "must be 1 or more")
        _require(0 <= self.seed < 2**63, "data.seed", self.seed, "must be from 0 to 2**63 - 1")
        _require(self.phrase_len >= 2, "data.phrase_len", self.phrase_len, "must be 2 or more")
        _require(self.n_phrases >= 1, "data.n_phrases", self.n_phrases, "must be 1 or more")
        _require(0 < self.phrase_prob <= 1, "data.phrase_prob", self.phrase_prob, "must be in (0, 1]")
        _require(self.chain_order >= 1, "data.chain_order", self.chain_order, "must be 1 or more")
        allowed = "must be 1 with data.chain_prior = 'doubly_stochastic'"
        is_defined = self.chain_prior != "doubly_stochastic" or self.chain_order == 1
        _require(is_defined, "data.chain_order", self.chain_order, allowed)
        _require(1 <= self.n_triggers <= 60, "data.n_triggers", self.n_triggers, "must be from 1 to 60")
        for name in ("n_classes", "n_labels", "burstiness"):
            _require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "must be 1 or more")
        _require(0 <= self.bursty <= 1, "data.bursty", self.bursty, "must be from 0 to 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Length of the run and how its steps are shared among devices."""

    n_steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 32
    """Rows per step over all devices and processes."""
    accum_steps: int = 1
    """Micro-batches that each device's share of the batch is cut into (gradient accumulation)."""
    seed: int = dataclasses.field(default=0, metadata=SEED)
    """Seed of the initial parameters."""
    parallel: Literal["pmap", "mesh"] = dataclasses.field(default="pmap", metadata=FREE)
    """pmap: replicated parameters; mesh: jax.jit over a Mesh with data and fsdp axes."""
    fsdp: int = dataclasses.field(default=1, metadata=FREE)
    """mesh: devices that share one copy of the parameters."""
    flush_every_s: float = dataclasses.field(default=5.0, metadata=FREE)
    """Seconds of record that a kill can lose (they are computed again on resuming)."""

    def __post_init__(self) -> None:
        _check_types("train", self)
        for name in ("n_steps", "batch_size", "accum_steps", "fsdp"):
            _require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "must be 1 or more")
        _require(self.n_steps < 2**31, "train.n_steps", self.n_steps, "must be less than 2**31")
        _require(self.flush_every_s >= 0, "train.flush_every_s", self.flush_every_s, "must be 0 or more")
        _require(0 <= self.seed < 2**32, "train.seed", self.seed, "must be from 0 to 2**32 - 1")
        allowed = f"must be divisible by train.accum_steps = {self.accum_steps}"
        _require(self.batch_size % self.accum_steps == 0, "train.batch_size", self.batch_size, allowed)
        allowed = "must be 1 unless train.parallel = 'mesh'"
        _require(self.fsdp == 1 or self.parallel == "mesh", "train.fsdp", self.fsdp, allowed)

    def rows_per_device(self, n_devices: int) -> int:
        """Rows of a micro-batch on one device. Raises UserError where the batch does not divide evenly."""
        n_parts = n_devices * self.accum_steps
        allowed = f"must be divisible by {n_devices} devices x train.accum_steps = {self.accum_steps}"
        _require(self.batch_size % n_parts == 0, "train.batch_size", self.batch_size, allowed)
        allowed = f"must divide the number of devices, {n_devices}"
        _require(n_devices % self.fsdp == 0, "train.fsdp", self.fsdp, allowed)
        return self.batch_size // n_parts


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW, by optax. Weight decay leaves out vectors (norm weights) and smear alphas."""

    lr: float = 3e-3
    """Peak learning rate."""
    warmup_steps: int = 100
    """Steps of linear warm-up from 0."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up."""
    final_lr_fraction: float = 0.1
    """cosine: learning rate at the last step, as a fraction of the peak."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.98
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay, multiplied by the learning rate."""
    decay_change_step: int = -1
    """Step from which weight decay is multiplied by decay_change_factor; -1: never."""
    decay_change_factor: float = 1.0
    """See decay_change_step."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0: no clipping."""

    def __post_init__(self) -> None:
        _check_types("optimizer", self)
        _require(self.lr > 0, "optimizer.lr", self.lr, "must be greater than 0")
        _require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "must be 0 or more")
        for name in ("b1", "b2"):
            _require(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "must be in [0, 1)")
        _require(self.eps > 0, "optimizer.eps", self.eps, "must be greater than 0")
        for name in ("weight_decay", "clip_norm", "decay_change_factor"):
            _require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "must be 0 or more")
        fraction = self.final_lr_fraction
        _require(0 <= fraction <= 1, "optimizer.final_lr_fraction", fraction, "must be in [0, 1]")
        _require(
            self.decay_change_step >= -1, "optimizer.decay_change_step", self.decay_change_step, "must be -1 or more"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotConfig:
    """When parameters are kept for analysis and the full state for resuming."""

    n_linear: int = 100
    """Snapshots spaced evenly over the run."""
    n_log: int = 100
    """Snapshots spaced evenly in the logarithm of the step; the two sets are joined, step 0 and the last added."""
    state_every_s: float = dataclasses.field(default=300.0, metadata=FREE)
    """Seconds between saves of the full state; it is also saved on SIGTERM, SIGINT and at the end."""
    keep_states: int = dataclasses.field(default=2, metadata=FREE)
    """Full states kept on disk."""

    def __post_init__(self) -> None:
        _check_types("snapshots", self)
        for name in ("n_linear", "n_log"):
            _require(getattr(self, name) >= 0, f"snapshots.{name}", getattr(self, name), "must be 0 or more")
        _require(self.state_every_s > 0, "snapshots.state_every_s", self.state_every_s, "must be greater than 0")
        _require(self.keep_states >= 1, "snapshots.keep_states", self.keep_states, "must be 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """The live measures, taken during training on their own schedule."""

    n_probes: int = 50
    """Times that the probes are taken, evenly spaced, step 0 and the last included; 0: never."""
    held_out_rows: int = 128
    """Held-out rows that the ICL score is measured on."""
    n_sequences: int = 10
    """Sequences for prefix matching and previous-token score (Olsson et al. 2022, appendix: 10)."""
    repeat_len: int = 25
    """Random tokens in a repeated block (Olsson et al. 2022, appendix: 25); cut down where n_ctx is too short."""
    n_repeats: int = 4
    """Times the block stands in a sequence (Olsson et al. 2022, appendix: 4)."""

    def __post_init__(self) -> None:
        _check_types("probes", self)
        _require(self.n_probes >= 0, "probes.n_probes", self.n_probes, "must be 0 or more")
        for name in ("held_out_rows", "n_sequences"):
            _require(getattr(self, name) >= 1, f"probes.{name}", getattr(self, name), "must be 1 or more")
        _require(self.repeat_len >= 2, "probes.repeat_len", self.repeat_len, "must be 2 or more")
        _require(self.n_repeats >= 2, "probes.n_repeats", self.n_repeats, "must be 2 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackerConfig:
    """Weights & Biases. The record on disk is the truth; this is a view of it."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online if the user is logged in, else disabled."""
    project: str = "icl_jax"
    """W&B project."""
    entity: str = ""
    """W&B team or user; empty: W&B's default."""
    group: str = ""
    """W&B group; empty: a suite's or sweep's name, else none."""
    job_type: str = ""
    """W&B job type; empty: the name of a suite's member, else none."""
    every_steps: int = 10
    """Steps between points sent to W&B."""
    artifacts: bool = False
    """Keep each snapshot as a W&B artifact too, by reference where the run directory is in a bucket."""

    def __post_init__(self) -> None:
        _check_types("tracker", self)
        _require(bool(self.project), "tracker.project", self.project, "must not be empty")
        _require(self.every_steps >= 1, "tracker.every_steps", self.every_steps, "must be 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchConfig:
    """Where a config is meant to run; changes no number of a run."""

    topology: str = ""
    """TPU slice, such as v5e:4x4 or v5p:4x4x8; empty: whatever devices there are."""

    def __post_init__(self) -> None:
        _check_types("launch", self)
        allowed = "must be a TPU slice such as 'v5e:4x4' or 'v5p:4x4x8', or empty"
        _require(re.fullmatch(_TOPOLOGY, self.topology) is not None, "launch.topology", self.topology, allowed)

    @property
    def n_chips(self) -> int:
        """Chips of the slice; 0 without one."""
        return math.prod(int(n) for n in self.topology.partition(":")[2].split("x")) if self.topology else 0


# v5e and v6e slices are flat, v4 and v5p slices have three sides.
_TOPOLOGY = r"(v(5e|6e):[1-9]\d{0,2}(x[1-9]\d{0,2})|v(4|5p):[1-9]\d{0,2}(x[1-9]\d{0,2}){2})?"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything that fixes a run."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    snapshots: SnapshotConfig = dataclasses.field(default_factory=SnapshotConfig)
    probes: ProbeConfig = dataclasses.field(default_factory=ProbeConfig)
    tracker: TrackerConfig = dataclasses.field(default_factory=TrackerConfig, metadata=FREE)
    launch: LaunchConfig = dataclasses.field(default_factory=LaunchConfig, metadata=FREE)

    def __post_init__(self) -> None:
        allowed = f"must be less than model.n_ctx = {self.model.n_ctx}"
        if self.data.source == "repeats":
            _require(self.data.phrase_len < self.model.n_ctx, "data.phrase_len", self.data.phrase_len, allowed)
            _require(
                self.model.vocab_size >= 4, "model.vocab_size", self.model.vocab_size, "must be 4 or more for repeats"
            )
        if self.data.source == "markov":
            order, n_states = self.data.chain_order, self.model.vocab_size - 1
            allowed = "must be 3 or more for markov: BOS and at least two states"
            _require(n_states >= 2, "model.vocab_size", self.model.vocab_size, allowed)
            _require(
                n_states ** (order + 1) <= _MAX_CHAIN_ENTRIES, "model.vocab_size", self.model.vocab_size,
                f"must be smaller: {n_states} ** (data.chain_order + 1) chances are more than {_MAX_CHAIN_ENTRIES}",
            )  # fmt: skip
            allowed = f"must be at most model.n_ctx - 2 = {self.model.n_ctx - 2}"
            _require(order <= self.model.n_ctx - 2, "data.chain_order", order, allowed)
        allowed = f"must be at most train.n_steps = {self.train.n_steps}"
        _require(
            self.optimizer.warmup_steps <= self.train.n_steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            allowed,
        )
        allowed = f"must be at most data.held_out_rows = {self.data.held_out_rows}"
        _require(
            self.probes.held_out_rows <= self.data.held_out_rows,
            "probes.held_out_rows",
            self.probes.held_out_rows,
            allowed,
        )

    @property
    def tokens_per_step(self) -> int:
        """Predicted tokens per step: rows times positions."""
        return self.train.batch_size * self.model.n_ctx

    def _repr_html_(self) -> str:
        """The config in a notebook: its TOML file."""
        from icl_jax.config.toml import dump_config

        return f"<pre>{html.escape(dump_config(self))}</pre>"


SECTIONS = tuple(f.name for f in fields(Config))
