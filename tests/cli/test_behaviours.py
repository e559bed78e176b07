"""`icl-jax behaviours` on the hand-built induction head, which knows what followed the same word before and nothing
else."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from icl_jax.analysis.behaviours import Asked, ask
from icl_jax.analysis.prompts import BEHAVIOURS, CLASSES, Prompt, prompts
from icl_jax.config import UserError
from icl_jax.rundir import RunDir
from tests.analysis.small_runs import make_run, repeated_rows
from tests.hand_built import GAMMA, induction_model
from tests.train.runs import command

N = 3
N_CTX = 41
WORDS = r"\w+|[^\w\s]"


def tokenizer_of(texts: list[str]) -> Tokenizer:
    words = dict.fromkeys(["<bos>", *(word for text in texts for word in re.findall(WORDS, text))])
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """It knows the words of known names alone."""
    tokenizer = tokenizer_of([prompt.text + prompt.answer for prompt in prompts("known_name", N)])
    params, model = induction_model(N_CTX, tokenizer.get_vocab_size())
    rows = repeated_rows(N_CTX, vocab_size=model.vocab_size, n_sequences=3, repeat_len=10)
    rows = np.concatenate([rows, rows[:, 1:2]], axis=1)
    return make_run(tmp_path_factory.mktemp("asked") / "run", model, {5: params}, rows, tokenizer.to_str())


@pytest.fixture(scope="module")
def asked(run: RunDir) -> Asked:
    return ask(run, n_prompts=N)


def test_the_name_that_followed_its_title_is_known_by_the_induction_head(run: RunDir, asked: Asked) -> None:
    (known,) = asked.found
    vocab_size = run.config.model.vocab_size
    assert (known.name, known.n_prompts, known.accuracy, known.rank) == ("known_name", N, 1, 1)
    assert known.prob == pytest.approx(1 / (1 + (vocab_size - 1) * np.exp(-GAMMA)), rel=1e-3)
    assert known.sem == pytest.approx(0, abs=1e-3)
    # Its one head of layer 1 adds GAMMA, less the mean over the vocabulary; nothing else adds anything.
    assert known.top_heads(1) == [("1.0", pytest.approx(GAMMA * (1 - 1 / vocab_size), rel=1e-3))]
    assert known.heads[0] == pytest.approx(0, abs=1e-4)
    assert known.logit == pytest.approx(known.heads.sum() + known.embedding + known.mlps, abs=1e-3)


def test_what_the_tokenizer_cannot_say_is_refused_with_the_reason(asked: Asked) -> None:
    assert set(asked.refused) == set(BEHAVIOURS) - {"known_name"}
    assert "holds what the run's tokenizer does not know" in asked.refused["new_sum_0"]


def test_the_verb_prints_and_keeps_what_was_found(run: RunDir, asked: Asked) -> None:
    status, out, err = command("behaviours", run.path, "--prompts", str(N), "--only", "known_name,pattern")
    assert (status, err) == (0, "")
    assert re.search(r"known_name +1\.00 ±0\.00 +1\.00 +1 +1\.0 \+", out)
    assert "pattern: not asked: " in out
    kept = json.loads((Path(run.path) / "behaviours.json").read_text())
    assert (kept["step"], kept["snapshot_sha256"]) == (5, run.snapshots()[-1].sha256)
    assert kept["behaviours"][0]["heads"] == pytest.approx(asked.found[0].heads)
    with (Path(run.path) / "behaviours.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["prob"]) == pytest.approx(asked.found[0].prob, rel=1e-4)
    assert row["heads"].startswith("1.0:")
    assert command("verify", run.path)[0] == 0


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--only", "jokes"), ["--only = 'jokes'", "there are new_name, known_name"]),
        (("--prompts", "1"), ["--prompts = 1", "must be 2 or more"]),
        (("--seed", "-1"), ["--seed = -1", "must be 0 or more"]),
        (("--step", "3"), ["3"]),
        (("--only", "pattern"), ["cannot be asked in words", "holds what the run's tokenizer does not know"]),
    ],
)
def test_what_cannot_be_asked(run: RunDir, args: tuple[str, ...], told: list[str]) -> None:
    status, _, err = command("behaviours", run.path, *args)
    assert (status, err.count("\n")) == (2, 1)
    assert all(part in err for part in told), err


def test_a_run_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    params, model = induction_model(N_CTX, 23)
    rows = np.zeros((2, N_CTX + 1), np.int32)
    run = make_run(tmp_path / "run", model, {5: params}, rows)
    with pytest.raises(UserError, match="cannot be asked in words: its corpus has no tokenizer"):
        ask(run)


def test_prompts_longer_than_the_context_are_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_of([prompt.text + prompt.answer for prompt in prompts("known_name", N)])
    params, model = induction_model(13, tokenizer.get_vocab_size())
    run = make_run(tmp_path / "run", model, {5: params}, np.zeros((2, 14), np.int32), tokenizer.to_str())
    with pytest.raises(UserError, match=r"tokens of a prompt and its answer: must be at most model.n_ctx = 13"):
        ask(run, ("known_name",), N)


def a_sum(text: str) -> tuple[int, int]:
    a, b = re.findall(r"(\d+) plus (\d+) is$", text)[0]
    return int(a), int(b)


def is_repeated(prompt: Prompt) -> bool:
    a, b = a_sum(prompt.text)
    return f"{a} plus {b} is{prompt.answer}." in prompt.text and int(prompt.answer) == a + b


def is_new_sum(n: int) -> Callable[[Prompt], bool]:
    def check(prompt: Prompt) -> bool:
        said = [(int(a), int(b), int(c)) for a, b, c in re.findall(r"(\d+) plus (\d+) is (\d+)\.", prompt.text)]
        answer = int(prompt.answer)
        return len(said) == n and all(a + b == c != answer for a, b, c in said) and sum(a_sum(prompt.text)) == answer

    return check


def is_name(prompt: Prompt) -> bool:
    first = prompt.text.split()[-1]
    return set(re.findall(rf"{first} (\w+)", prompt.text)) == {prompt.answer.strip()}


def is_pattern(prompt: Prompt) -> bool:
    *lines, asked = prompt.text.split("\n")
    months = CLASSES[0]
    fruit = CLASSES[3]

    def classes(line: str) -> tuple[bool, bool]:
        first, second = line.partition(":")[0].split()
        return first in months, second in fruit

    label_of = {}
    for line in lines:
        assert label_of.setdefault(classes(line), line.partition(": ")[2]) == line.partition(": ")[2]
    words = asked.removesuffix(":").split()
    is_fresh = not any(word in line.replace(":", "").split() for line in lines for word in words)
    return label_of[classes(asked)] == prompt.answer.strip() and is_fresh


CHECKS: dict[str, Callable[[Prompt], bool]] = {
    "new_name": is_name,
    "known_name": is_name,
    "repeated_sum": is_repeated,
    **{f"new_sum_{n}": is_new_sum(n) for n in (0, 1, 2, 4, 8)},
    "translation": lambda prompt: prompt.text.endswith(" Spanish:") and prompt.answer not in prompt.text,
    "glossary": lambda prompt: bool(re.search(rf" {prompt.text.split()[-2]} is{prompt.answer}[,.]", prompt.text)),
    "pattern": is_pattern,
}


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_answers_are_right_by_a_reader_of_the_text(behaviour: str) -> None:
    asked = prompts(behaviour, 500)
    assert len({prompt.text for prompt in asked}) > 450
    assert all(prompt.answer.startswith(" ") for prompt in asked)
    assert [p for p in asked if not CHECKS[behaviour](p)] == []
    assert prompts(behaviour, 500)[:3] == prompts(behaviour, 3)
    assert prompts(behaviour, 3, seed=1) != asked[:3]
