"""What a run is. Standard library only, so that analysis reads a config anywhere."""

from icl_jax.config.errors import NonFiniteLossError, UserError
from icl_jax.config.members import ROWS, SEEDS, MembersConfig
from icl_jax.config.model import ModelConfig
from icl_jax.config.sameness import changed_fields, experiment, numeric_differences, rows_of
from icl_jax.config.schema import (
    Config,
    DataConfig,
    LaunchConfig,
    OptimizerConfig,
    ProbeConfig,
    SnapshotConfig,
    TrackerConfig,
    TrainConfig,
)
from icl_jax.config.toml import dump_config, load_config, parse_config

__all__ = [
    "ROWS",
    "SEEDS",
    "Config",
    "DataConfig",
    "LaunchConfig",
    "MembersConfig",
    "ModelConfig",
    "NonFiniteLossError",
    "OptimizerConfig",
    "ProbeConfig",
    "SnapshotConfig",
    "TrackerConfig",
    "TrainConfig",
    "UserError",
    "changed_fields",
    "dump_config",
    "experiment",
    "load_config",
    "numeric_differences",
    "parse_config",
    "rows_of",
]
