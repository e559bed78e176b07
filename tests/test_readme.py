"""The blocks of README.md: what they say can be typed, can be."""

import re
import shlex
from pathlib import Path

import pytest

from icl_jax.cli.arguments import find_config
from icl_jax.config.builtin import suite_file
from icl_jax.suites.suite import load_suite
from tests.train.runs import command

_BLOCK = re.compile(r"^```(python)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Makes runs of seconds out of runs of minutes; everything else stays as it stands.
SHORT = shlex.split(
    "--train.n-steps 3 --train.batch-size 8 --optimizer.warmup-steps 0 --snapshots.n-linear 2 --snapshots.n-log 0"
    " --probes.n-probes 2 --probes.held-out-rows 8 --tracker.wandb disabled"
)


@pytest.fixture(scope="module")
def blocks(checkout: Path) -> list[tuple[str, str]]:
    return _BLOCK.findall((checkout / "README.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def commands(blocks: list[tuple[str, str]]) -> list[list[str]]:
    lines = [line for language, code in blocks if not language for line in code.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(("icl-jax ", "make "))]


def test_commands_and_python_run(
    commands: list[list[str]],
    blocks: list[tuple[str, str]],
    checkout: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("my.toml").write_text("[model]\nvocab_size = 300\nn_ctx = 64\n[data]\nheld_out_rows = 128\n")
    folder = tmp_path / "books" / "a"
    folder.mkdir(parents=True)
    (folder / "book.txt").write_text(
        "\n\n".join(f"The {i}th line of a book; it is said {i} times." for i in range(3000))
    )
    verbs = set()
    for line in commands:
        if line[0] != "icl-jax":
            continue
        verb, args = line[1], line[2:]
        verbs.add(verb)
        if verb == "reproduce":  # hours
            load_suite(suite_file(args[0]))
        elif "python-2l" in " ".join(args):  # minutes
            find_config(Path(args[-1] if verb == "data" else "python-2l").name)
        else:
            args += SHORT if verb == "train" else ["--only", "icl,phase_change"] if verb == "analyze" else []
            status, _, err = command(verb, *args)
            assert (status, err) == (0, ""), (line, err)
    assert verbs == {"train", "report", "analyze", "probe", "export", "reproduce", "verify", "data"}
    (code,) = (code for language, code in blocks if language)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["record"].loss.shape == (3, 128)  # type: ignore[attr-defined]


def test_make_targets_exist(commands: list[list[str]], checkout: Path) -> None:
    targets = {line[1] for line in commands if line[0] == "make"}
    readme = (checkout / "README.md").read_text(encoding="utf-8")
    targets |= set(re.findall(r"`make ([a-z-]+)`", readme))
    assert {"reproduce", "test"} <= targets
    made = re.findall(r"^([a-z-]+):", (checkout / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert targets <= set(made)


def test_links_and_configs_exist(checkout: Path) -> None:
    readme = (checkout / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", readme):
        assert (checkout / target).exists(), target
    for name in re.findall(
        r"`((?:repeats|python|stories|paper|markov|triggers|classes|patterns)-[a-z0-9-]*\d[a-z-]*)`", readme
    ):
        find_config(name)
