"""Configs that extend others."""

from pathlib import Path

import pytest

from icl_jax.config import Config, UserError, dump_config, load_config
from icl_jax.config.builtin import builtin_config_names, builtin_config_path
from tests.data_configs import data_config


def write(folder: Path, **files: str) -> Path:
    """Files NAME.toml; the path of the first."""
    for name, text in files.items():
        path = folder / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / f"{next(iter(files))}.toml"


def test_the_nearest_file_wins_and_the_resolved_config_is_complete(tmp_path: Path) -> None:
    path = write(
        tmp_path / "deep",
        own='extends = "middle.toml"\n[model]\nn_layers = 5\n[data.repeats]\nn_phrases = 4',
        middle='extends = "../base.toml"\n[model]\nn_layers = 4\nd_model = 32\n[data.repeats]\nphrase_len = 6',
    )
    write(tmp_path, base="[model]\nd_model = 16\nd_mlp = 7\n[data.repeats]\nphrase_len = 9\nphrase_prob = 0.5")
    config = load_config(path)
    assert (config.model.n_layers, config.model.d_model, config.model.d_mlp) == (5, 32, 7)
    assert config.data == data_config(n_phrases=4, phrase_len=6, phrase_prob=0.5)
    assert "extends" not in dump_config(config)


def test_a_name_is_a_built_in_config_whatever_lies_beside_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, own='extends = "repeats-2l"\n[model]\nn_layers = 3', **{"repeats-2l": "[model]\nd_mlp = 7"})
    builtin = builtin_config_path("repeats-2l")
    assert builtin is not None
    assert load_config(path).model.d_mlp == load_config(builtin).model.d_mlp == 0
    assert load_config(path).model.n_layers == 3
    assert load_config(write(tmp_path, small='extends = "paper-small"\n[model]\nn_layers = 7')).model.d_model == 768
    assert "paper-small" not in builtin_config_names()
    assert builtin_config_path("paper-small") is None


def test_another_source_leaves_the_options_of_the_base_behind(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        own='extends = "base.toml"\n[model]\nvocab_size = 4\n[data]\nsource = "markov"',
        base="[data.repeats]\nphrase_len = 9\n[data]\nheld_out_rows = 600",
    )
    assert load_config(path).data == data_config("markov", held_out_rows=600)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": 'extends = "a.toml"'}, "a.toml: extends = 'a.toml': is extended by it"),
        ({"a": 'extends = "b.toml"', "b": 'extends = "./a.toml"'}, "b.toml: extends = './a.toml': is extended by it"),
        ({"a": 'extends = "none.toml"'}, "none.toml: cannot read the config: No such file"),
        ({"a": 'extends = "none"'}, "a.toml: extends = 'none': no such config; there are classes-icl, "),
        ({"a": "extends = 3"}, "a.toml: extends = 3: must be the name of a config"),
        ({"a": 'extends = "b.toml"', "b": "[model\n"}, "b.toml: not valid TOML"),
        ({"a": 'extends = "b.toml"', "b": "[model]\nn_layer = 2"}, "unknown key 'model.n_layer'"),
        ({"a": '[model]\nextends = "b.toml"'}, "unknown key 'model.extends'"),
    ],
)
def test_what_cannot_be_extended_is_said_in_one_line(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, **files))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_without_extends_is_itself(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, own="")) == Config()
