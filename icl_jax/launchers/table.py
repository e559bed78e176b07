"""The one table of all launch targets, in the order of the help."""

from icl_jax.launchers import gke, local, queued_resources, skypilot, slurm
from icl_jax.launchers.target import Target

TARGETS: tuple[Target, ...] = (
    queued_resources.TARGET,
    gke.TARGET,
    skypilot.TARGET,
    slurm.TARGET,
    local.TARGET,
)
