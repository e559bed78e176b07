"""Hostile inputs, a table: what is given, and what must be said, in one line, at once, with nothing made.

Each row is one of a kind: sizes nobody has, numbers that float32 does not hold, what people write for what is meant.
"""

import contextlib
import io
import math
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from icl_jax import process
from icl_jax.cli import main
from icl_jax.config import Config, UserError
from icl_jax.model.params import param_shapes
from icl_jax.train.sizes import check_memory, least_params
from tests.train.runs import TINY, only_line, tiny_config

_HUGE = str(2**62)
_TRAIN = ("train", "tiny.toml", "--run", "r")

HOSTILE: dict[str, tuple[tuple[str, ...], str]] = {
    # name: (arguments, what the line must hold, "…" for anything between)
    **{
        f"{name} of 2^62": (
            (*_TRAIN, f"--{name.replace('_', '-')}", _HUGE, *more),
            f"{name} = {_HUGE}: {what} would need … of memory, and this machine has 8 GB",
        )
        for name, what, more in (
            ("train.batch_size", "the rows of one step", ()),
            ("model.d_mlp", "the parameters", ()),
            ("model.n_layers", "the parameters", ()),
            ("model.vocab_size", "the parameters", ()),
            ("model.d_model", "the parameters", ("--model.n-heads", "4")),
            ("model.n_heads", "the parameters", ("--model.d-head", "4")),
            ("model.d_head", "the parameters", ()),
            ("model.n_ctx", "one row and its activations", ()),
            ("probes.held_out_rows", "the rows of the probes", ("--data.held-out-rows", _HUGE)),
            ("probes.n_sequences", "the sequences of the probes", ()),
            ("probes.n_probes", "the list of their steps", ()),
            ("snapshots.n_linear", "the list of their steps", ()),
            ("snapshots.n_log", "the list of their steps", ()),
        )
    },
    "a window beyond 31 bits": ((*_TRAIN, "--model.window", _HUGE), f"model.window = {_HUGE}: must be less than 2**31"),
    "more shards than rows": (
        (*_TRAIN, "--train.parallel", "mesh", "--train.fsdp", _HUGE),
        f"train.fsdp = {_HUGE}: must divide the 8 rows of train.batch_size / train.accum_steps",
    ),
    "phrases beyond memory": (
        (*_TRAIN, "--data.repeats.n-phrases", "2147483647"),
        "data.repeats.n_phrases = 2147483647: the phrases of one row would need 292 GB of memory",
    ),
    "an order beyond the row": (
        (*_TRAIN, "--data.source", "markov", "--data.markov.order", _HUGE),
        f"data.markov.order = {_HUGE}: must be at most model.n_ctx - 2 = 15",
    ),
    "an order with more chances than there are numbers": (
        (*_TRAIN, "--data.source", "markov", "--data.markov.order", str(2**30), "--model.n-ctx", str(2**31 - 1)),
        "model.vocab_size = 29: must be smaller: 28 ** (data.markov.order + 1) chances are more than",
    ),
    "steps beyond the disk": (
        (*_TRAIN, "--train.n-steps", "2147483647"),
        "…: cannot write the run directory: train.n_steps = 2147483647: the record of every step and position would"
        " take 172 GB, and 50 GB are free",
    ),
    "snapshots beyond the disk": (
        (*_TRAIN, "--snapshots.n-linear", "1000000", "--train.n-steps", "1000000", "--model.d-mlp", "65536"),
        "…: cannot write the run directory: snapshots.n_linear = 1000000: 1000000 snapshots would take … TB, and 50 GB"
        " are free",
    ),
    "steps beyond 31 bits": (
        (*_TRAIN, "--train.n-steps", "2147483648"),
        "train.n_steps = 2147483648: must be less than",
    ),
    "a rate beyond float32": (
        (*_TRAIN, "--optimizer.lr", "1e39"),
        "optimizer.lr = 1e+39: must be 0 or from 1.18e-38 to 3.4e+38 in size: the step computes in float32",
    ),
    "an eps below float32": (
        (*_TRAIN, "--optimizer.eps", "1e-60"),
        "optimizer.eps = 1e-60: must be 0 or from 1.18e-38",
    ),
    "a clip norm below it": ((*_TRAIN, "--optimizer.clip-norm", "1e-40"), "optimizer.clip_norm = 1e-40: must be 0 or"),
    "a deviation beyond it": ((*_TRAIN, "--model.init-std", "1e39"), "model.init_std = 1e+39: must be 0 or from"),
    "a decay that is 1 in float32": (
        (*_TRAIN, "--optimizer.b2", "0.99999999"),
        "optimizer.b2 = 0.99999999: must be in [0, 1), and not 1 in float32",
    ),
    "a change after the last step of all": (
        (*_TRAIN, "--optimizer.decay-change-step", _HUGE),
        f"optimizer.decay_change_step = {_HUGE}: must be -1 or more, and less than 2**31",
    ),
    "12.0": ((*_TRAIN, "--model.n-layers", "12.0"), "--model.n-layers = '12.0': must be a whole number: write 12; see"),
    "1e3": ((*_TRAIN, "--train.n-steps", "1e3"), "--train.n-steps = '1e3': must be a whole number: write 1000; see"),
    "1,024": (
        (*_TRAIN, "--train.batch-size", "1,024"),
        "--train.batch-size = '1 … 024': must be a whole number: write 1024",
    ),
    "1e3 in a file": (
        ("train", "float.toml"),
        "float.toml: train.n_steps = 1000.0: must be a whole number … write 1000",
    ),
    "True behind a switch": (
        (*_TRAIN, "--model.tied-unembedding", "True"),
        "--model.tied-unembedding takes no value: write --model.tied-unembedding or --model.no-tied-unembedding; see",
    ),
    "=false behind a switch": (
        (*_TRAIN, "--model.no-smeared-keys=false"),
        "--model.no-smeared-keys takes no value: write --model.smeared-keys or --model.no-smeared-keys; see",
    ),
    "no text there": (
        (*_TRAIN, "--data.source", "text:no/**/*.txt"),
        "data.source = 'text:no/**/*.txt': no file matches /… /no/**/*.txt; must be 'text:' and a file",
    ),
    "a run that is not UTF-8": (("train", "tiny.toml", "--run", "r\udcff"), "r\\udcff: its name is not UTF-8: must be"),
    "a run that Orbax cannot read": (("train", "tiny.toml", "--run", "r[1]"), "r[1]: a path must not hold '[': Orbax"),
    "a run that TensorStore cannot": ((*_TRAIN[:-1], "r\\s"), "r\\s: a path must not hold '\\\\': TensorStore"),
    "an existing one to look at": (("verify", "r\udcff"), "r\\udcff: its name is not UTF-8: must be"),
    "an order to the terminal": (("verify", "r\x1b7"), "r\\x1b7: no such run directory"),
}


