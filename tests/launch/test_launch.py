"""What `icl-jax launch` hands to each target, and what it refuses. `make validate-launch` asks the real tools."""

import os
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from icl_jax.cli import main
from icl_jax.config import parse_config
from tests.train import runs
from tests.waiting import LAST_RESORT_S

TINY = runs.TINY.replace("batch_size = 8", "batch_size = 512")  # divides over every slice here

# Ends a quotation in every shell and in YAML, and looks like an expansion and like a template's.
HOSTILE = 'gs://bucket/it\'s "$(touch pwned)" `touch pwned` $HOME {{name}} é 😀: &|;'
CLOUD = {
    "queued-resources": ("--topology", "v5e:4x4"),
    "gke": ("--topology", "v5e:4x4", "--image", HOSTILE),
    "skypilot": ("--topology", "v5e:4x4"),
}
OPTIONS = {
    **{target: (*options, "--run", HOSTILE) for target, options in CLOUD.items()},
    "slurm": ("--processes", "2", "--run", HOSTILE),
    "local": ("--processes", "2", "--run", HOSTILE),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command is given: a config in it, and no tool that could be called."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (tmp_path / "Tiny_1.toml").write_text(TINY)
    return tmp_path


def dry_run(capsys: pytest.CaptureFixture[str], target: str, *options: str) -> tuple[dict[str, str], list[list[str]]]:
    """Files by name and commands that a launch of the config would hand over."""
    status = main.run(["launch", "Tiny_1.toml", "--on", target, "--dry-run", *options])
    said = capsys.readouterr()
    assert (status, said.err) == (0, "")
    files, commands, name = dict[str, str](), [], ""
    for line in said.out.splitlines():
        if line.startswith("# runs/tiny-1.launch/"):
            name = line.removeprefix("# runs/tiny-1.launch/")
            files[name] = ""
        elif line.startswith("$ "):
            commands.append(shlex.split(line.removeprefix("$ ")))
        else:
            files[name] += f"{line}\n"
    return files, commands


def script(target: str, files: dict[str, str]) -> str:
    """The shell text that trains."""
    if target == "gke":
        (job,) = yaml.safe_load(files["gke-jobset.yaml"])["spec"]["replicatedJobs"]
        (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
        assert container["image"] == HOSTILE
        (text,) = container["args"]
        assert "$" not in text.replace("$$", "")  # Kubernetes would put a variable for $(NAME)
        return str(text).replace("$$", "$")
    if target == "skypilot":
        return str(yaml.safe_load(files["skypilot.yaml"])["run"])
    return files[{"queued-resources": "startup.sh", "slurm": "slurm.sbatch"}[target]]


def run_script(text: str, folder: Path) -> tuple[list[str], str]:
    """Arguments that `icl-jax` gets from a script, and the config that it finds. Everything outside is made up."""
    program = folder / "bin" / "icl-jax"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" > {folder}/arguments\ncat "$2" > {folder}/config\n')
    program.chmod(0o755)
    for tool in ("python3", "gcloud", "curl", "sleep"):
        (folder / "bin" / tool).write_text("#!/bin/sh\n")
        (folder / "bin" / tool).chmod(0o755)
    (folder / "bin" / "srun").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    (folder / "bin" / "srun").chmod(0o755)
    (folder / "runs" / "tiny-1.launch").mkdir(parents=True)
    text = text.replace("/opt/icl-jax/bin/", "").replace("~/icl-jax/bin/", "").replace("/var/lib/icl-jax", str(folder))
    text = text.replace("/tmp/tiny-1", str(folder / "tiny-1"))
    environment = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": str(folder), "SLURM_JOB_ID": "7"}
    done = subprocess.run(
        ["bash", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return (folder / "arguments").read_text().split("\0")[:-1], (folder / "config").read_text()


@pytest.mark.parametrize("target", ["queued-resources", "gke", "skypilot", "slurm"])
def test_the_job_trains_the_very_config_into_the_very_run(
    target: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = "CONFIG\n\"'$(touch pwned)\\ \x85\u2028\ufeff\x7f😀"
    files, _ = dry_run(capsys, target, *OPTIONS[target], "--tracker.group", group, "--train.n-steps", "77")
    arguments, config = run_script(script(target, files), folder)
    assert arguments[0] == "train"
    assert arguments[2:] == ["--run", HOSTILE, "--coordinator", "auto", "--sigterm-status", "143"]
    sent = parse_config(config)
    assert sent.tracker.group == group
    assert sent.train.n_steps == 77
    assert sent.model.n_ctx == tomllib.loads(TINY)["model"]["n_ctx"]
    assert config.isascii()
    assert not list(folder.glob("**/pwned"))


def test_local_processes_find_each_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, commands = dry_run(capsys, "local", *OPTIONS["local"])
    assert parse_config(files["config.toml"]).model.n_ctx == 17
    assert len(commands) == 2
    for i, command in enumerate(commands):
        assert command[:5] == ["icl-jax", "train", "runs/tiny-1.launch/config.toml", "--run", HOSTILE]
        host, port = command[6].split(":")
        assert host == "127.0.0.1"
        assert command[7:] == ["--processes", "2", "--process-id", str(i)]
        assert port == commands[0][6].split(":")[1]


@pytest.mark.parametrize(
    ("topology", "accelerator_type", "gke_accelerator", "hosts", "chips_per_host"),
    [
        ("v4:2x2x4", "v4-32", "tpu-v4-podslice", 4, 4),
        ("v5e:1x1", "v5litepod-1", "tpu-v5-lite-podslice", 1, 1),
        ("v5e:16x16", "v5litepod-256", "tpu-v5-lite-podslice", 64, 4),
        ("v5p:2x2x1", "v5p-8", "tpu-v5p-slice", 1, 4),
        ("v6e:8x8", "v6e-64", "tpu-v6e-slice", 16, 4),
    ],
)
def test_a_slice_by_the_names_of_each_tool(
    topology: str, accelerator_type: str, gke_accelerator: str, hosts: int, chips_per_host: int,
    folder: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    options = ("--topology", topology, "--run", "gs://bucket/run")
    files, _ = dry_run(capsys, "queued-resources", *options)
    assert f" --accelerator-type={accelerator_type} " in files["queued-resources.sh"]
    files, _ = dry_run(capsys, "skypilot", *options)
    assert yaml.safe_load(files["skypilot.yaml"])["resources"]["accelerators"] == f"tpu-{accelerator_type}:1"
    files, _ = dry_run(capsys, "gke", *options, "--image", "image")
    (replicated,) = yaml.safe_load(files["gke-jobset.yaml"])["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["parallelism"], job["completions"]) == (hosts, hosts)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": gke_accelerator,
        "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
    }
    assert pod["containers"][0]["resources"] == {"limits": {"google.com/tpu": chips_per_host}}


@pytest.mark.parametrize("is_spot", [False, True])
def test_spot_is_asked_for_where_wanted_only(is_spot: bool, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, Any] = {}
    for target, options in CLOUD.items():
        files, _ = dry_run(capsys, target, *options, "--run", "gs://bucket/run", *(["--spot"] if is_spot else []))
        asked |= files
    assert ("--spot" in asked["queued-resources.sh"]) == is_spot
    assert yaml.safe_load(asked["skypilot.yaml"])["resources"]["use_spot"] is is_spot
    assert ("cloud.google.com/gke-spot" in asked["gke-jobset.yaml"]) == is_spot


def test_gpus_under_slurm_and_skypilot(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--accelerator", "h100:8", "--hosts", "3")
    files, commands = dry_run(capsys, "slurm", *options)
    asked = [line.removeprefix("#SBATCH ") for line in files["slurm.sbatch"].splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=3", "--ntasks=24", "--ntasks-per-node=8", "--gpus-per-node=h100:8", "--requeue"} <= set(asked)
    assert commands == [["sbatch", "runs/tiny-1.launch/slurm.sbatch"]]
    files, _ = dry_run(capsys, "skypilot", *options, "--run", "gs://bucket/run")
    task = yaml.safe_load(files["skypilot.yaml"])
    assert task["num_nodes"] == 3
    assert task["resources"]["accelerators"] == "h100:8"
    assert "icl-jax[cuda,gcs]==" in task["setup"]
    assert '--coordinator "$(head -n 1 <<<"$SKYPILOT_NODE_IPS"):8476"' in task["run"]


@pytest.mark.parametrize("target", OPTIONS)
def test_the_key_of_wandb_is_in_no_file_and_no_command(
    target: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    files, commands = dry_run(capsys, target, *OPTIONS[target])
    assert "a-secret" not in str((files, commands))
    if target == "skypilot":
        assert "--secret WANDB_API_KEY " in shlex.join(commands[0])


@pytest.mark.parametrize("target", OPTIONS)
def test_a_dry_run_writes_nothing(target: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(capsys, target, *OPTIONS[target])
    assert [path.name for path in folder.iterdir()] == ["Tiny_1.toml"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--on moon", "--on = 'moon': must be one of"),
        ("--on gke --run gs://b/r --image i", "--topology is missing"),
        ("--on gke --run gs://b/r --topology v5e:4x4", "--image is missing"),
        ("--on gke --run gs://b/r --image i --topology v9:4x4", "--topology = 'v9:4x4': must be v4, v5e, v5p, v6e and"),
        ("--on gke --run gs://b/r --image i --topology v5e:4x4x4", "a slice of v5e has 2 axes, such as v5e:2x4"),
        ("--on gke --run gs://b/r --image i --topology v5e:3x3", "--topology = 'v5e:3x3': must be"),
        ("--on gke --run runs/r --image i --topology v5e:4x4", "--run = 'runs/r': must be gs://BUCKET/..."),
        ("--on queued-resources --topology v5e:4x4", "--run = '': must be gs://BUCKET/..."),
        ("--on queued-resources --topology v5e:4x4 --run gs://b/r*", "--run = 'gs://b/r*': must be"),
        ("--on queued-resources --topology v5e:4x4 --run gs://b/\n", "must be printable characters"),
        ("--on skypilot --run gs://b/r", "needs one of --topology"),
        ("--on skypilot --run gs://b/r --topology v5e:4x4 --hosts 2", "--hosts = 2: not with --on skypilot"),
        ("--on skypilot --run gs://b/r --accelerator H100", "--accelerator = 'H100': must be TYPE:COUNT"),
        ("--on slurm --topology v5e:4x4", "--topology = 'v5e:4x4': not with --on slurm"),
        ("--on slurm --processes -1", "--processes = -1: must be 0 or more"),
        ("--on slurm --name A_b", "--name = 'A_b': must be at most 40 lower-case letters"),
        ("--on local --spot", "--spot = True: not with --on local"),
    ],
)
def test_what_cannot_be_launched_is_said_in_one_line(
    options: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["launch", "Tiny_1.toml", "--dry-run", *options.split(" ")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err


@pytest.mark.parametrize(
    ("target", "tool"),
    [("queued-resources", "gcloud"), ("gke", "kubectl"), ("skypilot", "sky"), ("slurm", "sbatch")],
)
def test_a_missing_tool_is_named(
    target: str, tool: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    assert main.run(["launch", "Tiny_1.toml", "--on", target, *OPTIONS[target]]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"icl-jax: {tool}: no such program here")
    assert not (folder / "runs").exists()


def test_the_tool_is_called_with_the_files_and_its_status_is_ours(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sbatch").write_text(f'#!/bin/sh\ncp "$1" {folder}/submitted\nexit 5\n')
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    assert main.run(["launch", "Tiny_1.toml", "--on", "slurm", "--processes", "2"]) == 5
    assert "#SBATCH --ntasks=2\n" in (folder / "submitted").read_text()


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("list --on queued-resources", "gcloud compute tpus queued-resources list"),
        ("stop tiny --on queued-resources", "gcloud compute tpus queued-resources delete tiny --force --quiet"),
        ("list --on gke", "kubectl get jobsets"),
        ("stop tiny --on gke", "kubectl delete jobset tiny"),
        ("logs tiny --on skypilot", "sky jobs logs --name tiny"),
        ("stop tiny --on skypilot", "sky jobs cancel --yes --name tiny"),
        ("list --on slurm", "squeue --me"),
        ("logs tiny --on slurm", "tail -n +1 -F runs/tiny.launch/job.log"),
        ("stop tiny --on slurm", "scancel --me --name tiny"),
    ],
)
def test_list_logs_and_stop_are_the_tools_own(arguments: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["launch", *arguments.split(), "--dry-run"]) == 0
    assert capsys.readouterr().out == f"$ {command}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("stop --on slurm", "NAME = '': must be the name of a job"),
        ("logs --on slurm -- --all", "NAME = '--all': must be"),
        ("list --on local", "--on local: nothing to list"),
    ],
)
def test_a_job_that_cannot_be_meant_is_refused(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["launch", *arguments.split()]) == 2
    assert said in capsys.readouterr().err


# The slice is taken away once; the second one completes the run.
FAKE_GCLOUD = """#!/bin/bash
cd "$(dirname "$0")" && echo "$*" >> calls
case "$*" in
    *queued-resources\\ describe*) [ -e slice ] ;;
    *queued-resources\\ create*) echo x >> created; touch slice ;;
    *queued-resources\\ list*) if [ "$(wc -l < created)" = 1 ]; then echo SUSPENDED; else echo ACTIVE; fi ;;
    *queued-resources\\ delete*) rm slice ;;
    storage\\ cat*) [ "$(wc -l < created)" = 2 ] && echo 0 ;;
esac
"""


def _run_with_gcloud(gcloud: str, script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "bin").mkdir()
    for tool, text in {"gcloud": gcloud, "sleep": "#!/bin/sh\n"}.items():
        (folder / "bin" / tool).write_text(text)
        (folder / "bin" / tool).chmod(0o755)
    (folder / "queued-resources.sh").write_text(script)
    environment = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin"}
    command = ["bash", "queued-resources.sh"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LAST_RESORT_S, check=False
    )


def test_a_slice_that_is_taken_away_is_asked_for_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, _ = dry_run(capsys, "queued-resources", *OPTIONS["queued-resources"], "--spot")
    done = _run_with_gcloud(FAKE_GCLOUD, files["queued-resources.sh"], folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "tiny-1: SUSPENDED\ntiny-1: the run ended with status 0\n"
    calls = [line.split()[3] for line in (folder / "bin" / "calls").read_text().splitlines() if " queued-res" in line]
    assert calls == ["describe", "create", "list", "delete", "describe", "create", "delete"]
    assert f"storage cat {HOSTILE}.status" in (folder / "bin" / "calls").read_text()
    assert not (folder / "bin" / "slice").exists()


def test_a_slice_that_cannot_be_made_is_not_asked_for_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, _ = dry_run(capsys, "queued-resources", *OPTIONS["queued-resources"])
    gcloud = FAKE_GCLOUD.replace("SUSPENDED", "FAILED").replace("[ -e slice ] ;;", "[ -e slice ] && echo no quota ;;")
    done = _run_with_gcloud(gcloud, files["queued-resources.sh"], folder)
    assert (done.returncode, done.stdout) == (1, "tiny-1: FAILED\n")
    assert done.stderr.splitlines()[0] == "no quota"
    assert "icl-jax launch stop tiny-1 --on queued-resources" in done.stderr


def test_a_configs_own_slice_is_the_default(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, own = ("--run", "gs://bucket/a"), ("--launch.topology", "v6e:4x4")
    files, _ = dry_run(capsys, "queued-resources", *run, *own)
    assert "--accelerator-type=v6e-16 " in files["queued-resources.sh"]
    files, _ = dry_run(capsys, "queued-resources", *run, *own, "--topology", "v5e:4x4")
    assert "--accelerator-type=v5litepod-16 " in files["queued-resources.sh"]
    files, _ = dry_run(capsys, "skypilot", *run, *own, "--accelerator", "H100:8")
    assert 'accelerators: "H100:8"' in files["skypilot.yaml"]
    dry_run(capsys, "slurm", *own)


def test_a_batch_that_does_not_divide_over_the_slice_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.toml").write_text(runs.TINY)
    slice_of_16 = ("--on", "skypilot", "--topology", "v5e:4x4", "--run", "gs://bucket/a", "--dry-run")
    assert main.run(["launch", "a.toml", *slice_of_16]) == 2
    assert "train.batch_size = 8: must be divisible by 16 devices" in capsys.readouterr().err
