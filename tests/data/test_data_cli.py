"""``icl-jax data``: what it prints."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from icl_jax.cli.data import data_prepare, data_show
from icl_jax.config import Config, UserError
from icl_jax.data import open_corpus
from icl_jax.display import PreparationDisplay


def printed(show: Callable[[Console], None], is_terminal: bool = False) -> str:
    out = io.StringIO()
    show(Console(file=out, width=60, force_terminal=is_terminal, color_system=None, legacy_windows=False))
    return out.getvalue()


def test_prepare_sums_up(cache: Path, stories: Path, make_config: Callable[..., Config]) -> None:
    config = make_config(source=f"text:{stories}")
    cold = printed(lambda console: data_prepare(config, console))
    warm = printed(lambda console: data_prepare(config, console))
    assert cold.startswith("reading: ")
    assert "encoding: 100 % of 0.0 MB\n" in cold
    assert cold.endswith(warm)
    said = dict(line.split(maxsplit=1) for line in warm.splitlines() if not line.startswith(("t", "h")))
    corpus = open_corpus(config)
    assert said["documents"] == "22"
    assert said["source"] == f"text:{stories}"
    assert said["folder"].startswith(str(cache))
    assert said["fingerprint"] == corpus.fingerprint
    assert f"training rows  {corpus.n_rows:,} (of 19 tokens)" in warm
    assert "held-out rows  11" in warm


def test_a_terminal_sees_bars(cache: Path, stories: Path, make_config: Callable[..., Config]) -> None:
    config = make_config(source=f"text:{stories}")
    out = printed(lambda console: data_prepare(config, console), is_terminal=True)
    for label in ("reading", "training the tokenizer", "encoding", "documents"):
        assert label in out


def test_prepare_of_a_made_corpus_has_no_tokens_to_count(make_config: Callable[..., Config]) -> None:
    out = printed(lambda console: data_prepare(make_config(), console))
    assert "training rows  no end, made on demand (of 19 tokens)" in out
    assert "documents" not in out


def test_show_prints_what_is_there_and_nothing_else(
    cache: Path, tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    line = "[red]not red[/red] :smile: [/] \x1b[31mx\x07 ö\n"
    (tmp_path / "a.txt").write_text(line * 40, encoding="utf-8")
    config = make_config(source=f"text:{tmp_path / 'a.txt'}", n_ctx=200, vocab_size=320, held_out_rows=1)
    for held_out, title in ((False, "--- training row "), (True, "--- held-out row 0 ---")):
        out = printed(lambda console, h=held_out: data_show(config, console, 1, held_out=h), is_terminal=True)  # type: ignore[misc]
        assert title in out
        assert "[red]not red[/red] :smile: [/] \\x1b[31mx\\x07 ö\n" in out
        assert "\x1b[31m" not in out
        assert "\x07" not in out


def test_show_follows_the_order_of_training(make_config: Callable[..., Config]) -> None:
    config = make_config(seed=3)
    out = printed(lambda console: data_show(config, console, n_rows=2)).splitlines()
    rows = open_corpus(config).rows([0, 1])  # type: ignore[arg-type]
    assert out == [
        "--- training row 0 ---",
        " ".join(map(str, rows[0])),
        "--- training row 1 ---",
        " ".join(map(str, rows[1])),
    ]


def test_show_takes_as_many_rows_as_there_are(cache: Path, stories: Path, make_config: Callable[..., Config]) -> None:
    config = make_config(source=f"text:{stories}")
    n_rows = open_corpus(config).n_rows
    assert printed(lambda console: data_show(config, console, 10**9)).count("--- training row") == n_rows
    assert printed(lambda console: data_show(config, console, 10**9, held_out=True)).count("--- held-out row") == 11
    with pytest.raises(UserError, match="n_rows = 0: must be 1 or more"):
        data_show(config, Console(file=io.StringIO()), 0)


def test_lines_come_at_most_every_five_seconds() -> None:
    now = iter([0.0, 1.0, 4.9, 5.0, 5.1])

    def report(console: Console) -> None:
        with PreparationDisplay(console, clock=lambda: next(now)) as progress:
            for done in (1, 2, 3, 4):
                progress(done * 10**6, 4 * 10**6, "encoding")
            progress(1, 4 * 10**6, "another")

    assert printed(report).splitlines() == [
        "encoding: 25 % of 4.0 MB",
        "encoding: 100 % of 4.0 MB",
        "another: 0 % of 4.0 MB",
    ]
