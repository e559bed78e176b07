"""Each file of an imported run, damaged: no verb gives another number than of the intact run without a word."""

import itertools
import shutil
from pathlib import Path

from icl_jax.analysis.run_measurements import analyze
from icl_jax.rundir import RunDir
from tests.rundir.test_every_file import DAMAGES, files_of, kind_of, try_damages, verbs_of


def test_a_file_of_each_kind(imported: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(imported, tmp_path / "run"))
    analyze(RunDir.open(str(run)), only=("icl", "head_scores"))
    kinds = {kind_of(run, file): file for file in files_of(run)}
    counts = try_damages(run, list(zip(kinds.values(), itertools.cycle(DAMAGES), strict=False))[::4])
    for verb in verbs_of(run):
        assert counts[verb, "named"]
        assert counts[verb, "same"]
