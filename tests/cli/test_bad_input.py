"""What a user gives and cannot be used: exit status 2, and one line with its name, its value and what is allowed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rundir.made_run import edit_config
from tests.train.runs import TINY, command, folder_bytes, tiny_config, train_here


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and bad files, the working directory of the commands."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "tiny.toml").write_text(TINY)
    (folder / "folder.toml").mkdir()
    (folder / "binary.toml").write_bytes(b"\xff\xfe[model]\x00")
    (folder / "broken.toml").write_text("[model\nn_layers = 2\n")
    (folder / "section.toml").write_text("[modle]\nn_layers = 2\n")
    (folder / "key.toml").write_text("[model]\nn_layer = 2\n")
    (folder / "type.toml").write_text('[model]\nn_layers = "two"\n')
    (folder / "table.toml").write_text("model = 3\n")
    (folder / "text.txt").write_text("the cat sat on the mat. " * 200)
    (folder / "short.txt").write_text("short")
    (folder / "empty.txt").write_text("")
    (folder / "latin1.txt").write_bytes("café ".encode("latin-1") * 500)
    (folder / "nothing").mkdir()
    (folder / "not_tokenizer.json").write_text('{"model": 1}')
    (folder / "other").mkdir()
    (folder / "other" / "thesis.tex").write_text("years of work")
    (folder / "a_file").write_text("a file")
    return folder


_TEXT = ("train", "tiny.toml", "--run", "r", "--model.vocab-size", "300", "--data.source", "text:text.txt")

ARGUMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # name: (arguments, what the line must hold)
    "unknown verb": (("trian",), ("trian: no such verb; there are train, ", "verify")),
    "unknown data verb": (("data", "prepair"), ("data prepair: no such verb", "prepare and show")),
    "no config": (("train",), ("the config file must come first", "icl-jax train --help")),
    "config not first": (("train", "--run", "r"), ("the config file must come first",)),
    "missing config": (("train", "nope.toml"), ("nope.toml: cannot read the config", "No such file")),
    "unknown built-in config": (("train", "repeats-9l"), ("repeats-9l: no such config file",)),
    "folder as config": (("train", "folder.toml"), ("folder.toml: cannot read the config", "directory")),
    "binary config": (("train", "binary.toml"), ("binary.toml: not a UTF-8 text file", "TOML")),
    "broken TOML": (("train", "broken.toml"), ("broken.toml: not valid TOML", "line 1")),
    "unknown section": (("train", "section.toml"), ("section.toml", "'modle'", "did you mean 'model'?")),
    "unknown key": (("train", "key.toml"), ("key.toml", "'model.n_layer'", "did you mean 'n_layers'?")),
    "wrong type": (("train", "type.toml"), ("type.toml: model.n_layers = 'two': must be a whole number",)),
    "not a table": (("train", "table.toml"), ("table.toml: model = 3: must be a table",)),
    "unknown option": (
        ("train", "tiny.toml", "--model.n-layer", "3"),
        ("--model.n-layer: no such option; did you mean --model.n-layers", "icl-jax train --help"),
    ),
    "option without its section": (
        ("train", "tiny.toml", "--seed", "3"),
        ("--seed: no such option; did you mean --data.seed or --members.seeds or --train.seed?",),
    ),
    "one argument too many": (("train", "tiny.toml", "again"), ("again: unexpected argument",)),
    "whole number": (
        ("train", "tiny.toml", "--model.n-layers", "2.5"),
        ("--model.n-layers = '2.5': must be a whole number",),
    ),
    "number": (("train", "tiny.toml", "--optimizer.lr", "fast"), ("--optimizer.lr = 'fast': must be a number",)),
    "choice": (
        ("train", "tiny.toml", "--model.norm", "batch"),
        ("--model.norm = 'batch': must be one of 'layernorm', 'rmsnorm', 'none'",),
    ),
    "no value": (("train", "tiny.toml", "--train.n-steps"), ("--train.n-steps: needs a value",)),
    "heads": (
        ("train", "tiny.toml", "--model.d-model", "16"),
        ("model.d_model = 16: must be divisible by model.n_heads = 3",),
    ),
    "negative rate": (
        ("train", "tiny.toml", "--optimizer.lr", "-0.1"),
        ("optimizer.lr = -0.1: must be greater than 0",),
    ),
    "rate that is none": (("train", "tiny.toml", "--optimizer.lr", "nan"), ("optimizer.lr = nan: must be a finite",)),
    "negative weight decay": (
        ("train", "tiny.toml", "--optimizer.weight-decay", "-1"),
        ("optimizer.weight_decay = -1.0: must be 0 or more",),
    ),
    "no steps": (("train", "tiny.toml", "--train.n-steps", "0"), ("train.n_steps = 0: must be 1 or more",)),
    "long warm-up": (
        ("train", "tiny.toml", "--optimizer.warmup-steps", "9"),
        ("optimizer.warmup_steps = 9: must be at most train.n_steps = 8",),
    ),
    "accumulation": (
        ("train", "tiny.toml", "--train.accum-steps", "3"),
        ("train.batch_size = 8: must be divisible by train.accum_steps = 3",),
    ),
    "fsdp under pmap": (
        ("train", "tiny.toml", "--train.fsdp", "2"),
        ("train.fsdp = 2: must be 1 unless train.parallel = 'mesh'",),
    ),
    "fsdp": (
        ("train", "tiny.toml", "--train.parallel", "mesh", "--train.fsdp", "4", "--devices", "2"),
        ("train.fsdp = 4: must divide the number of devices, 2",),
    ),
    "batch among devices": (
        ("train", "tiny.toml", "--devices", "3"),
        ("train.batch_size = 8: must be divisible by 3 devices",),
    ),
    "devices": (
        ("train", "tiny.toml", "--devices", "16", "--train.batch-size", "16", "--run", "r"),
        ("--devices = 16: must be at most 8",),
    ),
    "negative devices": (("train", "tiny.toml", "--devices", "-1"), ("--devices = -1: must be 0 or more",)),
    "no processes": (("train", "tiny.toml", "--processes", "0"), ("--processes = 0: must be 1 or more",)),
    "processes alone": (("train", "tiny.toml", "--processes", "2"), ("--processes = 2: needs --coordinator",)),
    "process number": (
        ("train", "tiny.toml", "--coordinator", "h:1", "--processes", "2", "--process-id", "2"),
        ("--process-id = 2: must be from 0 to --processes less 1, 1",),
    ),
    "unknown source": (("train", "tiny.toml", "--data.source", "web"), ("data.source = 'web'", "text:PATH-OR-GLOB")),
    "missing text": ((*_TEXT[:-1], "text:nope.txt"), ("'text:nope.txt'", "no file matches")),
    "empty glob": ((*_TEXT[:-1], "text:nope/**/*.txt"), ("'text:nope/**/*.txt'", "no file matches")),
    "empty folder": ((*_TEXT[:-1], "text:nothing"), ("'text:nothing'", "holds no .txt file")),
    "empty corpus": ((*_TEXT[:-1], "text:empty.txt"), ("text:empty.txt",)),
    "text not UTF-8": ((*_TEXT[:-1], "text:latin1.txt"), ("latin1.txt: not UTF-8 text (byte 3)",)),
    "short corpus": (
        (*_TEXT[:-1], "text:short.txt"),
        ("text:short.txt", "holds 2 tokens: too few for a row to train on and one held out"),
    ),
    "held-out rows": (
        (*_TEXT, "--data.held-out-rows", "5000"),
        ("data.held_out_rows = 5000: must be less than", "'text:text.txt'"),
    ),
    "rows for probes": (
        ("train", "tiny.toml", "--probes.held-out-rows", "11"),
        ("probes.held_out_rows = 11: must be at most data.held_out_rows = 10",),
    ),
    "small BPE": ((*_TEXT, "--model.vocab-size", "257"), ("model.vocab_size = 257: must be 258 or more",)),
    "missing tokenizer": ((*_TEXT, "--data.tokenizer", "nope.json"), ("data.tokenizer = 'nope.json'", "No such file")),
    "not a tokenizer": (
        (*_TEXT, "--data.tokenizer", "not_tokenizer.json"),
        ("data.tokenizer = 'not_tokenizer.json': not a tokenizer",),
    ),
    "unknown TFDS set": (
        (*_TEXT[:-1], "tfds:no_such_set_anywhere"),
        ("no_such_set_anywhere",),
    ),
    "RUN is a file": (("train", "tiny.toml", "--run", "a_file"), ("a_file: is a file; --run must be a folder",)),
    "RUN is another folder": (
        ("train", "tiny.toml", "--run", "other"),
        ("other: holds 'thesis.tex' and is not a run directory", "must be a run directory, an empty folder or a new"),
    ),
    "RUN under a file": (("train", "tiny.toml", "--run", "a_file/r"), ("a_file/r: cannot write the run directory",)),
    "verify nothing": (("verify",), ("RUN is missing", "icl-jax verify --help")),
    "verify a missing run": (("verify", "nope"), ("nope: no such run directory",)),
    "verify another folder": (("verify", "other"), ("other: not a run directory: it has no config.toml",)),
    "verify a file": (("verify", "a_file"), ("a_file: not a run directory",)),
    "verify two": (("verify", "a", "b"), ("b: unexpected argument",)),
    "show no rows": (("data", "show", "tiny.toml", "--rows", "0"), ("--rows = 0: must be 1 or more",)),
    "show some rows": (("data", "show", "tiny.toml", "--rows", "x"), ("--rows = 'x': must be a whole number",)),
}


def _assert_refused(result: tuple[int, str, str], expected: tuple[str, ...]) -> None:
    status, out, err = result
    assert status == 2, (out, err)
    assert "Traceback" not in out + err
    assert err.startswith("icl-jax: ")
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    for text in expected:
        assert text in err


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    args, expected = ARGUMENTS[name]
    _assert_refused(command(*args), expected)
    # Nothing is left behind that a right command would stumble over.
    assert not (files / "r" / "config.toml").exists()
    assert [path.name for path in (files / "other").iterdir()] == ["thesis.tex"]


def test_small_vocabulary_for_a_tokenizer(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    from icl_jax.data.text.documents import text_documents
    from icl_jax.data.text.tokenizing import train_bpe

    train_bpe(text_documents("text.txt"), 4800, 270).save("bpe.json")
    args = (*_TEXT, "--data.tokenizer", "bpe.json", "--model.vocab-size", "260")
    _assert_refused(command(*args), ("model.vocab_size = 260: must be", "bpe.json"))


# --- run directories that are damaged, or not this run's ---


@pytest.fixture(scope="module")
def good_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped at step 5: it has states, and would be resumed."""
    path = tmp_path_factory.mktemp("good") / "run"
    train_here(tiny_config(), path, stop_at=5)
    return path