def refused(*args: str, prepares: bool = False) -> str:
    """The one line that is said of a command that is refused before JAX is there."""

    def no_jax(_n_cpu_devices: int) -> None:
        raise AssertionError("JAX was started")

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(process, "configure_jax", no_jax)
        assert main.run(args) == 2, out.getvalue()
    assert prepares or not out.getvalue()
    return only_line(err.getvalue())


@pytest.fixture
def _small_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "float.toml").write_text(TINY.replace("n_steps = 8", "n_steps = 1e3"))
    monkeypatch.setattr(process, "memory_bytes", lambda: 8 * 10**9)
    monkeypatch.setattr("icl_jax.train.sizes.free_bytes", lambda _folder: 50 * 10**9)


@pytest.mark.usefixtures("_small_machine")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str, tmp_path: Path) -> None:
    args, said = HOSTILE[name]
    line = refused(*args)
    place = 0
    for part in said.split("…"):
        assert part.strip() in line[place:], line
        place = line.index(part.strip(), place)
    assert line.isprintable()
    assert sorted(os.listdir(tmp_path)) == ["float.toml", "tiny.toml"]


_NEW_TEXT = ("train", "tiny.toml", "--run", "r", "--model.vocab-size", "300")
PLACES: dict[str, tuple[tuple[str, ...], str]] = {
    # name: (arguments, what the line must hold); what lies at these paths: `_places`
    "a pipe as config": (("train", "pipe.toml"), "pipe.toml: cannot read the config: is a pipe: must be a file"),
    "a pipe of another name": (("train", "pipe"), "pipe: is a pipe, and no file: no such config file"),
    "a folder as config": (("train", "folder"), "folder: is a folder, and no file: no such config file"),
    "a device as config": (("train", "/dev/zero"), "/dev/zero: cannot read the config: is a device: must be a file"),
    "a circle as config": (("train", "loop.toml"), "loop.toml: cannot read the config: is a symbolic link that leads"),
    "a config that extends a pipe": (("train", "extends.toml"), "pipe.toml: cannot read the config: is a pipe"),
    "a circle as run": (("train", "tiny.toml", "--run", "loop"), "loop: is a symbolic link that leads nowhere; --run"),
    "a link to nothing as run": (("train", "tiny.toml", "--run", "dead"), "dead: is a symbolic link that leads no"),
    "a pipe as run": (("train", "tiny.toml", "--run", "pipe"), "pipe: is a pipe; --run must be a folder"),
    "a run in a circle": (
        ("train", "tiny.toml", "--run", "loop/r"),
        "loop/r: cannot write the run directory: loop is a sym",
    ),
    "a circle to verify": (("verify", "loop"), "loop: is a symbolic link that leads nowhere"),
    "a pipe to verify": (("verify", "pipe"), "pipe: not a run directory"),
    "a report into a circle": (("report", "r", "--out", "loop"), "loop is a symbolic link that leads nowhere: must be"),
    "a report into a device": (("report", "r", "--out", "/dev/zero"), "/dev/zero is a device: must be a folder"),
    "a pipe as suite": (("reproduce", "pipe.toml"), "pipe.toml: cannot read the suite: is a pipe: must be a file"),
    "a device as suite": (("reproduce", "/dev/zero"), "/dev/zero: cannot read the suite: is a device: must be a file"),
    "a device as sweep": (("sweep", "/dev/zero", "tiny.toml"), "/dev/zero: cannot read the sweep: is a device: must"),
    "a device as tokenizer": (
        (*_NEW_TEXT, "--data.source", "text:tiny.toml", "--data.tokenizer", "/dev/zero"),
        "data.tokenizer = '/dev/zero': is no regular file",
    ),
    "a circle as tokenizer": (
        (*_NEW_TEXT, "--data.source", "text:tiny.toml", "--data.tokenizer", "loop"),
        "data.tokenizer = 'loop': is no regular file",
    ),
    "a circle as text": ((*_NEW_TEXT, "--data.source", "text:loop"), "'text:loop': is a symbolic link that leads"),
    "a device as text": ((*_NEW_TEXT, "--data.source", "text:/dev/zero"), "'text:/dev/zero': is no regular file"),
    "a pipe to import": (("import", "pipe", "--run", "r"), "pipe: is neither a folder nor a file of weights"),
    "a circle to import": (("import", "loop", "--run", "r"), "loop: no such file or folder"),
    "a checkpoint whose config is a pipe": (("import", "checkpoint", "--run", "r"), "checkpoint: must hold a config"),
    "a pipe to audit": (("audit", "pipe"), "pipe: "),
}


