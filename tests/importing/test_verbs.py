"""The five commands of docs/import.md against a hub on this machine, and what the run is good for.

It is analyzed, reported, probed and verified as one that was trained here.
"""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import icl_jax
from tests.importing import written
from tests.importing.hub import serving
from tests.train.runs import command

STEPS = (0, 1, 512, 2000)
LATER = 30_000


@pytest.fixture(scope="module")
def said(checkout: Path, tokenizer_json: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each of the five commands printed, typed in a folder of its own; `folder` is that."""
    page = (checkout / "docs" / "import.md").read_text(encoding="utf-8")
    block = re.search(r"in five commands:\n\n```\n(.*?)```", page, re.DOTALL)
    assert block is not None
    commands = [shlex.split(line) for line in block[1].splitlines()]
    assert [words[:2] for words in commands] == [
        ["icl-jax", verb] for verb in ("import", "verify", "analyze", "report", "probe")
    ]
    folder = tmp_path_factory.mktemp("pythia")
    for step in (*STEPS, LATER):
        tensors = written.random_tensors("gpt_neox", seed=step)
        written.write(folder / "hub" / f"step{step}", "gpt_neox", tensors, tokenizer_json)
    printed = {"folder": str(folder)}
    with pytest.MonkeyPatch.context() as patch, serving(folder / "hub", patch, folder, "EleutherAI/pythia-70m") as hub:
        patch.chdir(folder)
        for words in commands:
            status, printed[words[1]], err = command(*words[1:])
            assert status == 0, err
    printed["fetched"] = " ".join(name for name in hub.fetched if name.endswith("safetensors"))
    return printed


@pytest.fixture(scope="module")
def run(said: dict[str, str]) -> Path:
    return Path(said["folder"], "runs", "pythia-70m")


def test_the_steps_that_are_named_are_fetched_and_no_others(said: dict[str, str]) -> None:
    assert said["fetched"] == " ".join(f"step{step}/model.safetensors" for step in STEPS)
    assert "step 2: left out: hf:EleutherAI/pythia-70m has no such revision" in said["import"]
    assert "4 snapshots with the hashes of the manifest" in said["verify"]
    assert "note: losses were not looked at" in said["import"]  # the audit at its end
    assert os.listdir(Path(said["folder"], "cache", "icl_jax", "hub")) == []


def test_it_is_measured(run: Path) -> None:
    opened = icl_jax.open_run(str(run))
    assert opened.analysis["snapshot"].values.tolist() == list(STEPS)
    assert opened.analysis["tokens"].values.tolist() == [step * 2**21 for step in STEPS]
    assert np.isfinite(opened.analysis["prefix_matching"].values).all()
    assert len(opened.heads()) == 6
    assert "imported from" in opened._repr_html_()


def test_it_is_reported(run: Path) -> None:
    page = (run / "report" / "index.html").read_text()
    assert "imported from" in page
    csv = [path.read_text() for path in (run / "report").rglob("*.csv")]
    assert csv
    assert not any("run: training batches" in text for text in csv)  # there is no record of any


def test_it_is_probed(said: dict[str, str]) -> None:
    assert f"mean loss at step {STEPS[-1]}:" in said["probe"]


def test_what_cannot_be_done_says_why(run: Path) -> None:
    status, _, err = command("export", run, "--to", "transformer-lens")
    assert (status, err.count("\n")) == (2, 1) or status == 0
    with pytest.raises(icl_jax.config.UserError, match="has no record: its snapshots were imported"):
        icl_jax.open_run(str(run)).record  # noqa: B018


def test_a_snapshot_that_was_changed_is_found(run: Path) -> None:
    environment = run / "environment.json"
    text = environment.read_text()
    environment.write_text(text.replace('"512": {', '"513": {'))
    try:
        status, out, _ = command("verify", run)
    finally:
        environment.write_text(text)
    assert status == 1
    assert "does not say what files the snapshot of step 512 is from" in out
