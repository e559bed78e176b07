"""Arrays as they lie in a checkpoint's files: all forms that Orbax writes, and each byte of one changed."""

import math
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from icl_jax.config import UserError
from icl_jax.rundir import saved_arrays
from icl_jax.rundir.checkpoints import load_sharded, save_arrays, save_sharded
from icl_jax.rundir.manifest import members_sha256, params_sha256
from icl_jax.rundir.saved_arrays import open_arrays


def _arrays() -> dict[str, np.ndarray]:
    """Some inside the nodes of the tree, some in files of their own; more than one piece."""
    draw = np.random.default_rng(5)
    shapes = {"W_E": (7, 5, 11), "long": (3, 100_003), "step": (), "x.y": (3,)}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    path = epath.Path(tmp_path_factory.mktemp("saved") / "a %20?#" / "5")
    save_arrays(path, _arrays())
    return path


def test_pieces_are_the_arrays_bytes(saved: epath.Path) -> None:
    found = open_arrays(saved)
    assert params_sha256(found) == params_sha256(_arrays())
    assert all(array.value is not None for array in found.values())
    assert math.prod(found["long"].shape) * 4 > saved_arrays._PIECE_BYTES
    for name, array in _arrays().items():
        np.testing.assert_array_equal(found[name].read(), array)


def test_a_member_is_read_alone(saved: epath.Path, tmp_path: Path) -> None:
    arrays = {name: array for name, array in _arrays().items() if array.ndim}
    arrays = {name: np.stack([array, array + 1, -array]) for name, array in arrays.items()}
    save_arrays(epath.Path(tmp_path) / "5", arrays)
    found = open_arrays(epath.Path(tmp_path) / "5")
    assert members_sha256(found) == members_sha256(arrays)
    part = found["W_E"][1]
    assert isinstance(part, saved_arrays.SavedArray)
    np.testing.assert_array_equal(part.read(), arrays["W_E"][1])


@pytest.mark.parametrize("use_zarr3", [True, False])
def test_other_forms_are_read(tmp_path: Path, use_zarr3: bool) -> None:
    """Compressed; Zarr v2 is no form of ours, and is no whole checkpoint."""
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=use_zarr3, use_compression=True)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(epath.Path(tmp_path) / "5", args=ocp.args.PyTreeSave(_arrays()))
    if not use_zarr3:
        with pytest.raises(UserError, match="damaged, cannot be loaded: W_E: has no data"):
            open_arrays(epath.Path(tmp_path) / "5")
        return
    found = open_arrays(epath.Path(tmp_path) / "5")
    assert all(array.value is None for array in found.values())
    assert params_sha256(found) == params_sha256(_arrays())
    np.testing.assert_array_equal(found["W_E"][2], _arrays()["W_E"][2])


def _sharded(path: epath.Path) -> dict[str, jax.Array]:
    sharding = NamedSharding(jax.make_mesh((4,), ("d",)), PartitionSpec("d"))
    arrays = {"a": jax.device_put(np.arange(9600, dtype=np.float32).reshape(8, 1200), sharding)}
    save_sharded(path, arrays, lambda: None).close()
    return arrays


def test_chunks_of_devices_are_read(tmp_path: Path) -> None:
    arrays = _sharded(epath.Path(tmp_path) / "5")
    found = open_arrays(epath.Path(tmp_path) / "5")["a"]
    assert found.value is None
    np.testing.assert_array_equal(found.read(), arrays["a"])
    assert b"".join(map(bytes, found.pieces())) == np.asarray(arrays["a"]).tobytes()


def test_what_a_resume_reads_is_looked_at_and_named(tmp_path: Path) -> None:
    """Orbax's own words for these were of its attributes, or of functions of TensorStore."""
    path = epath.Path(tmp_path) / "5"
    arrays = _sharded(path)
    like = {"a": jax.ShapeDtypeStruct((8, 1200), np.float32, sharding=arrays["a"].sharding)}
    data = max(Path(path).glob("ocdbt.process_0/d/*"), key=lambda file: file.stat().st_size)
    for file, said in ((path / "_METADATA", "_METADATA: "), (path / "_sharding", "_sharding: "),
                       (path / "array_metadatas" / "process_0", "process_0: "), (epath.Path(data), "a: ")):  # fmt: skip
        good = file.read_bytes()
        file.write_bytes(good[: len(good) // 2])
        for read in (lambda: {n: a.read() for n, a in open_arrays(path).items()}, lambda: load_sharded(path, like)):
            with pytest.raises(UserError, match=f"5: damaged, cannot be loaded: {said}") as error:
                read()
            assert "AddErrorTrace" not in str(error.value)
            assert "status_builder" not in str(error.value)
        file.write_bytes(good)


def test_any_changed_byte_is_told_or_changes_nothing(tmp_path: Path) -> None:
    """Every 13th byte of every file; those of trees that are not read, and of padding, change nothing."""
    path = epath.Path(tmp_path) / "5"
    save_arrays(path, {name: array for name, array in _arrays().items() if name != "long"})
    expected, n_named = params_sha256(open_arrays(path)), 0
    for file in (file for file in Path(path).rglob("*") if file.is_file()):
        good = file.read_bytes()
        for place in range(0, len(good), 13):
            file.write_bytes(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
            try:
                n_named += params_sha256(open_arrays(path)) != expected
            except UserError as error:
                n_named += str(error).startswith(f"{path}: damaged, cannot be loaded: ")
        file.write_bytes(good)
    assert n_named > 100
    index = max(Path(path).glob("ocdbt.process_0/d/*"), key=lambda file: file.stat().st_size)
    good = index.read_bytes()
    start = good.index(saved_arrays._shard_index(7 * 5 * 11 * 4))
    index.write_bytes(good[:start] + bytes([good[start] ^ 1]) + good[start + 1 :])
    with pytest.raises(UserError, match="W_E: the index of its shard has changed"):
        params_sha256(open_arrays(path))


def test_a_tree_of_many_nodes(tmp_path: Path) -> None:
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{tmp_path}/"}}
    config = {"max_decoded_node_bytes": 300, "max_inline_value_bytes": 10}
    values = ts.KvStore.open({**store, "config": config}).result()
    expected = {f"key{i}": bytes([i]) * (i % 20 + 1) for i in range(200)}
    with ts.Transaction() as transaction:
        for key, value in expected.items():
            values.with_transaction(transaction)[key] = value
    found = dict(saved_arrays._values(saved_arrays._base(epath.Path(tmp_path))))
    assert set(found) == set(expected)
    for key, value in found.items():
        if isinstance(value, bytes):
            assert value == expected[key]
        else:
            name, start, size = value
            assert (tmp_path / name).read_bytes()[start : start + size] == expected[key]


def test_missing_files_and_names(saved: epath.Path, tmp_path: Path) -> None:
    path = epath.Path(tmp_path) / "5"
    shutil.copytree(saved, path)
    metadata = (path / "_METADATA").read_text()
    (path / "_METADATA").write_text(metadata.replace("W_E", "W_U"))
    with pytest.raises(UserError, match="5: damaged, cannot be loaded: W_E: is not in _METADATA"):
        open_arrays(path)
    (path / "_METADATA").write_text(metadata)
    largest = max(Path(path).glob("ocdbt.process_0/d/*"), key=lambda file: file.stat().st_size)
    arrays = open_arrays(path)
    largest.unlink()
    with pytest.raises(UserError, match=r"cannot be loaded: long: .*No such file"):
        arrays["long"].read()
