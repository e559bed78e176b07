"""`icl-jax compile` and the plan of a suite, with plans that are made up: tests/plan/test_compiled.py compiles."""

from dataclasses import replace
from pathlib import Path

import jax
import pytest

from icl_jax import process
from icl_jax.cli.arguments import find_config
from icl_jax.config import Config
from icl_jax.config.builtin import builtin_config_names
from icl_jax.plan import compiled
from icl_jax.plan.chips import Slice
from icl_jax.plan.compiled import Plan, compile_step, estimate
from icl_jax.plan.tell import table_rows
from icl_jax.suites import jobs
from tests.train.runs import TINY, command, tiny_config

ON_SLICE = TINY + '[launch]\ntopology = "v5e:2x2"\n'


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of what was compiled, in a folder with tiny.toml, for a slice, and bare.toml, for none."""
    (tmp_path / "tiny.toml").write_text(ON_SLICE)
    (tmp_path / "bare.toml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "compile_for_tpu", lambda: None)
    program = replace(
        compile_step(tiny_config(), jax.devices()[:4]),
        temporary_bytes=2**30, hbm_bytes=819 * 10**9, coordinates=((0, 0), (0, 1), (1, 0), (1, 1)),
    )  # fmt: skip
    names: list[str] = []

    def make(name: str, config: Config, price: float | None = None) -> Plan:
        names.append(name)
        facts = {"name": name, "topology": config.launch.topology, "parallel": config.train.parallel, "n_params": 1234}
        if config.model.d_model > 100:
            return Plan(**facts, program=None, excess_bytes=3 * 2**29, estimate=None)
        e = estimate(config, program, Slice(config.launch.topology), price)
        return Plan(**facts, program=program, excess_bytes=None, estimate=e)

    monkeypatch.setattr(compiled, "make_plan", make)
    return names


def test_one_config_is_described(planned: list[str]) -> None:
    status, out, err = command("compile", "tiny.toml", "--price", "9")
    assert (status, err, planned) == (0, "", ["tiny"])
    assert out.startswith(
        "tiny on v5e:2x2: 4 chips, pmap; 1,234 parameters\nfits: 1.00 of the 15.75 GiB of a v5e chip\n"
    )
    assert "temporaries 1.00" in out
    assert "  step          at least 1 s, bound by memory: arithmetic " in out
    # 8 steps of a second on 4 chips.
    assert "136 tokens/s; 1.09 k tokens in 0.0 hours, 0 chip-hours, $0 at $9.00 a chip-hour" in out


def test_several_are_a_table_and_one_that_does_not_fit_is_said(planned: list[str]) -> None:
    wide = Path("wide.toml")
    wide.write_text(ON_SLICE.replace("d_model = 12", "d_model = 120"))
    status, out, _ = command("compile", "tiny.toml", "wide.toml")
    assert status == 1
    header, rule, tiny, large = out.splitlines()
    assert header.count("|") == rule.count("|") == tiny.count("|") == large.count("|")
    assert tiny.startswith("| tiny | 1.23 k | v5e:2x2 | pmap | 1.0 | 1 | memory |")
    assert "| does not fit, by 1.50 GiB |" in large
    status, out, _ = command("compile", "wide.toml")
    assert status == 1
    assert "does not fit into the 15.75 GiB of a v5e chip, by 1.50 GiB: try more chips" in out


def test_json_can_be_read_back(planned: list[str]) -> None:
    _, out, _ = command("compile", "tiny.toml", "--json")
    assert compiled.plan_from_json(out).name == "tiny"


def test_all_configs_that_name_a_slice(planned: list[str]) -> None:
    status, out, _ = command("compile")
    assert status == 1  # as planned here, most are too wide
    assert len(out.splitlines()) == 2 + len(planned)
    assert {"paper-attn-1l", "paper-smeared-2l", "paper-full-40l"} <= set(planned)
    assert "repeats-2l" not in planned


REFUSED = {
    "no slice": (("bare.toml",), "bare.toml: names no slice; give --topology, or set launch.topology"),
    "unknown slice": (("bare.toml", "--topology", "v9:2x2"), "--topology = 'v9:2x2': must be a TPU slice such as"),
    "mesh of another size": (
        ("tiny.toml", "--mesh", "data=3,fsdp=2"),
        "--mesh = 'data=3,fsdp=2': must be data=A,fsdp=B",
    ),
    "no mesh": (("tiny.toml", "--mesh", "fsdp"), "with A x B = 4 chips"),
    "batch": (("bare.toml", "--topology", "v5e:4x4"), "train.batch_size = 8: must be divisible by 16 devices"),
    "price": (("tiny.toml", "--price", "-1"), "--price = -1.0: must be 0 or more"),
    "no config": (("none.toml",), "none.toml: cannot read the config"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_one_line(case: str, planned: list[str]) -> None:
    args, expected = REFUSED[case]
    status, out, err = command("compile", *args)
    assert (status, out, planned) == (2, "", [])
    assert len(err.splitlines()) == 1
    assert expected in err


def test_without_libtpu_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "compile_for_tpu", lambda: None)
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda _name: None)
    status, _, err = command("compile", "repeats-2l", "--topology", "v5e:2x2")
    assert status == 2
    assert err == "icl-jax: compiling for a TPU needs libtpu: pip install 'icl-jax[tpu]'\n"


SUITE = """
[[member]]
config = "tiny.toml"
[[member]]
config = "tiny.toml"
name = "seeded"
seeds = [4]
set = { data = { seed = 3 } }
[[member]]
config = "tiny.toml"
name = "deep"
set = { model = { n_layers = 3 } }
"""


def test_a_suite_for_slices_is_planned_where_there_are_no_chips(
    planned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_has_tpu", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    Path("suite.toml").write_text(SUITE)
    status, out, err = command("reproduce", "suite.toml", "--out", "out")
    assert (status, err) == (0, "")
    assert planned == ["tiny", "deep"]  # the seeded one is the same program as the first
    rows = [line for line in out.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0] for row in rows] == ["| tiny", "| seeded", "| deep"]
    assert "3 runs, 0 chip-hours, $0 at best" in out
    assert not Path("out", "configs").exists()  # nothing is prepared for training
    assert command("reproduce", "suite.toml", "--out", "out")[1].splitlines()[-5:] == out.splitlines()[-5:]
    assert planned == ["tiny", "deep"]  # kept from the first time


def test_the_page_has_a_row_for_every_config_that_names_a_slice(checkout: Path) -> None:
    page = (checkout / "docs" / "scale.md").read_text(encoding="utf-8")
    table = page.partition("<!-- table -->\n")[2].partition("<!-- end -->")[0].splitlines()
    assert table[:2] == table_rows([])
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table[2:]]
    for name in builtin_config_names():
        launch = find_config(name)[1].launch
        assert [row[2] for row in rows if row[0] == name] == ([launch.topology] if launch.topology else []), name
