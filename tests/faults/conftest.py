"""The table at the end of `make test-faults`: what each fault said, what it cost, and what it changed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter
from rich.console import Console
from rich.table import Table

from tests.train.runs import TINY, compile_once, tiny_config, train_here

Note = Callable[..., None]


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Note:
    """`note(fault, said, lost)`, once the run was compared with an unbroken one: a row of the table."""

    def note_(fault: str, said: str, lost: str = "nothing") -> None:
        record_property("fault", (fault, said, lost, "0"))

    return note_


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    table = Table("fault", "what is said", "lost", "bits that differ", title="Faults")
    n_survived = n_failed = 0
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if outcome != "passed":
                n_failed += 1
                table.add_row(report.nodeid.rpartition("::")[2], "", "", "NOT SURVIVED")
            elif report.when == "call":
                for _, row in (found for found in report.user_properties if found[0] == "fault"):
                    n_survived += 1
                    table.add_row(*row)
    terminalreporter.write_line("")
    Console(width=160).print(table)
    terminalreporter.write_line(f"{n_survived + n_failed} faults tried, {n_survived} survived")


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
