"""Suites: members, seeds, changed fields, and files that cannot be used."""

from dataclasses import replace
from pathlib import Path

import pytest

from icl_jax.config import Config, UserError, load_config
from icl_jax.config.builtin import builtin_config_path, builtin_suite_names, builtin_suite_path
from icl_jax.config.tables import flat
from icl_jax.measures.table import TABLE
from icl_jax.report.causes import base_of
from icl_jax.suites.suite import Analysis, Suite, load_suite, with_seeds

GOOD = """
title = "Layers"
seeds = [3, 4]
[analysis]
snapshots = 7
only = ["icl"]
[[member]]
config = "repeats-2l"
title = "two layers"
[[member]]
config = "mine.toml"
name = "three"
seeds = [0]
analysis = { only = ["bump", "pca"], rows = 5 }
set = { model = { n_layers = 3 }, optimizer = { lr = 1e-4 } }
"""


def _write(folder: Path, text: str) -> Path:
    (folder / "mine.toml").write_text("[model]\nd_model = 32\n")
    (folder / "layers.toml").write_text(text)
    return folder / "layers.toml"


def test_members_runs_and_changes(tmp_path: Path) -> None:
    suite = load_suite(_write(tmp_path, GOOD))
    assert (suite.name, suite.title) == ("layers", "Layers")
    two, three = suite.members
    assert two.analysis == Analysis(snapshots=7, rows=0, only=("icl",))
    assert three.analysis == Analysis(snapshots=7, rows=5, only=("bump", "pca"))
    assert (two.name, two.title, three.title) == ("repeats-2l", "two layers", "three")
    builtin = builtin_config_path("repeats-2l")
    assert builtin is not None
    assert two.config == load_config(builtin)
    runs = two.runs()
    assert list(runs) == ["repeats-2l-seed3", "repeats-2l-seed4"]
    assert [config.train.seed for config in runs.values()] == [3, 4]
    assert {config.data.seed for config in runs.values()} == {two.config.data.seed}
    (name, only), *_ = three.runs().items()
    assert (name, only.model.n_layers, only.model.d_model, only.optimizer.lr) == ("three", 3, 32, 1e-4)


def test_a_member_intervenes(tmp_path: Path) -> None:
    text = """
seeds = "0..2"
[[member]]
config = "mine.toml"
set = { intervene = [{ at = "pattern", layers = 0, pattern = "uniform" }] }
"""
    (member,) = load_suite(_write(tmp_path, text)).members
    (config,) = member.runs().values()
    assert [(one.at, one.layers) for one in config.member(2).intervene] == [("pattern", (0,))]


def test_seeds_of_one_run(tmp_path: Path) -> None:
    text = """
seeds = "3..5"
[[member]]
config = "mine.toml"
set = { members = { "optimizer.lr" = [1e-3, 2e-3] } }
[[member]]
config = "mine.toml"
name = "few"
seeds = [1, 2]
"""
    together, few = load_suite(_write(tmp_path, text)).members
    ((name, config),) = together.runs().items()
    assert name == "mine"
    assert [(one.train.seed, one.optimizer.lr) for one in map(config.member, range(6))] == [
        (seed, lr) for lr in (1e-3, 2e-3) for seed in (3, 4, 5)
    ]
    assert together.models() == [f"mine/members/{k}" for k in range(6)]
    assert list(few.runs()) == few.models() == ["few-seed1", "few-seed2"]


