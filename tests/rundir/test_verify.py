"""Every way in which a run directory can break is found and named; a good one is left in peace."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import quiet_orbax, save_arrays
from icl_jax.rundir.verify import problems
from tests.rundir.made_run import make_run, params_of, run_config, state_of

CONFIG = run_config()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quiet_orbax()
    path = tmp_path_factory.mktemp("verify") / "good"
    make_run(path, CONFIG)
    return path


@pytest.fixture
def root(good: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(good, tmp_path / "run"))


def _problems(root: Path) -> list[str]:
    return list(problems(RunDir.open(str(root))))


def test_a_good_run_has_no_problems(good: Path) -> None:
    assert _problems(good) == []


@pytest.mark.parametrize("until", [1, 4, 5, 10])
def test_nor_has_a_run_that_was_stopped(tmp_path: Path, until: int) -> None:
    run = make_run(tmp_path / "run", CONFIG, until=until)
    assert _problems(tmp_path / "run") == []
    # Nor one that was killed later: the work past the state is done again on resuming.
    if until == 4:
        run.save_snapshot(4, params_of(4))
        assert _problems(tmp_path / "run") == []


@pytest.mark.filterwarnings("ignore:Object at .* is not recognized as a component of a Zarr hierarchy")
def test_files_that_systems_leave_in_any_folder_are_no_damage(root: Path) -> None:
    """Finder, AppleDouble copies, Explorer, NFS, vim: those in folders of arrays were taken for changed contents."""
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        for name in (".DS_Store", "._zarr.json", "._0", "Thumbs.db", ".nfs0001", ".zarr.json.swp", "zarr.json~"):
            (folder / name).write_bytes(b"\0\0\0\1Bud1")
    (root / "analysis_parts" / "icl").mkdir(parents=True)
    (root / "analysis_parts" / "icl" / "._0123456789abcdef.npz").write_bytes(b"\0\5\x16\7")
    assert _problems(root) == []


@pytest.mark.parametrize("fields", [{"n_layers": 0}, {"n_probes": 0}, {"n_ctx": 5}])
def test_nor_have_models_without_layers_runs_without_probes_and_short_contexts(
    tmp_path: Path, fields: dict[str, int]
) -> None:
    make_run(tmp_path / "run", run_config(**fields))
    assert _problems(tmp_path / "run") == []


def _largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _swap(a: Path, b: Path) -> None:
    a.rename(a.parent / "swap")
    b.rename(a)
    (a.parent / "swap").rename(b)


def _edit_manifest(root: Path, step: int, **fields: object) -> None:
    path = root / "manifest.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(e | fields if e["step"] == step else e) + "\n" for e in entries))


def _drop_line(root: Path, step: int) -> None:
    path = root / "manifest.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if json.loads(line)["step"] != step))


def _set_record(root: Path, name: str, index: int, value: float) -> None:
    array = zarr.open_group(str(root / "record.zarr"), mode="r+")[name]
    assert isinstance(array, zarr.Array)
    array[index] = value


def _drop_chunks(root: Path, name: str) -> None:
    shutil.rmtree(root / "record.zarr" / name / "c")


def _other_state(root: Path, step: int) -> None:
    """A state of the right step with the parameters of another."""
    save_arrays(RunDir.open(str(root)).path / "state" / "11", state_of(step) | {"step": np.array(11, np.int32)})


def _edit_group(store: Path, **attributes: object) -> None:
    """Attributes set, or taken away where None."""
    group = json.loads((store / "zarr.json").read_text())
    kept = group["attributes"] | attributes
    group["attributes"] = {name: value for name, value in kept.items() if value is not None}
    (store / "zarr.json").write_text(json.dumps(group))


def _broken_part(root: Path) -> None:
    path = root / "analysis_parts" / "icl" / "a.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, a=np.zeros(100))
    _truncate(path)


def _changed_params(root: Path) -> None:
    params = params_of(4)
    params["W_E"][0, 0] = np.nextafter(params["W_E"][0, 0], np.float32(9))
    save_arrays(RunDir.open(str(root)).path / "snapshots" / "4", params)


FAULTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "snapshot file cut in half": (lambda r: _truncate(_largest_file(r / "snapshots" / "4")), ["snapshots/4: "]),
    "snapshot file emptied": (lambda r: _largest_file(r / "snapshots" / "4").write_bytes(b""), ["snapshots/4: "]),
    "snapshot's metadata lost": (lambda r: (r / "snapshots" / "4" / "_METADATA").unlink(), ["snapshots/4: "]),
    "snapshot folder lost": (lambda r: shutil.rmtree(r / "snapshots" / "4"), ["snapshots/4: missing"]),
    "one bit of one parameter": (_changed_params, ["snapshots/4: its parameters have changed"]),
    "two snapshots swapped": (
        lambda r: _swap(r / "snapshots" / "4", r / "snapshots" / "7"),
        [f"snapshots/{a}: swapped: it holds the parameters of step {b}" for a, b in ((4, 7), (7, 4))],
    ),
    "hash edited": (lambda r: _edit_manifest(r, 4, sha256="0" * 64), ["snapshots/4: its parameters have changed"]),
    "size edited": (lambda r: _edit_manifest(r, 4, n_bytes=7), ["step 4: n_bytes = 7: the snapshot has 1440"]),
    "tokens edited": (lambda r: _edit_manifest(r, 4, tokens=7), ["step 4: tokens = 7: the config says 140"]),
    "manifest line lost": (
        lambda r: _drop_line(r, 4),
        ["the snapshot of step 4 is not listed", "snapshots/4: is not in the manifest"],
    ),
    "last manifest line lost": (lambda r: _drop_line(r, 11), ["the snapshot of step 11 is not listed"]),
    "manifest lost": (
        lambda r: (r / "manifest.jsonl").unlink(),
        [f"the snapshot of step {step} is not listed" for step in (0, 1, 4, 7, 11)],
    ),
    "manifest cut in half": (lambda r: _truncate(r / "manifest.jsonl"), ["manifest.jsonl: line 3"]),
    "record lost": (lambda r: shutil.rmtree(r / "record.zarr"), ["record.zarr"]),
    "record's metadata broken": (lambda r: _truncate(r / "record.zarr" / "loss" / "zarr.json"), ["record.zarr"]),
    "record's chunk cut in half": (
        lambda r: _truncate(_largest_file(r / "record.zarr" / "loss" / "c")),
        ["record.zarr/loss: damaged: "],
    ),
    "loss chunk lost": (
        lambda r: _drop_chunks(r, "loss"),
        ["record.zarr/loss: damaged: 1 of 1 chunks missing, such as c/0/0"],
    ),
    "lr chunk lost": (lambda r: _drop_chunks(r, "lr"), ["record.zarr/lr: damaged: 1 of its 2 files is missing"]),
    "one loss lost": (lambda r: _set_record(r, "loss", 6, np.nan), ["the loss of step 6 is not finite (1 such steps)"]),
    "tokens chunk lost": (lambda r: _drop_chunks(r, "tokens"), ["record.zarr/tokens: damaged: 1 of its 2 files is"]),
    "a step of the record numbered otherwise": (
        lambda r: _set_record(r, "tokens", 3, 7),
        ["record.zarr: tokens is not what the config says"],
    ),
    "positions lost": (lambda r: _drop_chunks(r, "position"), ["record.zarr/position: damaged: 1 of its 2 files"]),
    "probe axis lost": (lambda r: _drop_chunks(r, "probe_step"), ["record.zarr/probe_step: damaged: 1 of its 2 files"]),
    "probes lost": (lambda r: _drop_chunks(r, "icl_score"), ["record.zarr/icl_score: damaged: 1 of its 2 files"]),
    "head scores lost": (
        lambda r: _drop_chunks(r, "prefix_matching"),
        ["record.zarr/prefix_matching: damaged: 1 of its 2 files is missing"],
    ),
    "an array of the record changed": (
        lambda r: _set_record(r, "position", 3, 7),
        ["record.zarr/position: damaged: its contents have changed since it was sealed"],
    ),
    "the record's own metadata changed": (
        lambda r: _edit_group(r / "record.zarr", icl_late=3),
        ["record.zarr/zarr.json: damaged: its contents have changed"],
    ),
    "BOS changed": (
        lambda r: _edit_group(r / "held_out.zarr", bos_id=3),
        ["held_out.zarr/zarr.json: damaged: its contents have changed"],
    ),
    "held-out rows lost": (
        lambda r: shutil.rmtree(r / "held_out.zarr" / "rows" / "c"),
        ["held_out.zarr/rows: damaged: 1 of its 2 files is missing"],
    ),
    "tokenizer lost": (lambda r: (r / "tokenizer.json").unlink(), ["tokenizer.json: missing; environment.json says"]),
    "tokenizer cut": (lambda r: _truncate(r / "tokenizer.json"), ["tokenizer.json: damaged: SHA-256 differs"]),
    "finished analysis damaged": (_broken_part, ["analysis_parts/icl/a.npz: damaged; icl-jax analyze takes its"]),
    "held-out loss lost": (
        lambda r: _set_record(r, "held_out_loss", 1, np.nan),
        ["held_out_loss of the probe at step 6 is not finite (1"],
    ),
    "state file cut in half": (lambda r: _truncate(_largest_file(r / "state" / "11")), ["state/11: "]),
    "older state damaged": (lambda r: _truncate(_largest_file(r / "state" / "9")), ["state/9: "]),
    "states swapped": (
        lambda r: _swap(r / "state" / "9", r / "state" / "11"),
        ["state/9: swapped: it holds the state of step 11", "state/11: swapped: it holds the state of step 9"],
    ),
    "state replaced by a snapshot": (
        lambda r: (shutil.rmtree(r / "state" / "11"), shutil.copytree(r / "snapshots" / "11", r / "state" / "11")),
        ["state/11: is not a training state"],
    ),
    "state with the parameters of another step": (
        lambda r: _other_state(r, 7),
        ["state/11: its parameters are not those of the snapshot of step 11"],
    ),
}


# Of runs of before 2026-11-27, which have no seals: what the config and the numbers themselves tell.
UNSEALED: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "loss chunk lost": (
        lambda r: _drop_chunks(r, "loss"),
        ["record.zarr/loss: damaged: 1 of 1 chunks missing, such as c/0/0"],
    ),
    "lr chunk lost": (lambda r: _drop_chunks(r, "lr"), ["holds 0 steps, but the state of step 11 was saved"]),
    "tokens chunk lost": (lambda r: _drop_chunks(r, "tokens"), ["record.zarr: tokens is not what the config says"]),
    "positions lost": (lambda r: _drop_chunks(r, "position"), ["record.zarr: position is not what the config says"]),
    "probe axis lost": (
        lambda r: _drop_chunks(r, "probe_step"),
        ["record.zarr: probe_step is not what the config says"],
    ),
    "probes lost": (
        lambda r: _drop_chunks(r, "icl_score"),
        ["holds 0 probes of 3, but the state of step 11 was saved"],
    ),
    "head scores lost": (
        lambda r: _drop_chunks(r, "prefix_matching"),
        ["prefix_matching of the probe at step 0 is not finite (3 such"],
    ),
    "held-out rows lost": (
        lambda r: shutil.rmtree(r / "held_out.zarr" / "rows" / "c"),
        ["held_out.zarr: damaged: SHA-256 differs"],
    ),
}


def _unseal(root: Path) -> None:
    for store in ("record.zarr", "held_out.zarr"):
        _edit_group(root / store, seal=None)


# TensorStore reads arrays side by side. When one is damaged, Orbax closes its event loop while others may still answer.
@pytest.mark.parametrize("fault", [*FAULTS, *(f"unsealed: {name}" for name in UNSEALED)])
def test_each_fault_is_named(root: Path, fault: str) -> None:
    name = fault.removeprefix("unsealed: ")
    if name != fault:
        _unseal(root)
        assert _problems(root) == []
    damage, expected = FAULTS[fault] if name == fault else UNSEALED[name]
    damage(root)
    found = _problems(root)
    assert found
    for text in expected:
        assert any(text in line for line in found), found
    assert all("\n" not in line and len(line) < 1000 for line in found)
    assert len(found) == len(expected), found
