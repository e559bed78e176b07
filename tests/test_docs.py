"""The pages of docs/ that hold code: run as they stand."""

import importlib
import inspect
import re
import runpy
import shlex
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.cli.arguments import find_config, parse_with_config
from icl_jax.cli.train import TrainArgs
from icl_jax.config import Config, ModelConfig
from icl_jax.config.model import Bias
from icl_jax.maths.activations import as_jax
from icl_jax.model.forward import run_with_cache
from icl_jax.model.params import declarations
from tests.analysis.small_runs import hand_built_run
from tests.train.runs import command, finish, start_cli

_BLOCKS = re.compile(r"^```(python)?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _run_page(page: Path) -> dict[str, Any]:
    """Run a page's blocks in order: Python in one namespace, commands of icl-jax each in a process. The names left."""
    names: dict[str, Any] = {}
    for language, code in _BLOCKS.findall(page.read_text(encoding="utf-8")):
        if language:
            exec(compile(code, page.name, "exec"), names)
            continue
        for line in code.splitlines():
            assert line.startswith("icl-jax "), line
            status, _, err = finish(start_cli(*shlex.split(line)[1:], is_long=True))
            assert (status, err) == (0, ""), line
    return names


def test_the_tutorial_shows_what_it_says(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = _run_page(checkout / "docs" / "tutorial.md")
    assert names["loss"].shape == (1250, 128)
    assert -0.5 < names["before"] < -0.1
    assert names["after"] < -1.0
    assert names["layer"] == 1
    low, high = names["grown"]
    assert low < 0.15
    assert high > 0.3
    first, last = names["stripe"].values()
    assert first < 0.2
    assert last > 0.4
    lost_below, lost_above = names["by_layer"]
    assert abs(lost_below) < 0.15
    assert lost_above > 0.3
    assert names["feeds"] > 4
    assert names["was_on"].shape == (600, 1)
    assert names["was_on"].all()
    assert names["stopped"] > -0.7
    plain, smeared = names["scores"]
    assert plain > -0.6
    assert smeared < -1.0


def test_the_examples_of_extending_work(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = hand_built_run(tmp_path / "runs" / "repeats-2l", n_ctx=17, vocab_size=11)
    monkeypatch.chdir(tmp_path)
    names = _run_page(checkout / "docs" / "extending.md")
    tokens, params = run.load_held_out().rows[:10, :17], run.load_params(100)
    _, seen = run_with_cache(as_jax(params), jnp.asarray(tokens), run.config.model, ("z",))
    written = [np.einsum("bhte,hed->bhtd", seen["z", layer], params["W_O"][layer]) for layer in range(2)]
    expected = np.sqrt(np.mean(np.square(written), axis=(1, 3, 4)))
    np.testing.assert_allclose(names["found"]["head_rms"].sel(snapshot=100), expected, rtol=1e-5, atol=1e-7)
    row = names["corpus"].rows(np.array([7]))[0]
    assert row[0] == 0
    inner = row[1:]
    np.testing.assert_array_equal(inner, inner[::-1])
    assert names["logits"].shape == (2, 17, 11)


def test_the_page_on_the_model_works(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_built_run(tmp_path / "runs" / "repeats-2l", n_ctx=17, vocab_size=11)
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):  # optax's
        names = _run_page(checkout / "docs" / "model.md")
    assert names["logits"].shape == (2, 17, 11)
    assert names["loss"].shape == (2, 17)
    assert float(abs(names["ablated"] - names["logits"]).max()) > 0.1
    assert names["curve"][-1] < names["curve"][0]
    curved = [float(abs(leaf).max()) for leaf in jax.tree.leaves(names["curved"])]
    assert max(curved) > 0
    assert np.isfinite(curved).all()


def test_the_table_of_parameters_is_that_of_the_declarations(checkout: Path) -> None:
    config = ModelConfig(
        d_mlp=8, smeared_keys=True, smear_gate=True, position_embedding="learned", gated_mlp=True, qk_norm="head",
        norm_position="both", biases=get_args(Bias),
    )  # fmt: skip
    expected = [
        [f"`{name}`", one.axes, "yes" if one.decayed else "no", "yes" if one.sharded else "no",
         f"`{one.hooked}`" if one.hooked else ""]
        for name, one in declarations(config).items()
    ]  # fmt: skip
    page = (checkout / "docs" / "model.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")
    ]
    assert rows == expected


@pytest.mark.usefixtures("wandb_of_nobody")
def test_the_commands_on_wandb_are_understood(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (checkout / "docs" / "wandb.md").read_text(encoding="utf-8")
    (sweep,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    Path("sweep.yaml").write_text(sweep)
    plain = re.sub(r"^```yaml\n.*?^```\n", "", page, flags=re.MULTILINE | re.DOTALL)
    lines = [line for _, code in _BLOCKS.findall(plain) for line in code.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines]
    assert {verb for verb, *_ in commands} == {"train", "sweep", "workspace"}
    for verb, *args in commands:
        if verb == "sweep":
            status, said, _ = command(verb, *args, *([] if "--dry-run" in args else ["--dry-run"]))
            assert status == 0
            assert "2 runs" in said  # of two members each: the rates differ in no shape
            assert said.count("model.n_layers=") == 4
        elif verb == "train":
            config = parse_with_config(TrainArgs, args, prog="", description="").overrides
            assert config.tracker != find_config(args[0])[1].tracker
        else:
            assert "not logged in" in command(verb, *args)[2]
    for name in re.findall(r"`((?:tracker|probes|train)\.\w+)`", page):
        section, field = name.split(".")
        assert hasattr(getattr(Config(), section), field), name


def test_every_public_name_says_what_it_is(checkout: Path) -> None:
    public_names = runpy.run_path(str(checkout / "docs" / "tools" / "site.py"), run_name="site")["public_names"]
    packages = ("icl_jax", "icl_jax.analysis", "icl_jax.config", "icl_jax.data", "icl_jax.rundir", "icl_jax.report")
    silent = []
    for path in [path for package in packages for path in public_names(package)]:
        module, _, name = path.rpartition(".")
        value = getattr(importlib.import_module(module), name)
        is_made = (value.__doc__ or "").startswith(f"{name}(")  # by dataclass
        if (inspect.isfunction(value) or inspect.isclass(value)) and (not value.__doc__ or is_made):
            silent.append(path)
    assert silent == []


def test_a_product_of_factors_takes_the_times_of_gradient_flow(checkout: Path) -> None:
    code = re.findall(r"^```python\n(.*?)^```", (checkout / "docs" / "causes.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile("".join(code), "docs/causes.md", "exec"), names)
    np.testing.assert_allclose(names["times"], names["flow"], rtol=0.01, atol=0.01)
    assert names["times"] == pytest.approx([19.2, 3.0, 0.64], abs=0.05)


def test_tables_of_runs_are_those_of_the_data(checkout: Path) -> None:
    tables = runpy.run_path(str(checkout / "docs" / "tools" / "tables.py"))["tables"]
    for page, lines in tables():
        text = (checkout / page).read_text(encoding="utf-8")
        assert "\n".join(lines) + "\n" in text, f"{page}: python docs/tools/tables.py makes it: {lines[0]}"


def test_tables_of_the_upper_half_are_those_of_the_data(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(checkout / "docs" / "tools")
    tables = runpy.run_path(str(checkout / "docs" / "tools" / "upper_half.py"))["tables"]
    text = (checkout / "docs" / "upper-half.md").read_text(encoding="utf-8")
    for number, lines in enumerate(tables()):
        made = f"<!-- table {number} -->\n\n" + "\n".join(lines) + f"\n\n<!-- end of table {number} -->"
        assert made in text, f"python docs/tools/upper_half.py makes it: {lines[0]}"


def test_tables_of_causes_are_those_of_the_data(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(checkout / "docs" / "tools")
    made = runpy.run_path(str(checkout / "docs" / "tools" / "causes.py"))["tables"]()
    text = (checkout / "docs" / "causes.md").read_text(encoding="utf-8")
    assert f"\n\n{made}\n\n" in text, "python docs/tools/causes.py makes it"