BAD = {
    "a range that is none": ("seeds = '5..3'\n[[member]]\nconfig = 'mine.toml'", ["seeds: members.seeds = '5..3'"]),
    "seeds in the config": (
        "[[member]]\nconfig = 'mine.toml'\nset = { members = { seeds = 3 } }",
        ["mine: members.seeds = '0..2': must be empty: the seeds of a suite are its own"],
    ),
    "not TOML": ("member = [", ["not valid TOML"]),
    "no members": ("title = 'x'", ["member is missing"]),
    "members in a table": ("[member]\nconfig = 'repeats-2l'", ["member is missing"]),
    "a key of no suite": ("[[members]]", ["unknown key 'members'", "known are analysis, member, seeds, title"]),
    "a key of no member": ("[[member]]\nconfg = 'x'", ["unknown key 'member.confg'"]),
    "a key of no analysis": ("[analysis]\nsteps = 3\n[[member]]", ["unknown key 'analysis.steps'"]),
    "analysis that is no table": ("analysis = 3\n[[member]]", ["analysis = 3", "must be a table"]),
    "no config": ("[[member]]\ntitle = 'x'", ["member.config is missing"]),
    "config that is not there": ("[[member]]\nconfig = 'none'", ["none: cannot read the config"]),
    "an empty title": ("title = ''\n[[member]]\nconfig = 'mine.toml'", ["title = ''", "not empty"]),
    "a name that is no folder's": ("[[member]]\nconfig = 'mine.toml'\nname = '../x'", ["member.name = '../x'"]),
    "two members of one name": ("[[member]]\nconfig = 'mine.toml'\n" * 2, ["'mine'", "names two members"]),
    "seeds that are no list": ("seeds = 3\n[[member]]\nconfig = 'mine.toml'", ["seeds = 3", "list"]),
    "a negative seed": ("seeds = [-1]\n[[member]]\nconfig = 'mine.toml'", ["seeds = -1", "0 or more"]),
    "a seed twice": ("seeds = [1, 1]\n[[member]]\nconfig = 'mine.toml'", ["seeds = [1, 1]", "different"]),
    "a number of snapshots": ("[analysis]\nsnapshots = 1.5\n[[member]]", ["analysis.snapshots = 1.5", "whole number"]),
    "names that are no list": ("[analysis]\nonly = 'icl'\n[[member]]", ["analysis.only = 'icl'", "a list of names"]),
    "an analysis that is no table": ("[[member]]\nconfig = 'mine.toml'\nanalysis = 3", ["analysis = 3"]),
    "an unknown section": (
        "[[member]]\nconfig = 'mine.toml'\nset = { modle = { n_layers = 3 } }", ["unknown key 'modle'"]
    ),
    "an unknown field": ("[[member]]\nconfig = 'mine.toml'\nset = { model = { n_layer = 3 } }", ["model.n_layer"]),
    "a value that cannot work": (
        "[[member]]\nconfig = 'mine.toml'\nset = { model = { n_heads = 5 } }", ["mine", "model.d_model = 32"]
    ),
    "fields without a section": ("[[member]]\nconfig = 'mine.toml'\nset = { n_layers = 3 }", ["must be tables"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_suite_is_one_line(case: str, tmp_path: Path) -> None:
    text, expected = BAD[case]
    with pytest.raises(UserError) as caught:
        load_suite(_write(tmp_path, text))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in expected:
        assert part in message


def test_a_suite_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the suite: No such file"):
        load_suite(tmp_path / "none.toml")


def _builtin(name: str) -> Suite:
    path = builtin_suite_path(name)
    assert path is not None
    return load_suite(path)


def test_a_run_of_the_suite_of_seeds_is_the_beginning_of_its_configs() -> None:
    for member in _builtin("seeds").members:
        own, optimizer = load_config(str(builtin_config_path(member.name))), member.config.optimizer
        laid_out = optimizer.schedule_steps or member.config.train.n_steps
        assert optimizer.schedule == "constant" or laid_out == own.train.n_steps
        assert member.config.train.n_steps <= own.train.n_steps


def test_the_suite_of_laws_varies_one_field_at_a_time() -> None:
    base, *others = _builtin("laws").members
    known = flat(base.config)
    assert {member.config.optimizer.schedule for member in (base, *others)} == {"constant"}
    fields = []
    for member in others:
        changed = {field for field, value in flat(member.config).items() if value != known[field]}
        changed -= {"train.n_steps", "probes.repeat_len", "members.values"}
        fields.append(changed or {"optimizer.lr"} & set(member.config.members.names))
    assert [len(changed) for changed in fields[:-1]] == [1] * (len(others) - 1)
    assert fields[-1] == {"optimizer.name", "optimizer.lr"}  # one rate does not suit both
    assert {"train.batch_size", "model.n_ctx", "data.repeats.phrase_prob"} < set().union(*fields)


def test_the_conditions_of_the_suite_of_causes_differ_in_interventions_alone() -> None:
    members = _builtin("causes").members
    configs = [member.config for member in members]
    bases = [base_of(config, configs) for config in configs]
    # On each corpus one is held against nothing; with five tokens the others are held against the one with one head.
    assert [members[i].name for i, base in enumerate(bases) if base is None] == ["repeats-2l", "stories-2l", "singh-2l"]
    assert {members[base].name for base in bases if base is not None} == {
        "repeats-2l", "stories-2l", "singh-2l", "singh-one-head",
    }  # fmt: skip
    for member, base in zip(members, bases, strict=True):
        if base is not None and member.name != "heads-removed":  # which asks what comes afterwards
            same = replace(member.config, intervene=configs[base].intervene)
            assert same == configs[base]
        assert len(next(iter(member.runs().values())).members) == 8


@pytest.mark.parametrize("name", builtin_suite_names())
def test_suites_that_come_along_load_and_say_what_they_are_for(name: str) -> None:
    suite = _builtin(name)
    path = builtin_suite_path(name)
    assert path is not None
    comment = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert "\n# Cost: " in comment
    assert "\n# Expect: " in comment
    known = {entry.name for entry in TABLE}
    assert all(set(member.analysis.only) <= known for member in suite.members)
    # Members on one corpus are to be compared: nothing but the architecture differs.
    # The paper trains its full-scale models longer than the small ones.
    groups: dict[object, list[Config]] = {}
    # Where it is asked when a change comes, each run ends after it: the tests of those three say what is alike there.
    for member in suite.members if name not in ("seeds", "laws", "causes") else ():
        groups.setdefault((member.config.data, member.name.startswith("paper-full")), []).append(member.config)
    for same in groups.values():
        assert len({(config.train.n_steps, config.tokens_per_step) for config in same}) == 1


def test_the_paper_suite_has_the_papers_34_models() -> None:
    members = _builtin("paper").members
    assert len(members) == 34 - 2  # the two controls of smeared keys are the small models of one and two layers
    assert all(member.config.launch.topology for member in members)
    books = [member.config for member in members if member.name.startswith("books-")]
    small = [member.config for member in members if member.name.startswith(("paper-attn", "paper-mlp"))]
    assert [config.model for config in books] == [config.model for config in small]
    assert {config.data.source for config in books} == {"tfds:pg19"}


def test_the_quick_suite_compares_the_papers_four() -> None:
    members = _builtin("quick").members
    models = [member.config.model for member in members if member.config.data.source == "repeats"]
    assert [(model.n_layers, model.smeared_keys) for model in models] == [(0, False), (1, False), (2, False), (1, True)]


def test_other_seeds_than_the_suites() -> None:
    suite = with_seeds(_builtin("seeds"), "0..99")
    assert [len(config.members) for member in suite.members for config in member.runs().values()] == [100] * 4
    with pytest.raises(UserError, match=r"--seeds: .*must be how many"):
        with_seeds(suite, "many")
