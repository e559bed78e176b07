"""`icl-jax import`: a series becomes a run; what is there stays, what is damaged is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.model.forward import forward
from icl_jax.rundir import RunDir
from icl_jax.rundir.lock import exclusive
from tests.importing import written
from tests.importing.conftest import STEPS
from tests.train.runs import command


def _lines(run: Path) -> list[str]:
    return (run / "manifest.jsonl").read_text().splitlines()


def test_a_series_becomes_a_run(imported: Path, series: Path) -> None:
    run = RunDir.open(str(imported))
    assert [(entry.step, entry.tokens) for entry in run.manifest.read()] == [(s, s * 2**21) for s in STEPS]
    tensors = written.random_tensors("gpt_neox", seed=4)
    params = {name: jnp.asarray(array) for name, array in run.load_params(4).items()}
    rows = run.load_held_out().rows
    found = forward(params, jnp.asarray(rows[:1, :-1]), run.config.model)
    np.testing.assert_allclose(found[0], written.logits("gpt_neox", tensors, rows[0, :-1]), atol=1e-4, rtol=0)
    assert run.imported is not None
    origin = run.imported["snapshots"]["4"]
    assert origin["revision"] == "step4"
    assert set(origin["files"]) == {"config.json", "model.safetensors"}
    assert run.imported["source"] == str(series)
    assert command("verify", imported)[0] == 0
    assert "imported from" in command("verify", imported)[1]


def test_held_out_rows_are_of_the_text_by_the_models_tokenizer(imported: Path, text: Path, tokenizer_json: str) -> None:
    from tokenizers import Tokenizer

    held_out = RunDir.open(str(imported)).load_held_out()
    assert held_out.rows.shape[1] == 33
    assert len(held_out.rows) > 20
    assert (held_out.rows[:, 0] == 0).all()
    expected = [0, *Tokenizer.from_str(tokenizer_json).encode(text.read_text(), add_special_tokens=False).ids]
    np.testing.assert_array_equal(held_out.rows[0, 1:], expected[1:33])
    np.testing.assert_array_equal(held_out.rows[-1, 1:], expected[1 + 32 * (len(held_out.rows) - 1) :][:32])


def test_an_import_that_was_interrupted_goes_on(
    imported: Path, series: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("import", series, "--run", tmp_path / "run", "--text", text, "--n-ctx", "32")
    save, n_saved = RunDir.save_snapshot, 0

    def save_or_die(self: RunDir, step: int, *rest: object) -> None:
        nonlocal n_saved
        n_saved += 1
        if n_saved == 2:
            raise KeyboardInterrupt
        save(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "save_snapshot", save_or_die)
        assert command(*args)[0] == 130
    assert len(_lines(tmp_path / "run")) == 1
    status, out, _ = command(*args)
    assert status == 0
    assert "1 of 3 steps are there already" in out
    assert _lines(tmp_path / "run") == _lines(imported)
    assert command("verify", tmp_path / "run")[0] == 0
    held_out = [RunDir.open(str(run)).load_held_out().sha256 for run in (tmp_path / "run", imported)]
    assert held_out[0] == held_out[1]


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _swap_hash(folder: Path) -> None:
    notes = folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "model.safetensors.metadata").write_text(f"{'a' * 40}\n{'b' * 64}\n0.0\n")


def _lose_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _other_model(folder: Path) -> None:
    shutil.rmtree(folder)
    written.write(folder, "gpt_neox", written.random_tensors("gpt_neox", seed=2), layer_norm_eps=0.1)


def _not_finite(folder: Path) -> None:
    tensors = written.random_tensors("gpt_neox", seed=2)
    tensors["embed_out.weight"][3, 3] = np.nan
    shutil.rmtree(folder)
    written.write(folder, "gpt_neox", tensors)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (_cut, "step2/model.safetensors: not a safetensors file, or damaged"),
    "hash": (_swap_hash, "step2/model.safetensors: damaged: its SHA-256 is"),
    "shard": (_lose_shard, "step2/model-00002-of-00002.safetensors: missing: 1 of the 2 files of its weights"),
    "other model": (_other_model, "its config.json is of another architecture than the run's"),
    "not finite": (_not_finite, "step2: W_U holds numbers that are not finite"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "left out"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_step_is_named_and_the_others_go_on(
    damage: Callable[[Path], None], said: str, copied: Path, imported: Path, series: Path, text: Path, tmp_path: Path
) -> None:
    damage(copied / "step2")
    args = ("import", copied, "--run", tmp_path / "run", "--text", text, "--n-ctx", "32", "--steps", "0,2,4")
    status, out, err = command(*args)
    assert (status, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("step 2: left out")]
    assert said in line
    assert "1 left out: 2" in out.splitlines()[-1]
    assert _lines(tmp_path / "run") == [line for line in _lines(imported) if '"step": 2' not in line]
    assert "2" in json.loads((tmp_path / "run" / "environment.json").read_text())["imported"]["missing"]
    if said.endswith("of its weights"):  # mended, it takes its place
        shutil.rmtree(copied / "step2")
        shutil.copytree(series / "step2", copied / "step2")
        assert command(*args)[0] == 0
        assert _lines(tmp_path / "run") == _lines(imported)
        assert json.loads((tmp_path / "run" / "environment.json").read_text())["imported"]["missing"] == {}


def test_steps_that_are_asked_for_and_not_there_are_named(series: Path, text: Path, tmp_path: Path) -> None:
    args = ("import", series, "--run", tmp_path / "run", "--text", text)
    status, out, _ = command(*args, "--steps", "3-9,1", "--tokens-per-step", "100")
    assert status == 0
    assert "step 1: left out:" in out
    assert [json.loads(line)["tokens"] for line in _lines(tmp_path / "run")] == [400]
    assert RunDir.open(str(tmp_path / "run")).config.model.n_ctx == 37  # all that the model takes


def test_two_imports_into_one_run_are_refused(imported: Path, series: Path) -> None:
    with exclusive(str(imported)):
        status, _, err = command("import", series, "--run", imported)
    assert (status, err) == (2, f"icl-jax: {imported}: another process is writing into this run directory\n")
    assert command("import", series, "--run", imported)[0] == 0
