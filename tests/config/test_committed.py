"""The configs that come with icl_jax: all load, and the papers' are the papers'."""

import dataclasses
import json
from pathlib import Path

import pytest

from icl_jax.config import Config, DataConfig, load_config
from icl_jax.config.builtin import builtin_config_names, builtin_config_path
from icl_jax.config.tables import flat
from icl_jax.config.toml import config_chain
from icl_jax.rundir import snapshot_steps

# Olsson et al. 2022, "Model Details": name -> layers, with MLPs, smeared keys.
PAPER = {
    "paper-attn-1l": (1, False, False),
    "paper-attn-2l": (2, False, False),
    "paper-attn-3l": (3, False, False),
    "paper-attn-4l": (4, False, False),
    "paper-attn-5l": (5, False, False),
    "paper-attn-6l": (6, False, False),
    "paper-mlp-1l": (1, True, False),
    "paper-mlp-2l": (2, True, False),
    "paper-mlp-3l": (3, True, False),
    "paper-mlp-4l": (4, True, False),
    "paper-mlp-5l": (5, True, False),
    "paper-mlp-6l": (6, True, False),
    "paper-smeared-1l": (1, False, True),
    "paper-smeared-2l": (2, False, True),
}
# The same, the full-scale models: name -> layers, d_model, heads, d_head.
FULL = {
    "paper-full-4l": (4, 512, 8, 64),
    "paper-full-6l": (6, 768, 12, 64),
    "paper-full-10l": (10, 1280, 20, 64),
    "paper-full-16l": (16, 2048, 32, 64),
    "paper-full-24l": (24, 3072, 48, 64),
    "paper-full-40l": (40, 5120, 40, 128),
}
SMALL = {
    "smoke",
    "repeats-0l",
    "repeats-1l",
    "repeats-2l",
    "repeats-2l-small",
    "repeats-1l-smeared",
    "python-1l",
    "python-2l",
    "python-1l-smeared",
    "python-llama",
    "stories-0l",
    "stories-1l",
    "stories-2l",
    "markov-3",
    "triggers-5",
    "classes-icl",
    "classes-iwl",
    "patterns-2l",
    "stories-3l",
    "stories-1l-smeared",
    "stories-2l-mlp",
    "mixture-2l",
    "singh-2l",
}


def load(name: str):
    path = builtin_config_path(name)
    assert path is not None
    return load_config(path)


def test_each_config_is_known_here(checkout) -> None:
    assert set(builtin_config_names()) == PAPER.keys() | FULL.keys() | SMALL
    assert {path.stem for path in (checkout / "configs").glob("*.toml")} == PAPER.keys() | FULL.keys() | SMALL


@pytest.mark.parametrize("name", sorted(PAPER.keys() | FULL.keys() | SMALL))
def test_config_loads_and_says_what_it_is_for(name: str) -> None:
    load(name)
    path = builtin_config_path(name)
    assert path is not None
    comment = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert all(line.startswith("#") for line in comment.splitlines())
    assert "\n# Cost: " in comment
    assert "\n# Expect: " in comment


@pytest.mark.parametrize("name", ["none", "", ".", "..", "../pyproject", "smoke.toml", "/etc/passwd", "*"])
def test_other_names_are_no_config(name: str) -> None:
    assert builtin_config_path(name) is None


@pytest.mark.parametrize("name", PAPER)
def test_paper_config_has_the_disclosed_values(name: str) -> None:
    n_layers, has_mlps, is_smeared = PAPER[name]
    config = load(name)
    model = config.model
    assert (model.n_layers, model.d_mlp, model.smeared_keys) == (n_layers, 3072 if has_mlps else 0, is_smeared)
    assert (model.d_model, model.n_heads, model.head_width) == (768, 12, 64)
    assert (model.n_ctx, model.vocab_size) == (8192, 65536)
    assert (model.positions, model.norm) == ("shortformer", "layernorm")
    assert config.train.n_steps == 10_000
    assert config.tokens_per_step == 1_048_576
    assert config.train.n_steps * config.tokens_per_step == pytest.approx(10e9, rel=0.05)
    assert config.optimizer.warmup_steps * config.tokens_per_step == pytest.approx(1.5e9, rel=1e-3)
    assert config.optimizer.decay_change_step == 4750
    assert config.optimizer.decay_change_factor < 1
    assert snapshot_steps(config) == list(range(0, 10_001, 50))
    assert (config.probes.n_sequences, config.probes.repeat_len, config.probes.n_repeats) == (10, 25, 4)


@pytest.mark.parametrize("name", FULL)
def test_full_scale_config_has_the_disclosed_values(name: str) -> None:
    config = load(name)
    model = config.model
    assert (model.n_layers, model.d_model, model.n_heads, model.head_width) == FULL[name]
    assert (model.n_ctx, model.vocab_size, model.norm) == (8192, 65536, "layernorm")
    assert config.tokens_per_step == 2**20
    assert config.train.n_steps >= 2**17


@pytest.mark.parametrize("name", sorted(PAPER.keys() | FULL.keys()))
def test_paper_config_names_a_slice_that_its_batch_divides_among(name: str) -> None:
    config = load(name)
    assert config.train.rows_per_device(config.launch.n_chips) >= 1


@pytest.mark.parametrize("name", sorted(PAPER.keys() | FULL.keys()))
def test_paper_config_marks_what_is_ours(name: str) -> None:
    path = builtin_config_path(name)
    assert path is not None
    lines = [line for file in config_chain(path) for line in file.read_text(encoding="utf-8").splitlines()]
    ours = {line.split(" = ")[0] for line in lines if "ours" in line and not line.startswith("#")}
    assert ours >= {"source", "tokenizer", "lr", "schedule", "weight_decay", "b1", "b2", "topology"}
    assert name in FULL or "decay_change_factor" in ours
    assert ours.isdisjoint({"n_layers", "d_model", "n_heads", "n_ctx", "vocab_size", "n_steps", "warmup_steps"})


@pytest.mark.parametrize(
    "names",
    [
        [name for name in PAPER if "attn" in name] + [name for name in PAPER if "smeared" in name],
        [name for name in PAPER if "mlp" in name],
        ["repeats-0l", "repeats-1l", "repeats-2l", "repeats-1l-smeared"],
        ["python-1l", "python-2l", "python-1l-smeared"],
    ],
)
def test_configs_of_a_comparison_differ_only_in_layers_and_smearing(names: list[str]) -> None:
    def controlled(name: str):
        config = load(name)
        return dataclasses.replace(config, model=dataclasses.replace(config.model, n_layers=1, smeared_keys=False))

    assert all(controlled(name) == controlled(names[0]) for name in names)


RESOLVED = json.loads(Path(__file__).with_name("paper_resolved.json").read_text(encoding="utf-8"))
"""Of before these files extended a base: each config's fields that were not the defaults of then."""


@pytest.mark.parametrize("name", RESOLVED)
def test_paper_config_has_all_values_that_it_had_before_it_extended_a_base(name: str) -> None:
    found, defaults = flat(load(name)), flat(Config(data=DataConfig(source="tfds:another")))
    assert {key: found[key] for key in RESOLVED[name]} == RESOLVED[name]
    assert {key for key in found if found[key] != defaults[key]} <= RESOLVED[name].keys()
