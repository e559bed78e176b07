"""What is one file is one file: added to a copy of the package with its name in one table, it is there.

An option of the architecture is none: it is a field, a parameter and a branch, a place each, and nothing else.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.fixture
def copy(checkout: Path, tmp_path: Path) -> Path:
    """A checkout to change."""
    for folder in ("icl_jax", "configs", "launch"):
        shutil.copytree(checkout / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def add_line(table: Path, after: str, line: str) -> None:
    """Put `line` behind the one place of the table that reads `after`."""
    text = table.read_text()
    assert text.count(after) == 1
    table.write_text(text.replace(after, after + line))


def example(page: Path, section: str) -> str:
    """The first block of Python under a heading."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text().partition(f"\n## {section}\n")[2], re.M | re.S)[0]


def python(copy: Path, program: str, *args: str) -> subprocess.CompletedProcess[str]:
    env = {"PYTHONPATH": "", "PATH": "", "HOME": "."}
    command = [sys.executable, "-c", program, *args]
    return subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, check=False)


def icl_jax(copy: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return python(copy, "from icl_jax.cli.main import main; main()", *args)


def test_a_corpus_is_one_file_and_its_name(copy: Path) -> None:
    (copy / "icl_jax" / "data" / "corpora" / "palindromes.py").write_text(CORPUS)
    add_line(copy / "icl_jax" / "config" / "corpora.py", '"repeats", ', '"palindromes", ')
    train = ("train", "smoke", "--data.source", "palindromes", "--run", "run", "--data.palindromes.gap")
    refused = icl_jax(copy, *train, "64")
    assert (refused.returncode, refused.stderr) == (
        2, "icl-jax: data.palindromes.gap = 64: must be less than model.n_ctx = 64\n",
    )  # fmt: skip
    steps = ("--train.n-steps", "2", "--optimizer.warmup-steps", "1", "--probes.n-probes", "0")
    done = icl_jax(copy, *train, "3", *steps)
    assert done.returncode == 0, done.stderr
    assert "[data.palindromes]\ngap = 3\n" in (copy / "run" / "config.toml").read_text()


def test_a_launch_target_is_one_file_and_its_name(checkout: Path, copy: Path) -> None:
    launchers = copy / "icl_jax" / "launchers"
    (launchers / "ssh.py").write_text(example(checkout / "docs" / "extending.md", "A launch target"))
    add_line(launchers / "table.py", "skypilot, slurm", ", ssh")
    add_line(launchers / "table.py", "    slurm.TARGET,\n", "    ssh.TARGET,\n")
    done = icl_jax(copy, "launch", "repeats-2l", "--on", "ssh", "--host", "me@lab", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(
        "scp runs/repeats-2l.launch/config.toml me@lab:repeats-2l.toml\n"
        "exec ssh me@lab 'icl-jax train repeats-2l.toml --run runs/repeats-2l'\n\n"
        "$ bash runs/repeats-2l.launch/ssh.sh\n"
    )
    refused = icl_jax(copy, "launch", "repeats-2l", "--host", "me@lab", "--dry-run")
    assert (refused.returncode, refused.stderr) == (2, "icl-jax: --host = 'me@lab': not with --on local\n")
    refused = icl_jax(copy, "launch", "repeats-2l", "--on", "ssh", "--host", "me/lab", "--dry-run")
    assert refused.stderr == "icl-jax: --host = 'me/lab': must be a host or USER@HOST\n"
    assert "ssh: the machine. (default: localhost)" in " ".join(icl_jax(copy, "launch", "--help").stdout.split())


def test_an_intervention_is_one_file_and_its_name(checkout: Path, copy: Path) -> None:
    (copy / "icl_jax" / "interventions" / "clip.py").write_text(
        example(checkout / "docs" / "extending.md", "An intervention")
    )
    add_line(copy / "icl_jax" / "config" / "interventions.py", '    "zero", ', '"clip", ')
    program = """if True:
        from icl_jax.config import parse_config
        from icl_jax.interventions.tap import with_interventions
        from icl_jax.model.forward import forward
        from icl_jax.model.params import init_params
        config = parse_config('[[intervene]]\\nat = "z"\\nlayers = 1\\nclip = 0.0')
        params, tokens = init_params(config.model, 0), __import__("jax").numpy.arange(6)[None]
        found = with_interventions(forward, params, tokens, config, config.intervene)
        without = params | {"W_O": params["W_O"].at[1].set(0)}
        print(abs(found - forward(without, tokens, config.model)).max() < 1e-5, config.intervene[0].options)
    """
    done = python(copy, program)
    assert (done.returncode, done.stdout) == (0, "True ClipOptions(clip=0.0)\n"), done.stderr


def test_a_measurement_is_one_file_and_its_name(checkout: Path, copy: Path) -> None:
    measures = copy / "icl_jax" / "measures"
    (measures / "head_rms.py").write_text(example(checkout / "docs" / "extending.md", "A measurement"))
    add_line(measures / "table.py", "    head_scores,\n", "    head_rms,\n")
    add_line(measures / "table.py", "    head_scores.MEASUREMENT,\n", "    head_rms.HEAD_RMS,\n")
    done = icl_jax(copy, "analyze", "--list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "root mean square of what the head writes; 0 or more" in " ".join(done.stdout.split())


def test_a_figure_is_one_file_and_its_name(checkout: Path, copy: Path) -> None:
    figures = copy / "icl_jax" / "report" / "figures"
    text, is_followed, _ = example(checkout / "docs" / "report.md", "Add a figure").partition('\nPath("figures")')
    assert is_followed
    (figures / "first_and_last.py").write_text(text)
    add_line(figures / "table.py", "    composition,\n", "    first_and_last,\n")
    add_line(figures / "table.py", "    composition.FIGURE,\n", "    first_and_last.FIGURE,\n")
    program = "from icl_jax.report.figures.table import FIGURES; print(*(figure.name for figure in FIGURES))"
    done = python(copy, program)
    assert (done.returncode, done.stderr) == (0, "")
    assert "composition first_and_last head_location" in done.stdout


def test_an_architecture_option_is_a_field_a_parameter_and_a_branch(copy: Path) -> None:
    """A trained factor for what each head has mixed: everything else reads the three places."""
    package = copy / "icl_jax"
    field = '    head_gain: bool = False\n    """Multiply what each head has mixed by a trained number."""\n'
    add_line(package / "config" / "model.py", 'Argument 2)."""\n', field)
    parameter = (
        "            if config.head_gain:\n"
        '                self.head_gain = declare("N H", None, jnp.ones, decayed=False, sharded=False)\n'
    )
    add_line(
        package / "model" / "params.py", '            self.W_O = weight("N H E D", "blocks.{}.attn.W_O")\n', parameter
    )
    branch = (
        "    if config.head_gain:\n"
        '        z_BHTE = z_BHTE * layer["head_gain"][None, :, None, None]\n'
    )  # fmt: skip
    add_line(package / "model" / "forward.py", "        z_BHTE = attention_fn(execution, scores)(q, k, v)\n", branch)
    program = """if True:
        import contextlib, sys
        import icl_jax
        from icl_jax.cli.main import main
        with contextlib.suppress(SystemExit):
            main()
        run = icl_jax.open_run("run")
        start, end = (run.params(step)["head_gain"] for step in (0, 2))
        print(run.config.model.head_gain, start.tolist() == [[1.0] * 2] * 2, bool((start != end).any()))
    """
    done = python(
        copy, program, "train", "smoke", "--model.head-gain", "--run", "run", "--train.n-steps", "2",
        "--optimizer.warmup-steps", "1", "--probes.n-probes", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True True True"
