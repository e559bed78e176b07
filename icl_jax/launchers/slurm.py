"""A job of a Slurm cluster, which icl_jax and the folder of the submission are shared on."""

from dataclasses import dataclass

from icl_jax.config import UserError
from icl_jax.launchers.target import GpuOptions, Job, Plan, ProcessOptions, Target, launch_folder


@dataclass(frozen=True, kw_only=True)
class SlurmOptions(GpuOptions, ProcessOptions):
    """Hosts with GPUs, or processes without."""


def _plan(job: Job, options: SlurmOptions) -> Plan:
    n_processes, gpus = options.processes or options.hosts, ""
    if options.accelerator:
        if options.processes:
            raise UserError(f"--processes = {options.processes}: not with --on slurm and --accelerator")
        # One process for each GPU, as JAX under Slurm expects.
        count = options.accelerator.partition(":")[2]
        n_processes = options.hosts * int(count)
        gpus = f"#SBATCH --gpus-per-node={options.accelerator}\n#SBATCH --ntasks-per-node={count}"
    file = "slurm.sbatch"
    text = job.fill(file, hosts=str(options.hosts), processes=str(n_processes), gpus=gpus)
    return Plan({file: text}, [["sbatch", str(job.folder / file)]])


def _verbs(name: str) -> dict[str, list[str]]:
    return {
        "list": ["squeue", "--me"],
        "logs": ["tail", "-n", "+1", "-F", str(launch_folder(name) / "job.log")],
        "stop": ["scancel", "--me", "--name", name],
    }


TARGET = Target(name="slurm", where="a Slurm cluster", options=SlurmOptions, plan=_plan, tool="sbatch", verbs=_verbs)
