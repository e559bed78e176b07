"""A Cloud TPU slice of its own, asked for anew when it is taken away, by gcloud."""

from dataclasses import dataclass

from icl_jax.launchers.target import Job, PackageOptions, Plan, Target
from icl_jax.launchers.tpu_slice import SliceOptions


@dataclass(frozen=True, kw_only=True)
class QueuedResourcesOptions(PackageOptions, SliceOptions):
    """A slice that icl_jax is installed on."""


def _plan(job: Job, options: QueuedResourcesOptions) -> Plan:
    tpu = options.slice_for(job)
    slice_script = job.fill(
        "queued-resources.sh", accelerator_type=tpu.accelerator_type, runtime_version=tpu.tpu.runtime_version,
        spot_flag="--spot \\" if options.spot else "",
    )  # fmt: skip
    startup = job.fill("startup.sh", package=options.requirement("tpu"))
    files = {"queued-resources.sh": slice_script, "startup.sh": startup}
    return Plan(files, [["bash", str(job.folder / "queued-resources.sh")]])


def _verbs(name: str) -> dict[str, list[str]]:
    tpus = ["gcloud", "compute", "tpus"]
    log = "--command=sudo journalctl --follow --unit google-startup-scripts"
    return {
        "list": [*tpus, "queued-resources", "list"],
        "logs": [*tpus, "tpu-vm", "ssh", name, "--worker=0", log],
        "stop": [*tpus, "queued-resources", "delete", name, "--force", "--quiet"],
    }


TARGET = Target(
    name="queued-resources", where="a Cloud TPU slice of your own", options=QueuedResourcesOptions, plan=_plan,
    tool="gcloud", verbs=_verbs, in_bucket=True,
)  # fmt: skip
