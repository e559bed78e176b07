"""`icl-jax probe` and `run.probe` on the hand-built run: what is printed has known values."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers

import icl_jax
from icl_jax import process
from icl_jax.analysis.probe import probe as probe_run
from icl_jax.cli.probe import ProbeArgs, probe
from icl_jax.config import ModelConfig, UserError
from icl_jax.rundir import RunDir
from tests.analysis.small_runs import hand_built_run, random_run
from tests.hand_built import GAMMA
from tests.train.runs import command

N_CTX, V = 17, 11
TEXT = "3 7 5 3 7"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its induction head's gain grows from 0 at step 40 to GAMMA at step 60."""
    path = tmp_path_factory.mktemp("probe") / "run"
    hand_built_run(path, n_ctx=N_CTX, vocab_size=V)
    return path


def cells(out: str) -> list[list[str]]:
    """The table's rows, by the gaps between columns."""
    lines = [line for line in out.splitlines() if line[:2].strip().isdigit()]
    return [line.split() for line in lines]


def test_known_losses_predictions_and_heads(run: Path) -> None:
    status, out, err = command("probe", run, TEXT, "--top", "2", "--heads", "1")
    assert (status, err) == (0, "")
    rows = cells(out)
    assert [row[1] for row in rows] == ["0", "3", "7", "5", "3", "7", "(next)"]
    # 7 after the second 3: the head adds GAMMA, less its mean over the vocabulary; nothing else adds anything.
    loss = np.log1p((V - 1) * np.exp(-GAMMA))
    top = 1 / (1 + (V - 1) * np.exp(-GAMMA))
    assert rows[5] == [
        "5",
        "7",
        f"{loss:.2f}",
        "7",
        f"{top:.2f}",
        "0",
        "0.00",
        "1.0",
        f"+{GAMMA * (1 - 1 / V):.1f}",
        "+0.0",
    ]
    assert rows[6][2:4] == ["5", f"{top:.2f}"]  # what would come next: what stood after 7
    assert rows[2][2] == f"{np.log(V):.2f}"  # 7 after the first 3: nothing tells it
    assert f"mean loss at step 100: {(4 * np.log(V) + loss) / 5:.3f} nats" in out
    assert "step 100;" in out.splitlines()[0]


def test_a_step_that_is_asked_for(run: Path) -> None:
    status, out, _ = command("probe", run, TEXT, "--step", "50")
    assert status == 0
    assert cells(out)[5][2] == f"{np.log1p((V - 1) * np.exp(-GAMMA / 2)):.2f}"
    assert "step 50;" in out.splitlines()[0]


def test_before_and_after_where_the_analysis_knows_the_window(run: Path) -> None:
    from icl_jax.analysis import analyze

    analyze(RunDir.open(str(run)), only=["phase_change"])
    try:
        found = icl_jax.open_run(str(run)).analysis
        start, end = int(found["step_before"]), int(found["step_after"])
        assert start < end
        status, out, _ = command("probe", run, TEXT)
        before, after = (np.log1p((V - 1) * np.exp(-GAMMA * np.clip((step - 40) / 20, 0, 1))) for step in (start, end))
        assert status == 0
        assert cells(out)[5][2:4] == [f"{before:.2f}", f"{after:.2f}"]
        assert f"steps {start} and {end}, before and after the phase change" in out
        looks = icl_jax.open_run(str(run)).probe(TEXT).looks
        assert [look.step for look in looks] == [start, end]
        # A window of snapshots that are gone says nothing about the run.
        manifest = run / "manifest.jsonl"
        lines = manifest.read_text().splitlines(keepends=True)
        manifest.write_text("".join(line for line in lines if json.loads(line)["step"] != end))
        (run / "snapshots" / str(end)).rename(run / "away")
        change = "11 snapshots up to step 100 then, 10 up to step 100 now: icl-jax analyze measures what is new"
        with pytest.warns(UserWarning, match=change):
            assert [look.step for look in icl_jax.open_run(str(run)).probe(TEXT).looks] == [100]
        assert change in command("probe", run, TEXT)[1].splitlines()[0]
        assert change not in command("probe", run, TEXT, "--step", "100")[1]
        (run / "away").rename(run / "snapshots" / str(end))
        manifest.write_text("".join(lines))
    finally:
        for name in ("analysis.zarr", "analysis_parts"):
            shutil.rmtree(run / name)


def test_in_python(run: Path) -> None:
    found = icl_jax.open_run(str(run)).probe(TEXT, step=100)
    assert found.tokens == ["0", "3", "7", "5", "3", "7"]
    (look,) = found.looks
    assert look.probs.shape == (6, V)
    np.testing.assert_allclose(look.probs.sum(axis=1), 1, atol=1e-5)
    assert look.top(1)[4:, 0].tolist() == [7, 5]
    terms = look.attribution
    assert terms.heads.shape == (5, 2, 1)
    np.testing.assert_allclose(terms.heads[4, 1, 0], GAMMA * (1 - 1 / V), rtol=1e-4)
    np.testing.assert_allclose(terms.embedding + terms.heads.sum(axis=(1, 2)), terms.logit, atol=1e-4)


