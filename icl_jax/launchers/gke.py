"""A JobSet on a GKE cluster with TPU nodes, by kubectl."""

from dataclasses import dataclass

from icl_jax.config import UserError
from icl_jax.launchers.target import Job, Plan, Target, flag, yaml
from icl_jax.launchers.tpu_slice import SliceOptions


@dataclass(frozen=True, kw_only=True)
class GkeOptions(SliceOptions):
    """A container on the slice's hosts."""

    image: str = flag("", "container image, made from launch/Dockerfile.")


def _plan(job: Job, options: GkeOptions) -> Plan:
    tpu = options.slice_for(job)
    if not options.image:
        raise UserError("--image is missing: --on gke needs a container image, made from launch/Dockerfile")
    selector = {
        "cloud.google.com/gke-tpu-accelerator": tpu.tpu.gke_accelerator,
        "cloud.google.com/gke-tpu-topology": tpu.topology,
    }
    if options.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    file = "gke-jobset.yaml"
    text = job.fill(
        file, node_selector=yaml(selector), image=yaml(options.image), chips_per_host=str(tpu.chips_per_host),
        hosts=str(tpu.n_chips // tpu.chips_per_host),
        # Kubernetes reads $(NAME) and $$ in a container's args.
        config=job.config_text.replace("$", "$$"), run=job.quoted_run.replace("$", "$$"),
    )  # fmt: skip
    return Plan({file: text}, [["kubectl", "create", "--filename", str(job.folder / file)]])


def _verbs(name: str) -> dict[str, list[str]]:
    return {
        "list": ["kubectl", "get", "jobsets"],
        "logs": ["kubectl", "logs", "--follow", "--tail=-1", f"--selector=jobset.sigs.k8s.io/jobset-name={name}"],
        "stop": ["kubectl", "delete", "jobset", name],
    }


TARGET = Target(
    name="gke", where="a GKE cluster", options=GkeOptions, plan=_plan, tool="kubectl", verbs=_verbs, in_bucket=True
)
