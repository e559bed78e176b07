from pathlib import Path

import numpy as np
import pytest

from icl_jax.analysis.over_members import analyze_over_members, brief
from icl_jax.analysis.run_measurements import analyze, analyze_members
from icl_jax.config import ModelConfig
from icl_jax.report import write
from tests.analysis.made_members import TOKENS, made_members
from tests.analysis.small_runs import hand_built_run, random_run
from tests.report.made_runs import N_MEMBERS, WITHOUT, add_labels, add_tokenizer

# What the page shows of; the other measurements only cost time here.
_TAKEN = (
    "icl", "loss_derivative", "bump", "phase_change", "pca", "loss_by_log_tokens", "labelled_tokens", "head_scores",
    "qk_trace", "copying", "composition", "ablation_effects",
)  # fmt: skip


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two analyzed runs: hand-built induction with hostile tokens and labels; and a model without layers."""
    folder = tmp_path_factory.mktemp("runs")
    induction = hand_built_run(folder / '<i>two & "layers"', n_ctx=17, vocab_size=11)
    add_tokenizer(folder / '<i>two & "layers"')
    add_labels(induction, ("first <b>label</b>", "second_label"))
    model = ModelConfig(n_layers=0, d_model=6, n_heads=2, n_ctx=17, vocab_size=11)
    none = random_run(folder / "zero", model, steps=(0, 30, 60, 100))
    for run in (induction, none):
        analyze(run, only=_TAKEN)
    return [str(induction.path), str(none.path)]


@pytest.fixture(scope="session")
def page(runs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their report, without its pictures, which take longest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "save_figure", lambda *_figure: [])
        return write.write_report(runs, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An analyzed run of twelve members, of which one never changes."""
    places = TOKENS * np.linspace(0.3, 0.6, N_MEMBERS)
    places[WITHOUT] = np.inf
    run = made_members(tmp_path_factory.mktemp("members") / "many", places, snapshots=(0, 200, 400))
    taken = analyze_members(run, only=["icl", "head_scores", "composition", "phase_change"])
    analyze_over_members(run, {member.index or 0: brief(dataset) for member, dataset in taken})
    return Path(run.path)


@pytest.fixture(scope="session")
def members_page(members: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report, with the pictures over members alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "FIGURES", ())
        return write.write_report([str(members)], tmp_path_factory.mktemp("report"))
