"""What is imported when: a notebook opens a run without waiting for what it does not use."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.analysis.small_runs import hand_built_run


def _loaded(code: str, cwd: Path) -> set[str]:
    """Modules that a fresh interpreter has after `code`."""
    code = f"import sys\n{code}\nprint(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=cwd).stdout.split()
    )


def test_import_alone_loads_the_standard_library_only(checkout: Path) -> None:
    loaded = {name.partition(".")[0] for name in _loaded("import icl_jax", checkout) - _loaded("", checkout)}
    assert loaded - sys.stdlib_module_names <= {"icl_jax"}


def test_a_run_is_opened_without_flax_and_tokenizers(checkout: Path, tmp_path: Path) -> None:
    hand_built_run(tmp_path / "run", n_ctx=17, vocab_size=11)
    path = str(tmp_path / "run")
    code = f"import icl_jax\nrun = icl_jax.open_run({path!r})\nrun.config, run.snapshots, run.record['loss']"
    loaded = _loaded(code, checkout)
    assert "icl_jax.rundir.run" in loaded
    assert not loaded & {"flax", "matplotlib", "optax", "tokenizers", "wandb"}


_SLOW = {"flax", "jax", "matplotlib", "optax", "orbax", "scipy", "wandb", "xarray", "zarr"}
_REFUSED = (
    "train configs/smoke.toml --model.n-heads 7", "train configs/smoke.toml --run tests",
    "train configs/smoke.toml --data.source text:nosuch.txt", "analyze nosuch", "report nosuch", "verify nosuch",
    "probe nosuch 1", "export nosuch --to transformer-lens", "data show configs/smoke.toml --model.n-heads 7",
    "data prepare configs/smoke.toml --data.source text:nosuch.txt", "compile repeats-2l", "reproduce nosuch",
    "sweep nosuch.yaml repeats-2l", "launch repeats-2l --model.n-heads 7", "workspace repeats-9l",
    "import nosuch --run OUT", "import tests --run OUT", "import RUN --run RUN", "reproduce SUITE",
    "analyze RUN --only nosuch", "analyze RUN --snapshots 1", "analyze RUN --snapshots 3,4", "analyze RUN --rows -1",
    "probe RUN 11", "probe RUN 1 --step 3", "probe RUN 1 --top 0", "export RUN --to transformer-lens --step 3",
    "export RUN --to transformer-lens --out a.txt", "train TOML --run RUN", "report RUN --out TOML",
)  # fmt: skip
_REFUSED_AFTER_THE_RECORD = ("analyze EMPTY", "report RUN EMPTY", "probe EMPTY 1", "export EMPTY --to transformer-lens")
_SUITE = """
title = "x"
[analysis]
only = ["nosuch"]
[[member]]
config = "repeats-1l"
"""


def test_what_cannot_be_used_is_refused_without_the_libraries_that_take_seconds(checkout: Path, tmp_path: Path) -> None:
    hand_built_run(tmp_path / "run", n_ctx=17, vocab_size=11)
    shutil.copytree(tmp_path / "run", tmp_path / "empty", ignore=shutil.ignore_patterns("snapshots", "manifest.jsonl"))
    (tmp_path / "suite.toml").write_text(_SUITE)
    shutil.copy(checkout / "configs" / "smoke.toml", tmp_path / "smoke.toml")
    names = {"RUN": "run", "EMPTY": "empty", "OUT": "out", "SUITE": "suite.toml", "TOML": "smoke.toml"}
    refused, after_the_record = (
        [[str(tmp_path / names[arg]) if arg in names else arg for arg in args.split()] for args in rows]
        for rows in (_REFUSED, _REFUSED_AFTER_THE_RECORD)
    )
    code = f"""
from icl_jax.cli.main import run
for args in {refused!r}:
    assert run(args) == 2, args
    assert not {_SLOW!r} & sys.modules.keys(), args
for args in {after_the_record!r}:
    assert run(args) == 2, args
    assert not {_SLOW!r} - {{'xarray', 'zarr'}} & sys.modules.keys(), args"""
    loaded = _loaded(code, checkout)
    assert "icl_jax.train.may_start" in loaded


def test_a_run_is_opened_without_the_libraries_that_take_seconds(checkout: Path, tmp_path: Path) -> None:
    hand_built_run(tmp_path / "run", n_ctx=17, vocab_size=11)
    code = f"import icl_jax\nrun = icl_jax.open_run({str(tmp_path / 'run')!r})\nrun.config, run.snapshots"
    assert not _loaded(code, checkout) & {"flax", "jax", "orbax", "xarray", "zarr"}


def test_training_starts_without_what_only_analysis_needs(checkout: Path) -> None:
    loaded = _loaded("import icl_jax.train.session", checkout)
    assert "icl_jax.maths.change_point" in loaded
    assert not loaded & {"matplotlib", "scipy", "wandb"}


@pytest.mark.parametrize("name", ["open_run"])
def test_names_that_are_loaded_late_are_there(name: str) -> None:
    import icl_jax

    assert callable(getattr(icl_jax, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = icl_jax.nothing