@pytest.fixture
def _places(_small_machine: None, tmp_path: Path) -> None:
    for name, target in (("loop", "loop"), ("loop.toml", "loop.toml"), ("dead", "nothing")):
        (tmp_path / name).symlink_to(target)
    for name in ("folder", "checkpoint"):
        (tmp_path / name).mkdir()
    for name in ("pipe", "pipe.toml", "checkpoint/config.json"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "checkpoint" / "model.safetensors").touch()
    (tmp_path / "extends.toml").write_text('extends = "pipe.toml"')


@pytest.mark.usefixtures("_places")
@pytest.mark.parametrize("name", PLACES)
def test_what_is_no_file_and_no_folder(name: str, tmp_path: Path) -> None:
    args, said = PLACES[name]
    before = sorted(os.listdir(tmp_path))
    assert said in refused(*args, prepares=True)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.usefixtures("_small_machine")
def test_a_folder_that_is_not_utf8_holds_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "\udcff"
    folder.mkdir()
    (folder / "tiny.toml").write_text(TINY)
    monkeypatch.chdir(folder)
    assert "\\udcff/r: its name is not UTF-8: must be, that of the folders above it too" in refused(*_TRAIN)


def test_the_tokens_of_a_run_are_counted_in_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "memory_bytes", lambda: 10**15)
    config = tiny_config(train={"n_steps": 10**9, "batch_size": 2**30})
    with pytest.raises(UserError, match=r"train.n_steps = 1000000000: \d+ tokens: must be fewer than 2\*\*63"):
        check_memory(config)


@pytest.mark.parametrize("config", [tiny_config(), tiny_config(model={"d_mlp": 5, "tied_unembedding": True})])
def test_a_model_has_at_least_the_parameters_that_are_counted(config: Config) -> None:
    every = sum(math.prod(shape) for shape in param_shapes(config.model).values())
    assert 0.8 * every < least_params(config) <= every


@pytest.mark.usefixtures("_small_machine")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "a",
            "data.source = 'text:t.txt': holds … tokens: too few for a row to train on and one held out at any",
        ),
        (
            "a cat sat on " * 2,
            "model.n_ctx = 17: leaves one row of the … tokens of data.source = 'text:t.txt': one is needed",
        ),
        ("a cat", "model.n_ctx = 17: must be less than …, the tokens of data.source = 'text:t.txt'"),
    ],
)
def test_a_text_that_is_too_small(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(text)
    vocabulary = {"<s>": 0, **{letter: i for i, letter in enumerate("acnost ", 1)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(tmp_path / "t.json"))
    line = refused(*_TRAIN, "--data.source", "text:t.txt", "--data.tokenizer", "t.json", prepares=True)
    assert all(part.strip() in line for part in said.split("…")), line
