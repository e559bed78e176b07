"""A managed job of SkyPilot, on TPUs or GPUs of the clouds that it knows."""

import os
from dataclasses import dataclass

from icl_jax.config import UserError
from icl_jax.launchers.target import GpuOptions, Job, PackageOptions, Plan, Target, yaml
from icl_jax.launchers.tpu_slice import SliceOptions


@dataclass(frozen=True, kw_only=True)
class SkypilotOptions(GpuOptions, PackageOptions, SliceOptions):
    """A TPU slice, or hosts with GPUs."""


def _plan(job: Job, options: SkypilotOptions) -> Plan:
    has_slice = bool(options.topology or (job.config.launch.topology and not options.accelerator))
    if has_slice == bool(options.accelerator):
        raise UserError("--on skypilot needs one of --topology, such as v5e:4x4, and --accelerator, such as H100:8")
    if has_slice:
        if options.hosts != 1:
            raise UserError(f"--hosts = {options.hosts}: not with --on skypilot and --topology")
        tpu = options.slice_for(job)
        # One "node" is the whole slice to SkyPilot, whose hosts find each other by themselves.
        accelerators, join = f"tpu-{tpu.accelerator_type}:1", "--coordinator auto"
        accelerator_args = f"accelerator_args: {{runtime_version: {tpu.tpu.runtime_version}}}"
    else:
        accelerators, accelerator_args = options.accelerator, ""
        address = '"$(head -n 1 <<<"$SKYPILOT_NODE_IPS"):8476"'
        join = f'--coordinator {address} --processes "$SKYPILOT_NUM_NODES" --process-id "$SKYPILOT_NODE_RANK"'
    file = "skypilot.yaml"
    text = job.fill(
        file, accelerators=yaml(accelerators), accelerator_args=accelerator_args, spot=yaml(options.spot), join=join,
        hosts=str(options.hosts), package=options.requirement("tpu" if has_slice else "cuda"),
    )  # fmt: skip
    # By name: SkyPilot takes the key from this process's environment.
    secret = ["--secret", "WANDB_API_KEY"] if "WANDB_API_KEY" in os.environ else []
    return Plan({file: text}, [["sky", "jobs", "launch", "--yes", *secret, str(job.folder / file)]])


def _verbs(name: str) -> dict[str, list[str]]:
    return {
        "list": ["sky", "jobs", "queue"],
        "logs": ["sky", "jobs", "logs", "--name", name],
        "stop": ["sky", "jobs", "cancel", "--yes", "--name", name],
    }


TARGET = Target(
    name="skypilot", where="SkyPilot's clouds", options=SkypilotOptions, plan=_plan, tool="sky", verbs=_verbs,
    in_bucket=True,
)  # fmt: skip
