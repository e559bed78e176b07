"""The run directory: where training and analysis meet. See docs/run-directory.md for the contract."""

from icl_jax.rundir.held_out import HeldOut
from icl_jax.rundir.manifest import SnapshotEntry
from icl_jax.rundir.run import SCHEMA_VERSION, SCHEMA_VERSION_MEMBERS, RunDir
from icl_jax.rundir.schedule import probe_steps, snapshot_steps

__all__ = [
    "SCHEMA_VERSION", "SCHEMA_VERSION_MEMBERS", "HeldOut", "RunDir", "SnapshotEntry", "probe_steps", "snapshot_steps",
]  # fmt: skip
