"""Members are analyzed together: to the bits of each alone, from one reading of each snapshot, by the same programs."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from icl_jax.analysis.dataset import load_dataset
from icl_jax.analysis.run_measurements import analyze, analyze_members
from icl_jax.config import MembersConfig, ModelConfig
from icl_jax.measures.map_snapshots import _compiled
from icl_jax.rundir import HeldOut, RunDir
from icl_jax.rundir import snapshots as snapshots_module
from tests.analysis.small_runs import BOS, config_of, random_rows, random_run
from tests.model.random_params import random_params

MODEL = ModelConfig(n_layers=2, d_model=12, n_heads=3, n_ctx=29, vocab_size=31)
STEPS = (0, 40, 80, 120)
ONLY = ["head_scores", "composition", "ablation", "icl"]


def run_of_members(path: Path, n: int, failed_at: int | None = None) -> RunDir:
    """Member k's snapshots are those of `random_run` with seeds from k on; the last one may fail at a step."""
    config = replace(config_of(MODEL, STEPS[-1]), members=MembersConfig(seeds=f"0..{n - 1}"))
    rows = random_rows(MODEL, 6)
    held_out = HeldOut(rows, np.arange(1, MODEL.vocab_size, dtype=np.int32), BOS)
    run = RunDir.create(str(path), config, corpus_sha256="0" * 64, held_out=held_out)
    for i, step in enumerate(STEPS):
        each = [random_params(MODEL, i + k) for k in range(n)]
        failed = () if failed_at is None or step < failed_at else (n - 1,)
        run.save_snapshot(step, {name: np.stack([one[name] for one in each]) for name in each[0]}, failed=failed)
    return run


def test_members_are_analyzed_as_each_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of_members(tmp_path / "members", 3, failed_at=100)
    alone = random_run(tmp_path / "alone", MODEL, STEPS)
    expected = analyze(alone, only=ONLY)  # what is compiled for one is all that is compiled
    n_compiled = _compiled.cache_info().misses
    read: Counter[str] = Counter()
    open_arrays = snapshots_module.open_arrays
    monkeypatch.setattr(snapshots_module, "open_arrays", lambda path: read.update([path.name]) or open_arrays(path))
    counts: list[tuple[int, int, str]] = []
    found = list(analyze_members(run, only=ONLY, progress=lambda *now: counts.append(now)))
    assert read == dict.fromkeys(map(str, STEPS), 2)  # once for all that is taken everywhere, once for ablations
    assert _compiled.cache_info().misses == n_compiled
    assert counts[-1][0] == counts[-1][1] == sum(dataset.sizes["snapshot"] for _, dataset in found) * 4
    assert [member.index for member, _ in found] == [0, 1, 2]
    assert found[0][1].drop_attrs(deep=False).identical(expected.drop_attrs(deep=False))
    assert found[2][1]["snapshot"].values.tolist() == [0, 40, 80]
    assert not np.array_equal(found[1][1]["prefix_matching"], found[0][1]["prefix_matching"])
    read.clear()
    for member, again in analyze_members(run, only=ONLY):
        assert again.sizes == load_dataset(member.path / "analysis.zarr").sizes
    assert read == {}  # all is finished
