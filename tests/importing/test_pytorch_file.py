"""Files of torch.save without PyTorch: the same numbers, and no code of theirs is run."""

import collections
import io
import json
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from icl_jax.config import UserError
from icl_jax.importing.checkpoint import open_checkpoint
from icl_jax.importing.formats.pytorch_file import load_pytorch
from icl_jax.importing.map_weights import map_weights
from icl_jax.model.forward import forward
from tests.importing import written
from tests.importing.hub import serving
from tests.train.runs import command

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


HOOKED = {
    "n_layers": 2, "d_model": 12, "n_heads": 2, "d_head": 6, "d_mlp": 10, "d_vocab": written.VOCAB, "n_ctx": 37,
    "attn_only": False, "act_fn": "solu_ln", "normalization": "LN", "shortformer_pos": True, "lr_schedule": "cosine",
    "tokenizer_name": "nobody/digits",
}  # fmt: skip


def _hooked(seed: int, *, is_attention: bool = False) -> dict[str, np.ndarray]:
    """A SoLU or an attention-only model's tensors, by the names of TransformerLens."""
    d, h, e, m, v = 12, 2, 6, 10, written.VOCAB
    shapes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (v, d), "pos_embed.W_pos": (37, d), "unembed.W_U": (d, v), "unembed.b_U": (v,),
        "ln_final.w": (d,), "ln_final.b": (d,),
    }  # fmt: skip
    for i in range(2):
        b = f"blocks.{i}."
        shapes |= {f"{b}attn.W_{x}": (h, d, e) for x in "QKV"} | {f"{b}attn.b_{x}": (h, e) for x in "QKV"}
        shapes |= {f"{b}attn.W_O": (h, e, d), f"{b}attn.b_O": (d,), f"{b}ln1.w": (d,), f"{b}ln1.b": (d,)}
        if not is_attention:
            shapes |= {f"{b}mlp.W_in": (d, m), f"{b}mlp.b_in": (m,), f"{b}mlp.W_out": (m, d), f"{b}mlp.b_out": (d,)}
            shapes |= {f"{b}mlp.ln.w": (m,), f"{b}mlp.ln.b": (m,), f"{b}ln2.w": (d,), f"{b}ln2.b": (d,)}
    draw = np.random.default_rng(seed).normal
    return {name: draw(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def _norm(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w + b


def _hooked_logits(t: dict[str, np.ndarray], ids: np.ndarray, *, shortformer: bool) -> np.ndarray:
    """As TransformerLens computes them: shortformer positions go into queries and keys, and not through the norm."""
    positions = t["pos_embed.W_pos"][: len(ids)]
    x = t["embed.W_E"][ids] + (0 if shortformer else positions)
    for i in range(2):
        b = f"blocks.{i}."
        seen = _norm(x, t[f"{b}ln1.w"], t[f"{b}ln1.b"])
        asked = seen + positions if shortformer else seen
        q, k, v = (
            np.einsum("td,hde->hte", source, t[f"{b}attn.W_{n}"]) + t[f"{b}attn.b_{n}"][:, None]
            for n, source in (("Q", asked), ("K", asked), ("V", seen))
        )
        scores = np.where(np.tril(np.ones((len(ids),) * 2)) > 0, q @ k.swapaxes(1, 2) / np.sqrt(6), -np.inf)
        pattern = np.exp(scores - scores.max(-1, keepdims=True))
        z = pattern / pattern.sum(-1, keepdims=True) @ v
        x = x + np.einsum("hte,hed->td", z, t[f"{b}attn.W_O"]) + t[f"{b}attn.b_O"]
        if f"{b}mlp.W_in" in t:
            m = _norm(x, t[f"{b}ln2.w"], t[f"{b}ln2.b"]) @ t[f"{b}mlp.W_in"] + t[f"{b}mlp.b_in"]
            soft = np.exp(m - m.max(-1, keepdims=True))
            m = _norm(m * soft / soft.sum(-1, keepdims=True), t[f"{b}mlp.ln.w"], t[f"{b}mlp.ln.b"])
            x = x + m @ t[f"{b}mlp.W_out"] + t[f"{b}mlp.b_out"]
    return _norm(x, t["ln_final.w"], t["ln_final.b"]) @ t["unembed.W_U"] + t["unembed.b_U"]


@pytest.mark.parametrize("is_attention", [False, True], ids=["SoLU, shortformer", "attention-only"])
def test_models_of_transformer_lens(is_attention: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"attn_only": True, "shortformer_pos": False, "act_fn": "unused"} if is_attention else {}
    (tmp_path / "config.json").write_text(json.dumps(HOOKED | options))
    tensors = _hooked(0, is_attention=is_attention)
    state = {name: _Tensor(array) for name, array in tensors.items()}
    state["blocks.0.attn.mask"] = _Tensor(np.ones((2, 2), np.float32))
    path = save(tmp_path / "model_final.pth", state, monkeypatch)
    ids = np.random.default_rng(1).integers(0, written.VOCAB, 20)
    for one in (path, tmp_path):
        model, params = map_weights(open_checkpoint(one))
        found = forward({name: jnp.asarray(a) for name, a in params.items()}, jnp.asarray(ids[None]), model)
        expected = _hooked_logits(tensors, ids, shortformer=not is_attention)
        np.testing.assert_allclose(found[0], expected, atol=1e-4, rtol=0)


def test_a_file_for_each_step(tmp_path: Path, tokenizer_json: str, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As TransformerLens's models lie: config.json and checkpoints/NAME_STEP.pth, in a folder or on the hub."""
    repo = tmp_path / "repo" / "main"
    (repo / "checkpoints").mkdir(parents=True)
    (repo / "config.json").write_text(json.dumps(HOOKED))
    for step in (0, 5, 2 * 10**9):
        state = {name: _Tensor(array) for name, array in _hooked(step).items()}
        save(repo / "checkpoints" / f"SoLU_2L_{step:06}.pth", state, monkeypatch)
    tokenizer = tmp_path / "tokenizer.json"
    args = ("--text", text, "--n-ctx", "16", "--tokens-per-step", "64", "--no-audit")
    status, _, err = command("import", repo, "--run", tmp_path / "none", *args)
    assert (status, err.count("\n")) == (2, 1)
    assert "has no tokenizer.json (its config.json names nobody/digits): --tokenizer PATH.json" in err
    tokenizer.write_text(tokenizer_json)
    assert command("import", repo, "--run", tmp_path / "a", "--tokenizer", tokenizer, *args)[0] == 0
    with serving(repo.parent, monkeypatch, tmp_path) as hub:
        source = f"hf:{hub.repo}"
        assert command("import", source, "--run", tmp_path / "b", "--tokenizer", tokenizer, *args)[0] == 0
        assert command("audit", source)[0] == 0
    lines = [(tmp_path / run / "manifest.jsonl").read_text().splitlines() for run in "ab"]
    assert [(json.loads(line)["step"], json.loads(line)["tokens"]) for line in lines[0]] == [
        (0, 0), (5, 320), (2 * 10**9, 2 * 10**9),
    ]  # fmt: skip
    assert [json.loads(line)["sha256"] for line in lines[1]] == [json.loads(line)["sha256"] for line in lines[0]]
    (repo / "config.json").write_text(json.dumps(HOOKED | {"final_rms": True}))
    _, _, err = command("import", repo, "--run", tmp_path / "c", "--tokenizer", tokenizer, *args)
    assert "final_rms = True: not represented here" in err
