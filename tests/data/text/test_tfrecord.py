"""TFRecord files read without TensorFlow."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from icl_jax.config import UserError
from icl_jax.data.text.tfrecord import read_records

# What TensorFlow 2.21's tf.io.TFRecordWriter wrote for the three records below.
WRITTEN_BY_TENSORFLOW = bytes.fromhex(
    "0300000000000000b099490e6f6e6501405508000000000000000029039807d8ea82a2"
    "0700000000000000bbd79f116472656920c3bc71733ff3"
)
RECORDS = [b"one", b"", "drei ü".encode()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.tfrecord"
    path.write_bytes(WRITTEN_BY_TENSORFLOW)
    return path


def test_records_of_tensorflow(path: Path) -> None:
    assert list(read_records(path)) == RECORDS
    assert list(read_records(path, skip=1)) == RECORDS[1:]
    assert list(read_records(path, skip=1, take=1)) == RECORDS[1:2]
    assert list(read_records(path, take=0)) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(WRITTEN_BY_TENSORFLOW) - 1), bit=st.integers(0, 7))
def test_every_flipped_bit_is_seen(path: Path, place: int, bit: int) -> None:
    data = bytearray(WRITTEN_BY_TENSORFLOW)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x.tfrecord: damaged TFRecord file \(byte \d+\)"):
        list(read_records(path))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(1, len(WRITTEN_BY_TENSORFLOW) - 1))
def test_a_file_cut_short_is_seen(path: Path, size: int) -> None:
    path.write_bytes(WRITTEN_BY_TENSORFLOW[:size])
    if size in (19, 35):
        assert list(read_records(path)) == RECORDS[: 1 if size == 19 else 2]  # ends where a record ends
    else:
        with pytest.raises(UserError, match="damaged"):
            list(read_records(path))
