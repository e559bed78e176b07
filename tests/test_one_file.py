"""What is one file is one file: in a copy of the package, a corpus is added, its file and its name, and trained on."""

import shutil
import subprocess
import sys
from pathlib import Path

CORPUS = '''
"""Random tokens, and the same tokens backwards."""

from dataclasses import dataclass

import numpy as np

from icl_jax.config import Config
from icl_jax.config.checks import check_types, require
from icl_jax.config.corpora import CorpusKind, Options
from icl_jax.data.corpora.generated import BLOCK_ROWS, Block, GeneratedCorpus


@dataclass(frozen=True, kw_only=True, slots=True)
class PalindromesOptions(Options):
    """Random tokens, and the same tokens backwards."""

    gap: int = 0
    """Times that token 1 stands between the two halves."""

    def __post_init__(self) -> None:
        check_types("data.palindromes", self)

    def check(self, config: Config) -> None:
        allowed = f"must be less than model.n_ctx = {config.model.n_ctx}"
        require(self.gap < config.model.n_ctx, "data.palindromes.gap", self.gap, allowed)


class Palindromes(GeneratedCorpus[None]):
    def _make_block(self, rng, is_held_out):
        gap = self.gap
        half = rng.integers(1, self.vocab_size, (BLOCK_ROWS, (self.n_ctx - gap + 1) // 2))
        tokens = np.zeros((BLOCK_ROWS, self.n_ctx + 1), np.int32)
        middle = np.ones((BLOCK_ROWS, gap), np.int64)
        tokens[:, 1:] = np.concatenate([half, middle, half[:, ::-1]], axis=1)[:, : self.n_ctx]
        return Block(tokens, np.zeros(tokens.shape, np.uint8), None)

    def __init__(self, config, progress=None):
        super().__init__(config)
        self.gap = config.data.options_of(PalindromesOptions).gap

    @property
    def _definition(self):
        return {"corpus": "palindromes", "gap": self.gap}


CORPUS = CorpusKind(open=Palindromes, options=PalindromesOptions)
'''


def test_a_corpus_is_one_file_and_its_name(checkout: Path, tmp_path: Path) -> None:
    for folder in ("icl_jax", "configs"):
        shutil.copytree(checkout / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "icl_jax" / "data" / "corpora" / "palindromes.py").write_text(CORPUS)
    table = tmp_path / "icl_jax" / "config" / "corpora.py"
    text = table.read_text()
    assert text.count('"repeats", ') == 1
    table.write_text(text.replace('"repeats", ', '"repeats", "palindromes", '))

    def train(*args: str) -> subprocess.CompletedProcess[str]:
        program = "from icl_jax.cli.main import main; main()"
        command = [sys.executable, "-c", program, "train", "smoke", "--data.source", "palindromes", "--run", "run"]
        return subprocess.run(
            [*command, "--data.palindromes.gap", *args], cwd=tmp_path, env={"PYTHONPATH": "", "PATH": "", "HOME": "."},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    refused = train("64")
    assert (refused.returncode, refused.stderr) == (
        2, "icl-jax: data.palindromes.gap = 64: must be less than model.n_ctx = 64\n",
    )  # fmt: skip
    steps = ("--train.n-steps", "2", "--optimizer.warmup-steps", "1", "--probes.n-probes", "0")
    done = train("3", *steps)
    assert done.returncode == 0, done.stderr
    assert "[data.palindromes]\ngap = 3\n" in (tmp_path / "run" / "config.toml").read_text()
