import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from icl_jax.config import UserError
from icl_jax.rundir import checkpoints
from icl_jax.rundir.checkpoints import load_arrays, remove_arrays, remove_partial, save_arrays, saved_steps
from icl_jax.rundir.files import absolute

DTYPES = [np.float32, np.float64, np.int32, np.uint32, np.bool_, ml_dtypes.bfloat16]
# Orbax saves no array of size zero; the model has none.
SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=5)


@st.composite
def _arrays(draw: st.DrawFn) -> np.ndarray:
    """Any bits of any type that a state holds."""
    dtype, shape = np.dtype(draw(st.sampled_from(DTYPES))), draw(SHAPES)
    n_bytes = math.prod(shape) * dtype.itemsize
    data = np.frombuffer(draw(st.binary(min_size=n_bytes, max_size=n_bytes)), np.uint8)
    return (data % 2 if dtype == np.bool_ else data).view(dtype).reshape(shape)


NAMES = st.sampled_from(["W_E", "step", "opt_state.0.mu.W_E", "params.ln1_w", "x"])


def _assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert found[name].tobytes() == value.tobytes(), name


@given(arrays=st.dictionaries(NAMES, _arrays(), min_size=1))
@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_save_and_load_are_the_identity(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Bit for bit, NaN and infinity among them; scalars stay scalars."""
    path = epath.Path(tmp_path) / "5"
    save_arrays(path, arrays)
    _assert_same(load_arrays(path), arrays)


def test_saving_again_replaces(tmp_path: Path) -> None:
    path = epath.Path(tmp_path) / "5"
    save_arrays(path, {"a": np.ones((3, 2), np.float32), "gone": np.array(1, np.int32)})
    save_arrays(path, {"a": np.arange(7, dtype=np.int32)})
    _assert_same(load_arrays(path), {"a": np.arange(7, dtype=np.int32)})
    assert [p.name for p in tmp_path.iterdir()] == ["5"]


def test_a_relative_path_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_arrays(epath.Path("run/state/5"), {"a": np.array(2, np.int32)})
    _assert_same(load_arrays(epath.Path("run/state/5")), {"a": np.array(2, np.int32)})


def test_missing_and_damaged_are_user_errors(tmp_path: Path) -> None:
    path = epath.Path(tmp_path) / "5"
    with pytest.raises(UserError, match="missing"):
        load_arrays(path)
    path.mkdir()
    with pytest.raises(UserError, match="damaged"):
        load_arrays(path)


def test_steps_are_the_complete_checkpoints_in_order(tmp_path: Path) -> None:
    folder = epath.Path(tmp_path) / "state"
    assert saved_steps(folder) == []
    remove_partial(folder)
    for name in ("10", "9", "0", "7.orbax-checkpoint-tmp-123", "notes"):
        (folder / name).mkdir(parents=True)
    (folder / ".DS_Store").touch()
    assert saved_steps(folder) == [0, 9, 10]
    remove_partial(folder)
    assert sorted(p.name for p in folder.iterdir()) == [".DS_Store", "0", "10", "9", "notes"]


@pytest.mark.parametrize("is_in_bucket", [False, True])
def test_half_removed_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_in_bucket: bool) -> None:
    folder = epath.Path(tmp_path)
    monkeypatch.setattr(checkpoints, "is_bucket", lambda _path: is_in_bucket)
    for step in (3, 20):
        save_arrays(folder / str(step), {"a": np.array(step, np.int32)})

    def killed(path: epath.Path) -> None:
        next(file for file in sorted(Path(path).rglob("*")) if file.is_file()).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_arrays(folder / "3")
    assert saved_steps(folder) == [20]
    remove_partial(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["20"]


# --- in a bucket; tests/train/test_bucket.py has a real one ---


def test_the_path_of_a_bucket_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(absolute(epath.Path("gs://bucket/run/state/5"))) == "gs://bucket/run/state/5"
    assert str(absolute(epath.Path("run/state/5"))) == str(tmp_path / "run/state/5")


def test_only_what_orbax_committed_is_complete_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = epath.Path(tmp_path)
    for step in (3, 20):
        save_arrays(folder / str(step), {"a": np.array(step, np.int32)})
    save_arrays(folder / "100", {"a": np.array(100, np.int32)})
    (folder / "100" / "commit_success.txt").unlink()  # where folders are renamed, the name alone says it
    (folder / "notes").mkdir()
    assert saved_steps(folder) == [3, 20, 100]
    monkeypatch.setattr(checkpoints, "is_bucket", lambda _path: True)
    assert saved_steps(folder) == [3, 20]
    remove_partial(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20", "3", "notes"]