def test_a_narrow_terminal_sees_all_of_the_table(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "configure_jax", lambda _n: None)
    console = Console(force_terminal=True, width=60, file=io.StringIO(), record=True)
    assert probe(ProbeArgs(run=str(run), text=TEXT), console) == 0
    title, *table = console.export_text().splitlines()
    assert "step 100" in title
    assert max(map(len, table)) <= 60
    assert any("(next)" in line for line in table)
    assert "".join(table).count("1.0 +10.9") == 1


def word_level(words: list[str], unk_token: str = "<unk>") -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unk_token))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


WORDS = ["<|bos|>", "the", "cat", "[red]", "\x1b[31mx", "sat", "<unk>"]


@pytest.fixture(scope="module")
def words_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of words; zero layers, layers with an MLP: neither hides a column."""
    path = tmp_path_factory.mktemp("words") / "run"
    model = ModelConfig(n_layers=1, d_model=4, n_heads=2, n_ctx=7, vocab_size=len(WORDS), d_mlp=5)
    random_run(path, model, [0, 4])
    (path / "tokenizer.json").write_text(word_level(WORDS).to_str())
    return path


def test_words_are_shown_as_they_are_and_control_characters_escaped(words_run: Path) -> None:
    status, out, err = command("probe", words_run, "the [red] \x1b[31mx sat", "--top", "1")
    assert (status, err) == (0, "")
    assert [row[1] for row in cells(out)] == ["<|bos|>", "the", "[red]", "\\x1b[31mx", "sat", "(next)"]
    assert "\x1b" not in out
    assert "MLPs" in out


def test_a_model_without_layers(tmp_path: Path, words_run: Path) -> None:
    model = replace(RunDir.open(str(words_run)).config.model, n_layers=0, d_mlp=0)
    random_run(tmp_path / "run", model, [3])
    status, out, _ = command("probe", tmp_path / "run", "1 2 3")
    assert status == 0
    assert "heads" not in out
    assert "MLPs" not in out


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), "RUN is missing"),
        (("{run}",), "TEXT is missing"),
        (("nope", "1 2"), "nope: no such run directory"),
        (("{run}", ""), "TEXT is empty"),
        (("{run}", " \n"), "TEXT is empty"),
        (("{run}", "1 12 2"), f"TEXT: '12': must be an id from 0 to {V - 1}"),
        (("{run}", f"1 {V}"), f"TEXT: '{V}': must be an id from 0 to {V - 1}"),
        (("{run}", "1 cat"), "TEXT: 'cat': must be an id"),
        (("{run}", "1 ²"), "TEXT: '²': must be an id"),
        (("{run}", "9" * 5000), "must be an id"),
        (("{run}", "1 " * N_CTX), f"TEXT: {N_CTX} tokens: must be at most {N_CTX - 1}: model.n_ctx = {N_CTX}"),
        (("{run}", "1 2", "--step", "55"), "no snapshot of step 55; the nearest are 50, 60"),
        (("{run}", "1 2", "--step", "x"), "--step = 'x': must be a whole number"),
        (("{run}", "1 2", "--step", "-3"), "no snapshot of step -3; the nearest are 0, 10"),
        (("{run}", "1 2", "--top", "0"), "--top = 0: must be 1 or more"),
        (("{run}", "1 2", "--heads", "-1"), "--heads = -1: must be 1 or more"),
        (("{words}", "the dog sat"), "TEXT: 'dog': must be in the vocabulary of the run's tokenizer"),
        (("{words}", "the \udcff"), "TEXT: must be valid Unicode"),
    ],
    ids=str,
)
def test_what_cannot_be_probed(args: tuple[str, ...], expected: str, run: Path, words_run: Path) -> None:
    status, out, err = command("probe", *(arg.format(run=run, words=words_run) for arg in args))
    assert (status, out) == (2, "")
    assert err.startswith("icl-jax: ")
    assert err.count("\n") == 1
    assert expected in err


def test_a_tokenizer_without_a_token_for_the_unknown(words_run: Path, tmp_path: Path) -> None:
    shutil.copytree(words_run, tmp_path / "run")
    (tmp_path / "run" / "manifest.jsonl").unlink()
    made = RunDir.open(str(tmp_path / "run"))
    (tmp_path / "run" / "tokenizer.json").write_text(word_level(WORDS, unk_token="nowhere").to_str())
    with pytest.raises(UserError, match="TEXT = 'the dog': holds what the run's tokenizer does not know"):
        probe_run(made, "the dog")
    with pytest.raises(UserError, match="has no snapshots yet"):
        probe_run(made, "the cat")
    (tmp_path / "run" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer"):
        probe_run(made, "the cat")
