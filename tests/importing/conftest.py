"""A tokenizer, a series of three checkpoints, and the run that they are imported into."""

import shutil
from pathlib import Path

import pytest

from icl_jax.data.corpora.manual import ManualDocuments
from icl_jax.rundir.checkpoints import quiet_orbax
from tests.importing import written
from tests.train.runs import command

STEPS = (0, 2, 4)


@pytest.fixture(scope="session")
def series(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str) -> Path:
    """Folders step0, step2, step4 of a GPT-NeoX; 512 tokens a step by the name of a Pythia."""
    folder = tmp_path_factory.mktemp("series") / "pythia-tiny"
    for step in STEPS:
        tensors = written.random_tensors("gpt_neox", seed=step)
        written.write(folder / f"step{step}", "gpt_neox", tensors, tokenizer_json)
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 60 rows of text."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(ManualDocuments()._texts[3:5])[:6000])
    return path


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory, series: Path, text: Path) -> Path:
    """The run of the series, to look at."""
    quiet_orbax()
    path = tmp_path_factory.mktemp("imported") / "run"
    status, _, err = command("import", series, "--run", path, "--text", text, "--n-ctx", "32")
    assert (status, err) == (0, "")
    return path


@pytest.fixture
def copied(series: Path, tmp_path: Path) -> Path:
    """The series, to break."""
    return Path(shutil.copytree(series, tmp_path / "pythia-tiny"))
