"""Files of torch.save without PyTorch: the same numbers, and no code of theirs is run."""

import collections
import io
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from icl_jax.config import UserError
from icl_jax.importing.checkpoint import open_checkpoint
from icl_jax.importing.formats.pytorch_file import load_pytorch
from tests.importing import written

_KINDS = {np.dtype(np.float32): "Float", np.dtype(np.float16): "Half", np.dtype(ml_dtypes.bfloat16): "BFloat16"}


class _Storage:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array


class _Tensor:
    """Pickled as PyTorch pickles a tensor: a view of a storage."""

    def __init__(self, array: np.ndarray, offset: int = 0, shape: Any = None, strides: Any = None) -> None:
        self.storage = _Storage(array.reshape(-1))
        self.offset, self.shape = offset, tuple(shape or array.shape)
        self.strides = strides or tuple(int(np.prod(self.shape[i + 1 :], dtype=int)) for i in range(len(self.shape)))


def save(path: Path, value: Any, monkeypatch: pytest.MonkeyPatch, byteorder: bytes = b"little") -> Path:
    """torch.save, as its documentation describes the file."""

    def _rebuild_tensor_v2() -> None: ...

    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    for kind in _KINDS.values():
        setattr(torch, f"{kind}Storage", type(f"{kind}Storage", (), {"__module__": "torch"}))
    storages: list[np.ndarray] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if not isinstance(obj, _Storage):
                return None
            storages.append(obj.array)
            kind = getattr(torch, f"{_KINDS[obj.array.dtype]}Storage")
            return ("storage", kind, str(len(storages) - 1), "cpu", obj.array.size)

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, _Tensor):
                args = (obj.storage, obj.offset, obj.shape, obj.strides, False, collections.OrderedDict())
                return _rebuild_tensor_v2, args
            return NotImplemented

    stream = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        Pickler(stream, protocol=2).dump(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        archive.writestr("archive/byteorder", byteorder)
        for i, array in enumerate(storages):
            archive.writestr(f"archive/data/{i}", array.tobytes())
    return path


@pytest.mark.parametrize("dtype", _KINDS, ids=str)
def test_tensors_are_views_of_storages(dtype: np.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = np.arange(24, dtype=np.float32).astype(dtype)
    state = collections.OrderedDict(
        whole=_Tensor(flat.reshape(4, 6)),
        transposed=_Tensor(flat, 0, (6, 4), (1, 6)),
        part=_Tensor(flat, 7, (2, 3), (6, 1)),
        nested={"one": _Tensor(flat), "step": 3},
    )
    found = load_pytorch(save(tmp_path / "m.bin", state, monkeypatch))
    assert set(found) == {"whole", "transposed", "part", "nested.one"}
    assert found["part"].dtype == dtype
    grid = flat.reshape(4, 6)
    for name, expected in {"whole": grid, "transposed": grid.T, "part": grid[1:3, 1:4], "nested.one": flat}.items():
        assert found[name].shape == expected.shape
        np.testing.assert_array_equal(found[name].read(), expected)


def test_a_checkpoint_in_bin_is_that_in_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = written.random_tensors("gpt2", seed=1)
    folder = written.write(tmp_path / "m", "gpt2", tensors)
    (folder / "model.safetensors").unlink()
    save(folder / "pytorch_model.bin", {name: _Tensor(array) for name, array in tensors.items()}, monkeypatch)
    found = open_checkpoint(folder).tensors
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name].read(), tensors[name]) for name in tensors)


class _Evil:
    def __init__(self, call: Any, *args: Any) -> None:
        self.call = (call, args)

    def __reduce__(self) -> Any:
        return self.call


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "it_ran"
    for evil in (_Evil(os.mkdir, str(there)), _Evil(eval, f"__import__('os').mkdir({str(there)!r})")):
        path = save(tmp_path / "m.bin", {"a": _Tensor(np.ones(3, np.float32)), "b": evil}, monkeypatch)
        with pytest.raises(UserError, match=r"m\.bin: its pickle asks to call \S+, which is refused") as error:
            load_pytorch(path)
        assert "\n" not in str(error.value)
        assert not there.exists()


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ones = np.ones(3, np.float32)
    cases: dict[str, Path] = {
        "holds list: must be a dict of tensors": save(tmp_path / "list", [_Tensor(ones)], monkeypatch),
        "lies outside of its storage": save(tmp_path / "outside", {"a": _Tensor(ones, 1, (3,), (1,))}, monkeypatch),
        "byteorder b'big': must be little": save(tmp_path / "big", {"a": _Tensor(ones)}, monkeypatch, b"big"),
        "damaged, or of torch.save before PyTorch 1.6": tmp_path / "old",
        "not a file of torch.save: it has no data.pkl": tmp_path / "zip",
        "damaged, cannot be read": tmp_path / "short",
    }
    (tmp_path / "old").write_bytes(pickle.dumps({"a": 1}))
    zipfile.ZipFile(tmp_path / "zip", "w").close()
    with zipfile.ZipFile(tmp_path / "short", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q")
    for said, path in cases.items():
        with pytest.raises(UserError, match=said):
            load_pytorch(path)
