import hashlib
import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.config import UserError
from icl_jax.rundir.manifest import Manifest, SnapshotEntry, params_sha256

HASH = "0123456789abcdef" * 4

ENTRIES = st.lists(
    st.builds(
        SnapshotEntry,
        step=st.integers(0, 2**40),
        tokens=st.integers(0, 2**60),
        sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
        n_bytes=st.integers(0, 2**50),
    ),
    max_size=9,
    unique_by=lambda entry: entry.step,
).map(lambda entries: sorted(entries, key=lambda entry: entry.step))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    return epath.Path(tmp_path_factory.mktemp("manifest")) / "manifest.jsonl"


@given(entries=ENTRIES)
def test_what_is_written_is_read(path: epath.Path, entries: list[SnapshotEntry]) -> None:
    Manifest(path).write(entries)
    assert Manifest(path).read() == entries
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [e.step for e in entries]
    assert [p.name for p in path.parent.iterdir()] == ["manifest.jsonl"]


@given(entries=ENTRIES.filter(bool))
def test_an_entry_is_added_in_its_place(path: epath.Path, entries: list[SnapshotEntry]) -> None:
    middle = len(entries) // 2
    Manifest(path).write(entries[:middle] + entries[middle + 1 :])
    Manifest(path).add(entries[middle])
    assert Manifest(path).read() == entries


def test_no_file_is_no_entries(tmp_path: Path) -> None:
    assert Manifest(epath.Path(tmp_path) / "manifest.jsonl").read() == []


GOOD = f'{{"step": 3, "tokens": 30, "sha256": "{HASH}", "n_bytes": 8}}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "{", "line 2"),
        (GOOD + "\n" + GOOD, "line 2"),
        ("[1]\n", "line 1"),
        ("7\n", "line 1"),
        (GOOD.replace('"tokens": 30, ', ""), "line 1"),
        (GOOD.replace("}", ', "extra": 1}'), "line 1"),
        (GOOD.replace("30", '"30"'), "line 1"),
        (GOOD.replace("30", "true"), "line 1"),
        (GOOD.replace("30", "3e1"), "line 1"),
        (GOOD.replace(HASH, HASH[:-1]), "line 1"),
        (GOOD + GOOD, "steps must increase"),
        (GOOD + GOOD.replace('"step": 3', '"step": 2'), "steps must increase"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = epath.Path(tmp_path) / "manifest.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        Manifest(path).read()
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_are_a_user_error(tmp_path: Path) -> None:
    path = epath.Path(tmp_path) / "manifest.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"manifest\.jsonl"):
        Manifest(path).read()


def test_the_hash_is_what_its_docstring_says() -> None:
    """Computed again with struct, the way a program in another language would."""
    params = {
        "W_U": np.array([[1.5, -2.0, 3.25]], np.float32),
        "W_E": np.array([7, -8], np.int32),
        "scale": np.array(0.5, np.float32),
    }
    digest = hashlib.sha256()
    digest.update(b"W_E int32 (2,)\n" + struct.pack("<2i", 7, -8))
    digest.update(b"W_U float32 (1, 3)\n" + struct.pack("<3f", 1.5, -2.0, 3.25))
    digest.update(b"scale float32 ()\n" + struct.pack("<f", 0.5))
    assert params_sha256(params) == digest.hexdigest()


def _params() -> dict[str, np.ndarray]:
    return {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p | {"c": p["b"]},
        lambda p: {"a": p["a"]},
        lambda p: {"a": p["b"], "b": p["a"]},
        lambda p: {"a": p["a"], "bb": p["b"]},
        lambda p: p | {"a": p["a"].reshape(3, 2)},
        lambda p: p | {"a": p["a"].reshape(6)},
        lambda p: p | {"a": np.ascontiguousarray(p["a"][::-1])},
        lambda p: p | {"a": p["a"].astype(np.float64)},
        lambda p: p | {"a": p["a"].view(np.int32)},
        lambda p: p | {"b": np.nextafter(p["b"], np.float32(2))},
    ],
)
def test_the_hash_sees_every_change(change) -> None:
    assert params_sha256(change(_params())) != params_sha256(_params())


def test_the_hash_does_not_see_the_layout_in_memory() -> None:
    params = _params()
    expected = params_sha256(params)
    assert params_sha256({"b": params["b"], "a": params["a"]}) == expected
    assert params_sha256(params | {"a": np.asfortranarray(params["a"])}) == expected
    assert params_sha256(params | {"a": params["a"].astype(">f4")}) == expected
    assert params_sha256(params | {"b": np.ones(8, np.float32)[::2]}) == expected


def test_bfloat16_can_be_hashed() -> None:
    a, b = (params_sha256({"a": np.array([1, x], ml_dtypes.bfloat16)}) for x in (2, 3))
    assert a != b


def test_a_field_of_a_newer_version_is_named(tmp_path: Path) -> None:
    manifest = Manifest(epath.Path(tmp_path) / "manifest.jsonl")
    line = {"step": 0, "tokens": 0, "sha256": "0" * 64, "n_bytes": 1, "codec": "new"}
    manifest.path.write_text(json.dumps(line))
    with pytest.raises(UserError, match=r"manifest.jsonl: line 1: unknown field 'codec': must be a JSON object with"):
        manifest.read()