def _largest(folder: Path) -> Path:
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def _cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _edit_environment(run: Path, **changes: object) -> None:
    path = run / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _edit_manifest(run: Path, edit: Callable[[list[str]], list[str]]) -> None:
    path = run / "manifest.jsonl"
    path.write_text("".join(line + "\n" for line in edit(path.read_text().splitlines())))


def _swap(run: Path, a: int, b: int) -> None:
    folder = run / "snapshots"
    (folder / str(a)).rename(folder / "moved")
    (folder / str(b)).rename(folder / str(a))
    (folder / "moved").rename(folder / str(b))


def _forget_steps(run: Path) -> None:
    import zarr

    for name in ("loss", "lr", "grad_norm", "step_s"):
        array = zarr.open_group(str(run / "record.zarr"), mode="r+")[name]
        array[3:] = float("nan")  # type: ignore[index]


Damage = Callable[[Path], object]

# name: (what is done to the run, what `train` says, what `verify` says; None: nothing is wrong for it)
DAMAGES: dict[str, tuple[Damage, tuple[str, ...] | None, tuple[str, ...] | None]] = {
    "newer schema": (
        lambda run: _edit_environment(run, schema_version=99),
        ("environment.json: schema_version = 99", "install a newer one"),
        ("environment.json: schema_version = 99",),
    ),
    "environment cut short": (
        lambda run: _cut_short(run / "environment.json"),
        ("environment.json: missing or damaged", "must be a JSON object"),
        ("environment.json: missing or damaged",),
    ),
    "environment gone": (
        lambda run: (run / "environment.json").unlink(),
        ("environment.json: missing or damaged",),
        ("environment.json: missing or damaged",),
    ),
    "config broken": (
        lambda run: (run / "config.toml").write_text("[model"),
        ("config.toml: not valid TOML",),
        ("config.toml: not valid TOML",),
    ),
    "config with an unknown key": (
        lambda run: (run / "config.toml").write_text("[model]\nwidth = 3\n"),
        ("config.toml: unknown key 'model.width'",),
        ("config.toml: unknown key 'model.width'",),
    ),
    "another config": (
        lambda run: edit_config(run, lambda text: text.replace("n_heads = 3", "n_heads = 2")),
        ("is a run with another config", "model.n_heads: 2 != 3", "give --run another path"),
        None,
    ),
    "config cut to fewer fields": (
        lambda run: (run / "config.toml").write_text((run / "config.toml").read_text().partition("[probes]")[0]),
        ("config.toml: damaged: SHA-256 differs from the one in environment.json",),
        ("config.toml: damaged: SHA-256 differs from the one in environment.json",),
    ),
    "another corpus": (
        lambda run: _edit_environment(run, corpus_sha256="0" * 64),
        ("the corpus has changed since the run began", "was 000000000000"),
        None,
    ),
    "manifest line broken": (
        lambda run: _edit_manifest(run, lambda lines: [lines[0], lines[1][:30], *lines[2:]]),
        ("manifest.jsonl: line 2 = ", "must be a JSON object with step, tokens, sha256 and n_bytes"),
        ("manifest.jsonl: line 2 = ",),
    ),
    "manifest steps fall": (
        lambda run: _edit_manifest(run, lambda lines: [lines[1], lines[0], *lines[2:]]),
        ("manifest.jsonl: line 2: step = 0: steps must increase",),
        ("manifest.jsonl: line 2: step = 0: steps must increase",),
    ),
    "manifest line gone": (
        lambda run: _edit_manifest(run, lambda lines: lines[:-1]),
        None,  # the analysis misses a snapshot; the run itself can go on
        ("manifest.jsonl: the snapshot of step 4 is not listed",),
    ),
    "record gone": (
        lambda run: shutil.rmtree(run / "record.zarr"),
        ("record.zarr: cannot read the record",),
        ("record.zarr: cannot read the record",),
    ),
    "record too short": (
        _forget_steps,
        ("record.zarr: holds 3 steps, but the state of step 5 was saved",),
        ("record.zarr: holds 3 steps, but the state of step 5 was saved",),
    ),
    "record chunk cut short": (
        lambda run: _cut_short(_largest(run / "record.zarr" / "loss" / "c")),
        ("record.zarr/loss: damaged",),
        ("record.zarr/loss: damaged",),
    ),
    "state cut short": (
        lambda run: _cut_short(_largest(run / "state" / "5")),
        ("state/5: damaged, cannot be loaded",),
        ("state/5: damaged, cannot be loaded",),
    ),
    "state emptied": (
        lambda run: [file.unlink() for file in (run / "state" / "5").rglob("*") if file.is_file()],
        ("state/5: damaged, cannot be loaded",),
        ("state/5: damaged, cannot be loaded",),
    ),
    "snapshot file gone": (
        lambda run: _largest(run / "snapshots" / "2").unlink(),
        None,
        ("snapshots/2: damaged, cannot be loaded",),
    ),
    "snapshot file cut short": (
        lambda run: _cut_short(_largest(run / "snapshots" / "2")),
        None,
        ("snapshots/2: damaged, cannot be loaded",),
    ),
    "snapshot gone": (
        lambda run: shutil.rmtree(run / "snapshots" / "2"),
        None,
        ("snapshots/2: missing",),
    ),
    "snapshots swapped": (
        lambda run: _swap(run, 2, 3),
        None,
        ("snapshots/2: swapped: it holds the parameters of step 3", "snapshots/3: swapped"),
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_run(name: str, good_run: Path, files: Path, tmp_path: Path) -> None:
    damage, train_says, verify_says = DAMAGES[name]
    run = tmp_path / "run"
    shutil.copytree(good_run, run)
    assert command("verify", run)[0] == 0
    damage(run)
    before = folder_bytes(run)
    status, out, err = command("verify", run)
    assert folder_bytes(run) == before
    assert "Traceback" not in out + err
    if verify_says is None:
        assert (status, err) == (0, "")
    else:
        # 2: not to be opened as a run at all; 1: a run that does not hold what it promises, a line for each lack.
        assert status in (1, 2)
        said = err if status == 2 else out
        assert len(said.splitlines()) == (1 if status == 2 else len(verify_says)), said
        for text in verify_says:
            assert text in said
    if train_says is not None:
        _assert_refused(command("train", files / "tiny.toml", "--run", run, "--devices", "1"), train_says)
