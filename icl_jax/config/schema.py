"""The configuration of a run: frozen dataclasses that check themselves.

Every field can be set in a TOML file (``[model] n_layers = 2``) and overridden on the command line
(``--model.n-layers 3``). Field comments are the ``--help`` texts; marks (see
:mod:`~icl_jax.config.sameness`) say which fields make no other run. A value that cannot work raises
:class:`~icl_jax.config.errors.UserError` naming the field, the value and what is allowed.
"""

import html
import math
import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from icl_jax.config.checks import check_types, require
from icl_jax.config.corpora import Options, corpus_kind, corpus_name
from icl_jax.config.interventions import Intervention, check_all, read
from icl_jax.config.members import ROWS, SEEDS, MembersConfig, Setting
from icl_jax.config.model import ModelConfig
from icl_jax.config.sameness import FREE, SEED
from icl_jax.config.tpus import TOPOLOGY

_Options = TypeVar("_Options", bound=Options)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the rows of tokens come from."""

    source: str = "repeats"
    """The corpus; its own options are those of its table, such as [data.repeats]."""
    tokenizer: str = "bpe"
    """bpe (a byte-level BPE of model.vocab_size tokens trained on the corpus) | PATH.json | a hub name such as gpt2"""
    held_out_rows: int = 512
    """Rows split off first and never trained on."""
    seed: int = field(default=0, metadata=SEED)
    """Fixes the split, the order of rows and everything generated."""
    options: Options = field(default=Options())
    """The table of the corpus; its defaults, unless given."""

    def __post_init__(self) -> None:
        check_types("data", self)
        options = corpus_kind(self.corpus).options
        if type(self.options) is Options:
            object.__setattr__(self, "options", options())
        allowed = f"must be {options.__name__} with data.source = {self.source!r}"
        require(type(self.options) is options, "data.options", self.options, allowed)
        require(bool(self.tokenizer), "data.tokenizer", self.tokenizer, "must not be empty")
        require(self.held_out_rows >= 1, "data.held_out_rows", self.held_out_rows, "must be 1 or more")
        require(0 <= self.seed < 2**63, "data.seed", self.seed, "must be from 0 to 2**63 - 1")

    @property
    def corpus(self) -> str:
        """Name of the corpus: the source without what follows its colon. Raises UserError."""
        return corpus_name(self.source)

    def options_of(self, cls: type[_Options]) -> _Options:
        """The options, which must be of this class: TypeError, where they are another corpus's."""
        if not isinstance(self.options, cls):
            raise TypeError(f"data.source = {self.source!r} has no {cls.__name__}")
        return self.options


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Length of the run and how its steps are shared among devices."""

    n_steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 32
    """Rows per step over all devices and processes."""
    accum_steps: int = 1
    """Micro-batches that each device's share of the batch is cut into (gradient accumulation)."""
    loss_from: int = 0
    """First position whose loss is trained on, for rows whose answers stand at their end; the record keeps all."""
    seed: int = field(default=0, metadata=SEED)
    """Seed of the initial parameters."""
    parallel: Literal["pmap", "mesh"] = field(default="pmap", metadata=FREE)
    """pmap: replicated parameters; mesh: jax.jit over a Mesh with data and fsdp axes."""
    fsdp: int = field(default=1, metadata=FREE)
    """mesh: devices that share one copy of the parameters."""
    flush_every_s: float = field(default=5.0, metadata=FREE)
    """Seconds of record that a kill can lose (they are computed again on resuming)."""

    def __post_init__(self) -> None:
        check_types("train", self)
        for name in ("n_steps", "batch_size", "accum_steps", "fsdp"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "must be 1 or more")
        require(self.n_steps < 2**31, "train.n_steps", self.n_steps, "must be less than 2**31")
        require(self.loss_from >= 0, "train.loss_from", self.loss_from, "must be 0 or more")
        require(self.flush_every_s >= 0, "train.flush_every_s", self.flush_every_s, "must be 0 or more")
        require(0 <= self.seed < 2**32, "train.seed", self.seed, "must be from 0 to 2**32 - 1")
        allowed = f"must be divisible by train.accum_steps = {self.accum_steps}"
        require(self.batch_size % self.accum_steps == 0, "train.batch_size", self.batch_size, allowed)
        allowed = "must be 1 unless train.parallel = 'mesh'"
        require(self.fsdp == 1 or self.parallel == "mesh", "train.fsdp", self.fsdp, allowed)

    def rows_per_device(self, n_devices: int) -> int:
        """Rows of a micro-batch on one device. Raises UserError where the batch does not divide evenly."""
        n_parts = n_devices * self.accum_steps
        allowed = f"must be divisible by {n_devices} devices x train.accum_steps = {self.accum_steps}"
        require(self.batch_size % n_parts == 0, "train.batch_size", self.batch_size, allowed)
        allowed = f"must divide the number of devices, {n_devices}"
        require(n_devices % self.fsdp == 0, "train.fsdp", self.fsdp, allowed)
        return self.batch_size // n_parts


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """An optimiser of optax. Weight decay leaves out vectors (norm weights) and smear alphas."""

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    """sgd: with momentum b1; muon: of momentum b1 for the matrices of layers, Adam for the rest."""
    lr: float = 3e-3
    """Peak learning rate."""
    warmup_steps: int = 100
    """Steps of linear warm-up from 0."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up."""
    final_lr_fraction: float = 0.1
    """cosine: learning rate at the last step, as a fraction of the peak."""
    schedule_steps: int = 0
    """cosine: steps that it is laid out for, so that a shorter run is the beginning of that one; 0: train.n_steps."""
    b1: float = 0.9
    """Decay of the first moment; sgd and muon: momentum."""
    b2: float = 0.98
    """Decay of the second moment; sgd has none."""
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
        check_types("optimizer", self, is_float32=True)
        require(self.lr > 0, "optimizer.lr", self.lr, "must be greater than 0")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "must be 0 or more")
        steps = self.schedule_steps
        require(0 <= steps < 2**31, "optimizer.schedule_steps", steps, "must be 0 or more, and less than 2**31")
        for name in ("b1", "b2"):
            # The next float32 below 1 is 2**-24 away: what lies nearer becomes 1, and the moments never settle.
            allowed = "must be in [0, 1), and not 1 in float32"
            require(0 <= getattr(self, name) < 1 - 2**-25, f"optimizer.{name}", getattr(self, name), allowed)
        require(self.eps > 0, "optimizer.eps", self.eps, "must be greater than 0")
        for name in ("weight_decay", "clip_norm", "decay_change_factor"):
            require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "must be 0 or more")
        fraction = self.final_lr_fraction
        require(0 <= fraction <= 1, "optimizer.final_lr_fraction", fraction, "must be in [0, 1]")
        require(
            -1 <= self.decay_change_step < 2**31,
            "optimizer.decay_change_step",
            self.decay_change_step,
            "must be -1 or more, and less than 2**31",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotConfig:
    """When parameters are kept for analysis and the full state for resuming."""

    n_linear: int = 100
    """Snapshots spaced evenly over the run."""
    n_log: int = 100
    """Snapshots spaced evenly in the logarithm of the step; the two sets are joined, step 0 and the last added."""
    keep: Literal["all", "few"] = "all"
    """few: of the two sets the second alone is kept; at the steps of the first the live measures are taken instead."""
    state_every_s: float = field(default=300.0, metadata=FREE)
    """Seconds between saves of the full state; it is also saved on SIGTERM, SIGINT and at the end."""
    keep_states: int = field(default=2, metadata=FREE)
    """Full states kept on disk."""

    def __post_init__(self) -> None:
        check_types("snapshots", self)
        for name in ("n_linear", "n_log"):
            require(getattr(self, name) >= 0, f"snapshots.{name}", getattr(self, name), "must be 0 or more")
        require(self.state_every_s > 0, "snapshots.state_every_s", self.state_every_s, "must be greater than 0")
        require(self.keep_states >= 1, "snapshots.keep_states", self.keep_states, "must be 1 or more")


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
        check_types("probes", self)
        require(self.n_probes >= 0, "probes.n_probes", self.n_probes, "must be 0 or more")
        for name in ("held_out_rows", "n_sequences"):
            require(getattr(self, name) >= 1, f"probes.{name}", getattr(self, name), "must be 1 or more")
        require(self.repeat_len >= 2, "probes.repeat_len", self.repeat_len, "must be 2 or more")
        require(self.n_repeats >= 2, "probes.n_repeats", self.n_repeats, "must be 2 or more")


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
        check_types("tracker", self)
        require(bool(self.project), "tracker.project", self.project, "must not be empty")
        for name in ("project", "entity"):
            value = getattr(self, name)
            require(not set(value) & set("/\\#?%:"), f"tracker.{name}", value, "must hold none of / \\ # ? % : (W&B)")
            require(len(value) <= 128, f"tracker.{name}", value, "must have at most 128 characters (W&B)")
        require(self.every_steps >= 1, "tracker.every_steps", self.every_steps, "must be 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchConfig:
    """Where a config is meant to run; changes no number of a run."""

    topology: str = ""
    """TPU slice, such as v5e:4x4 or v5p:4x4x8; empty: whatever devices there are."""

    def __post_init__(self) -> None:
        check_types("launch", self)
        allowed = "must be a TPU slice such as 'v5e:4x4' or 'v5p:4x4x8', or empty"
        require(re.fullmatch(TOPOLOGY, self.topology) is not None, "launch.topology", self.topology, allowed)

    @property
    def n_chips(self) -> int:
        """Chips of the slice; 0 without one."""
        return math.prod(int(n) for n in self.topology.partition(":")[2].split("x")) if self.topology else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything that fixes a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    snapshots: SnapshotConfig = field(default_factory=SnapshotConfig)
    probes: ProbeConfig = field(default_factory=ProbeConfig)
    members: MembersConfig = field(default_factory=MembersConfig)
    intervene: tuple[Intervention, ...] = ()
    """What is done to activations and parameters while it trains, one after the other."""
    tracker: TrackerConfig = field(default_factory=TrackerConfig, metadata=FREE)
    launch: LaunchConfig = field(default_factory=LaunchConfig, metadata=FREE)

    def __post_init__(self) -> None:
        object.__setattr__(self, "intervene", read(self.intervene))
        self.data.options.check(self)
        allowed = f"must be less than model.n_ctx = {self.model.n_ctx}"
        require(self.train.loss_from < self.model.n_ctx, "train.loss_from", self.train.loss_from, allowed)
        allowed = f"must be at most train.n_steps = {self.train.n_steps}"
        require(
            self.optimizer.warmup_steps <= self.train.n_steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            allowed,
        )
        allowed = f"must be at most data.held_out_rows = {self.data.held_out_rows}"
        require(
            self.probes.held_out_rows <= self.data.held_out_rows,
            "probes.held_out_rows",
            self.probes.held_out_rows,
            allowed,
        )
        is_whole = self.optimizer.name != "muon" or self.train.fsdp == 1
        require(
            is_whole, "train.fsdp", self.train.fsdp, "must be 1 with optimizer.name = 'muon': it takes whole matrices"
        )
        if self.intervene and not self.members:
            check_all(self)
        if self.members:
            allowed = "must be 1 with members: each is whole on its device"
            require(self.train.fsdp == 1, "train.fsdp", self.train.fsdp, allowed)
            # One config for the same members, whatever stood here in place of theirs.
            settings = self.members.settings
            for name, section in self._sections(settings[0]).items():
                object.__setattr__(self, name, section)
            for setting in {tuple(pair for pair in one if pair[0] != SEEDS) for one in settings}:
                replace(self, members=MembersConfig(), **self._sections(setting))

    def member(self, index: int) -> "Config":
        """The config of one member, counted from 0: that of the same run alone.

        Raises UserError if there is no such member.
        """
        n = len(self.members)
        require(0 <= index < n, "member", index, f"must be from 0 to {n - 1}" if n else "the run has no members")
        return replace(self, members=MembersConfig(), **self._sections(self.members.settings[index]))

    def _sections(self, setting: Setting) -> dict[str, Any]:
        """The sections that a member's own fields are in, with them. Raises UserError for what cannot work."""
        sections: dict[str, Any] = {}
        for full_name, value in setting:
            section, _, name = full_name.partition(".")
            if section == "intervene":
                index, _, name = name.partition(".")
                ones = list(sections.get(section, self.intervene))
                allowed = f"there are {len(ones)} in the config, counted from 0"
                require(int(index) < len(ones), f"members.{full_name}", value, allowed)
                ones[int(index)] = ones[int(index)].with_value(name, value)
                sections[section] = tuple(ones)
                continue
            sections[section] = replace(sections.get(section, getattr(self, section)), **{name: value})
        return sections

    @property
    def member_fields(self) -> dict[str, tuple[int | float, ...]]:
        """train.seed of each member, and whatever else they differ in, by the names of the fields."""
        own = [{SEEDS: self.train.seed} | dict(setting) for setting in self.members.settings]
        return {name: tuple(one[name] for one in own) for name in (own[0] if own else ())}

    @property
    def row_seeds(self) -> tuple[int, ...]:
        """data.seed of each rows that there are, in the order of members; where they share rows, that one."""
        return tuple(dict.fromkeys(map(int, self.member_fields.get(ROWS, (self.data.seed,)))))

    @property
    def rows_of_members(self) -> tuple[int, ...]:
        """Of each member, which of `row_seeds` is its own."""
        place = {seed: i for i, seed in enumerate(self.row_seeds)}
        return tuple(place[int(seed)] for seed in self.member_fields.get(ROWS, (self.data.seed,) * len(self.members)))

    @property
    def tokens_per_step(self) -> int:
        """Predicted tokens per step: rows times positions."""
        return self.train.batch_size * self.model.n_ctx

    def _repr_html_(self) -> str:
        """The config in a notebook: its TOML file."""
        from icl_jax.config.toml import dump_config

        return f"<pre>{html.escape(dump_config(self))}</pre>"
