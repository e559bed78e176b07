"""A run that is struck and an unbroken one to compare it with; `note` makes a row of the table in tests/conftest.py."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.train.runs import TINY, compile_once, tiny_config, train_here

Note = Callable[..., None]


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Note:
    """`note(fault, said, lost)`, once the run was compared with an unbroken one: a row of the table."""

    def note_(fault: str, said: str, lost: str = "nothing") -> None:
        record_property("fault", (fault, said, lost, "0"))

    return note_


@pytest.fixture(scope="session", autouse=True)
def _compiled_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        compile_once(patch)
        yield


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unbroken") / "run"
    train_here(tiny_config(), path)
    return path
