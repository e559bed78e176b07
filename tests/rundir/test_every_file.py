"""Each file of a run, removed, cut short or overwritten: no verb gives another number than of the intact run unsaid."""

import contextlib
import itertools
import json
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

import icl_jax
from icl_jax import process
from icl_jax.analysis.run_measurements import analyze
from icl_jax.config import UserError, parse_config
from icl_jax.report.page.page_data import page_data
from icl_jax.report.reported_run import open_runs
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import quiet_orbax
from tests.train.runs import command, folder_bytes, train_here

_TAKEN = ("icl", "head_scores", "phase_change")
_CONFIG = """
[model]
n_layers = 1
d_model = 12
n_heads = 3
n_ctx = 17
vocab_size = 270
[data]
source = "text:FOLDER/text.txt"
held_out_rows = 10
[train]
n_steps = 4
batch_size = 8
[optimizer]
warmup_steps = 0
[snapshots]
n_linear = 1
n_log = 0
keep_states = 1
[probes]
n_probes = 2
held_out_rows = 10
n_sequences = 2
repeat_len = 4
[tracker]
wandb = "disabled"
"""
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "removed": lambda _data: None,
    "cut short": lambda data: data[: len(data) // 2],
    "overwritten": lambda data: bytes((7 * i + 3) % 256 for i in range(len(data) or 9)),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make(tmp_path_factory.mktemp("every"))


def _make(folder: Path) -> Path:
    """Text with a tokenizer, two snapshots, one state, analyzed."""
    quiet_orbax()
    (folder / "text.txt").write_text("The cat sat. A dog ran; the dog sat. " * 60)
    text = _CONFIG.replace("FOLDER", str(folder))
    train_here(parse_config(text), folder / "run")
    analyze(RunDir.open(str(folder / "run")), only=_TAKEN)
    return folder / "run"


def verbs_of(run: Path) -> dict[str, Callable[[], str]]:
    """What each says, or UserError."""

    def of_command(*args: str | Path) -> Callable[[], str]:
        def say() -> str:
            status, out, err = command(*args)
            if status == 0:
                assert not err, err
                return out
            assert "Traceback" not in err
            raise UserError(err or out)

        return say

    def opened() -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            found = icl_jax.open_run(str(run))
            datasets = [found.analysis.load().to_dict()]
            if RunDir.open(str(run)).imported is None:
                datasets.append(found.record.load().to_dict())
        return json.dumps(datasets, sort_keys=True)

    return {
        "verify": of_command("verify", run),
        "analyze --show": of_command("analyze", run, "--show"),
        "report": lambda: repr(page_data(open_runs([str(run)]))),
        "open_run": opened,
        "probe": of_command("probe", run, "The dog"),
        "export": of_command("export", run, "--to", "transformer-lens", "--out", run.parent / "out.safetensors"),
    }


@contextlib.contextmanager
def _damaged(file: Path, data: bytes | None) -> Iterator[None]:
    good = file.read_bytes()
    if data is None:
        file.unlink()
    else:
        file.write_bytes(data)
    try:
        yield
    finally:
        file.write_bytes(good)


def _said(verb: Callable[[], str]) -> tuple[str, str | None]:
    """The output, and the message of what is wrong."""
    try:
        return verb(), None
    except UserError as error:
        return "", str(error)


def try_damages(run: Path, cases: Iterable[tuple[Path, str]]) -> Counter[tuple[str, str]]:
    """(verb, what it did) at every damage of a file; raises AssertionError at a number that is wrong unsaid."""
    verbs, counts = verbs_of(run), Counter[tuple[str, str]]()
    intact = {name: verb() for name, verb in verbs.items()}
    before = folder_bytes(run)
    for file, damage in cases:
        with _damaged(file, DAMAGES[damage](file.read_bytes())):
            for name, verb in verbs.items():
                case = f"{name}: {file.relative_to(run)} {damage}"
                said, error = _said(verb)
                if error is None:
                    assert said == intact[name], f"{case}: another output, and nothing said"
                else:
                    assert str(run) in error, f"{case}: {error}"
                counts[name, "same" if error is None else "named"] += 1
    assert folder_bytes(run) == before
    return counts


def files_of(run: Path) -> list[Path]:
    """All but the lock, which is empty."""
    return sorted(file for file in run.rglob("*") if file.is_file() and file.name != ".lock")


def kind_of(run: Path, file: Path) -> tuple[str, ...]:
    """Files of one kind: of the arrays of a store one is as good as another, but for what is grown."""
    parts = file.relative_to(run).parts
    if parts[0] in ("analysis.zarr", "held_out.zarr"):
        return parts[0], str(len(parts) - (parts[-1] == "zarr.json"))
    names = [re.sub(r"[0-9a-f]{32}|\d+", "#", part) for part in parts]
    return (parts[0], *names[-2:]) if parts[0] in ("snapshots", "state") else tuple(names)


def test_a_file_of_eachkind_of(run: Path) -> None:
    kinds = {kind_of(run, file): file for file in files_of(run)}
    counts = try_damages(run, list(zip(kinds.values(), itertools.cycle(DAMAGES), strict=False))[::4])
    for verb in verbs_of(run):
        assert counts[verb, "named"]
        assert counts[verb, "same"]


if __name__ == "__main__":  # all of them, which takes some ten minutes: the counts in docs/run-directory.md
    process.quiet_libraries()  # as the command does
    with tempfile.TemporaryDirectory() as folder:
        made = _make(Path(folder))
        files = files_of(made)
        print(
            f"{len(files)} files, {len(DAMAGES)} damages: {dict(try_damages(made, itertools.product(files, DAMAGES)))}"
        )
