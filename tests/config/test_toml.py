"""TOML in and out: what is written is read back, and what differs is named."""

from dataclasses import asdict, replace
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.config import (
    Config,
    DataConfig,
    MembersConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    SnapshotConfig,
    TrackerConfig,
    TrainConfig,
    UserError,
    dump_config,
    load_config,
    numeric_differences,
    parse_config,
)
from icl_jax.config.corpora import NAMES
from icl_jax.config.tables import flat, merge, to_tables
from icl_jax.config.toml import build_config, dump_inline, field_types, parse_inline
from tests.data_configs import data_config
from tests.model.architectures import FAMILIES, OPTIONS

# Every character that a file can hold, line ends and control characters among them.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# What W&B takes as a project or an entity.
WANDB_NAME = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\\#?%:"), max_size=12)
NON_EMPTY = TEXT.filter(bool)
POSITIVE = st.floats(2.0**-126, 3e38)
NON_NEGATIVE = st.just(0.0) | POSITIVE
BELOW_1 = st.just(0.0) | st.floats(2.0**-126, 1 - 2.0**-24)
COUNT = st.integers(1, 2**40)
COUNT_OR_0 = st.integers(0, 2**40)


def one_of(section: type, name: str) -> st.SearchStrategy[str]:
    return st.sampled_from(get_args(get_type_hints(section)[name]))


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    n_heads, d_head = draw(st.integers(1, 64)), 2 * draw(st.integers(1, 128))
    architecture = draw(st.sampled_from([{}, *(OPTIONS | FAMILIES).values()]))
    sizes: dict[str, Any] = dict(  # noqa: C408
        n_layers=draw(st.integers(0, 100)),
        d_model=n_heads * d_head,
        n_heads=n_heads,
        d_mlp=draw(COUNT_OR_0),
        n_ctx=draw(st.integers(9, 2**20)),
        vocab_size=draw(st.integers(4, 2**20)),
        positions=draw(one_of(ModelConfig, "positions")),
        position_embedding=draw(one_of(ModelConfig, "position_embedding")),
        smeared_keys=draw(st.booleans()),
        norm=draw(one_of(ModelConfig, "norm")),
        tied_unembedding=draw(st.booleans()),
        init_std=draw(POSITIVE),
        compute_dtype=draw(one_of(ModelConfig, "compute_dtype")),
        attention=draw(one_of(ModelConfig, "attention")),
        loss_chunk=draw(COUNT_OR_0),
    )
    if architecture:
        # An even width of heads, and what goes with any option.
        sizes |= {"attention": "auto", "norm": "rmsnorm", "positions": "shortformer", "d_head": d_head, "n_heads": 12}
        sizes |= {"d_mlp": 1 + sizes["d_mlp"], "n_layers": 2 + sizes["n_layers"]}
    elif sizes["positions"] == "alibi":
        sizes["attention"] = "reference"
    return ModelConfig(**sizes | {name: value for name, value in architecture.items() if name != "d_mlp"})


@st.composite
def trains(draw: st.DrawFn) -> TrainConfig:
    accum_steps, parallel = draw(st.integers(1, 64)), draw(one_of(TrainConfig, "parallel"))
    return TrainConfig(
        n_steps=draw(st.integers(1, 2**31 - 1)),
        batch_size=accum_steps * draw(st.integers(1, 2**20)),
        accum_steps=accum_steps,
        seed=draw(st.integers(0, 2**32 - 1)),
        parallel=parallel,
        fsdp=draw(COUNT) if parallel == "mesh" else 1,
        flush_every_s=draw(NON_NEGATIVE),
    )


@st.composite
def configs(draw: st.DrawFn) -> Config:
    model, train = draw(models()), draw(trains())
    options: dict[str, Any] = {
        "repeats": {
            "phrase_len": draw(st.integers(2, model.n_ctx - 1)),
            "n_phrases": draw(st.integers(1, 2**31 - 1)),
            "phrase_prob": draw(st.floats(min_value=0, max_value=1, exclude_min=True)),
        },
        "classes": {"n_classes": draw(COUNT), "bursty": draw(st.floats(0, 1))},
        "tfds": {"field": draw(NON_EMPTY), "split": draw(NON_EMPTY), "data_dir": draw(TEXT)},
    }
    named = st.sampled_from(["text:", "tfds:"]).flatmap(lambda kind: NON_EMPTY.map(kind.__add__))
    source = draw(st.sampled_from(["repeats", "classes", "python"]) | named)
    data = data_config(
        source,
        tokenizer=draw(NON_EMPTY),
        held_out_rows=draw(COUNT),
        seed=draw(st.integers(0, 2**63 - 1)),
        **options.get(source.partition(":")[0], {}),
    )
    optimizer = OptimizerConfig(
        name=draw(one_of(OptimizerConfig, "name")) if train.fsdp == 1 else "adamw",
        schedule_steps=draw(st.integers(0, 2**31 - 1)),
        lr=draw(POSITIVE),
        warmup_steps=draw(st.integers(0, train.n_steps)),
        schedule=draw(one_of(OptimizerConfig, "schedule")),
        final_lr_fraction=draw(st.just(1.0) | BELOW_1),
        b1=draw(BELOW_1),
        b2=draw(BELOW_1),
        eps=draw(POSITIVE),
        weight_decay=draw(NON_NEGATIVE),
        decay_change_step=draw(st.integers(-1, 2**31 - 1)),
        decay_change_factor=draw(NON_NEGATIVE),
        clip_norm=draw(NON_NEGATIVE),
    )
    snapshots = SnapshotConfig(
        n_linear=draw(COUNT_OR_0), n_log=draw(COUNT_OR_0), state_every_s=draw(POSITIVE), keep_states=draw(COUNT)
    )
    probes = ProbeConfig(
        n_probes=draw(COUNT_OR_0),
        held_out_rows=draw(st.integers(1, data.held_out_rows)),
        n_sequences=draw(COUNT),
        repeat_len=draw(st.integers(2, 2**40)),
        n_repeats=draw(st.integers(2, 2**40)),
    )
    tracker = TrackerConfig(
        wandb=draw(one_of(TrackerConfig, "wandb")),
        project=draw(WANDB_NAME.filter(bool)),
        entity=draw(WANDB_NAME),
        group=draw(TEXT),
        every_steps=draw(COUNT),
    )
    return Config(
        model=model, data=data, train=train, optimizer=optimizer, snapshots=snapshots, probes=probes, tracker=tracker
    )


@given(configs())
def test_what_is_dumped_is_parsed_back(config: Config) -> None:
    assert parse_config(dump_config(config)) == config


def test_interventions_are_parsed_back() -> None:
    """From a file, and from the text of a command line."""
    tables = """
        {at = "pattern", layers = 0, pattern = "induction", until = "first_induction_head"},
        {what = "freeze", at = "W_Q", heads = [1, 2], from = 3, until = 5},
        {at = "v", from_run = "runs/a \\" b", step = 4, except_heads = 0}, {at = "z", scale = 1e-3}
    """.replace("\n", " ")
    config = replace(Config(), intervene=parse_inline(tables))
    assert [one.what for one in config.intervene] == ["pattern", "freeze", "from_run", "scale"]
    assert parse_config(dump_config(config)) == config
    assert parse_inline(dump_inline(config.intervene)) == config.intervene
    (changed_field,) = numeric_differences(Config(), config)
    assert changed_field.startswith("intervene: [] != [{'what': 'pattern'")


@given(config=configs())
def test_what_is_saved_is_loaded_back(config: Config, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


# The rows of some corpora are of one length.
ROWS_OF: dict[str, Any] = {"fewshot": {"n_ctx": 6}}


@pytest.mark.parametrize("source", [*NAMES[:-2], "text:a", "tfds:a"])
def test_dump_names_every_field(source: str) -> None:
    members = MembersConfig(seeds="2")
    model = ModelConfig(vocab_size=12, **ROWS_OF.get(source, {}))
    config = Config(model=model, data=DataConfig(source=source), members=members)
    text = dump_config(config)
    assert parse_config(text) == config
    assert "intervene" not in text
    for section, values in asdict(config).items():
        if section == "intervene":
            continue
        values |= values.pop("options", {})
        assert f"[{section}]\n" in text
        assert all(f"\n{name} = " in text for name in values)


def test_empty_file_is_the_default_config() -> None:
    assert parse_config("") == Config()


def test_whole_numbers_are_read_as_floats_where_floats_are_meant() -> None:
    lr = parse_config("[optimizer]\nlr = 1\n").optimizer.lr
    assert isinstance(lr, float)
    assert lr == 1.0


def changed(value: Any, annotation: Any) -> Any:
    """Another valid value of a field."""
    if isinstance(value, tuple):
        return (*value, 1) if get_args(annotation)[0] is int else ("b_U",)
    if choices := get_args(annotation):
        return next(choice for choice in choices if choice != value)
    if annotation is bool:
        return not value
    return value / 2 or 2.0 if annotation is float else value * 2 or 1 if annotation is int else value + "x"


FIELDS = field_types()
# Fields that a resumed run may change, beside all of [tracker] and [launch]: they change no recorded number.
FREE = {
    "train.parallel",
    "train.fsdp",
    "train.flush_every_s",
    "snapshots.state_every_s",
    "snapshots.keep_states",
    "data.tfds.data_dir",
}


ROTARY = {"positions": "rotary"}
# What an option of the model goes with.
NEEDS: dict[str, dict[str, Any]] = {
    "rotary_base": ROTARY, "rotary_dim": {**ROTARY, "rotary_dim": 2}, "rotary_scaling": ROTARY,
    "rotary_factor": {**ROTARY, "rotary_scaling": "linear"}, "no_rotary_layers": ROTARY, "window_layers": {"window": 3},
    "window_rotary_base": {**ROTARY, "window": 3}, "d_model": {"n_heads": 2},
}  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_numeric_differences_names_each_changed_field(field: str) -> None:
    section, *table, name = field.split(".")
    source = {"text": "text:a", "tfds": "tfds:a"}.get(*table, *table) if table else "text:a"
    model = NEEDS.get(name, {}) if section == "model" else {}
    base = Config(
        model=ModelConfig(**{"d_mlp": 16, "vocab_size": 12, **ROWS_OF.get(source, {}), **model}),
        train=TrainConfig(parallel="mesh", fsdp=1, seed=3),
        data=DataConfig(source=source, seed=3),
        optimizer=OptimizerConfig(decay_change_step=5),
        probes=ProbeConfig(held_out_rows=64),
    )
    old = flat(base)[field]
    # A member of the base's own seed and learning rate: those of the config are those of the first.
    given_values = {
        "topology": "v5e:4x4", "bursty": 0.5, "seeds": "3..3", "values": "optimizer.lr=0.003",
        "digits": 1, "entries": 5, "class_words": 8, "n_labels": 6,
    }  # fmt: skip
    new = given_values[name] if name in given_values else changed(old, FIELDS[field])
    value = {name: new}
    other = build_config(merge(to_tables(base), {section: {table[0]: value} if table else value}))
    assert flat(other)[field] == new
    is_free = section in ("tracker", "launch") or field in FREE
    assert numeric_differences(base, other) == ([] if is_free else [f"{field}: {old!r} != {new!r}"])
    assert numeric_differences(base, base) == []


def test_fields_of_a_corpus_say_nothing_where_the_corpus_is_another() -> None:
    markov = Config(model=ModelConfig(vocab_size=4), data=DataConfig(source="markov"))
    assert numeric_differences(markov, Config(model=ModelConfig(vocab_size=4))) == [
        "data.source: 'markov' != 'repeats'"
    ]


SCHEMA_1 = """
[model]
vocab_size = 4
[data]
source = "markov"
field = "text"
split = "train"
data_dir = ""
tokenizer = "bpe"
held_out_rows = 512
seed = 0
phrase_len = 8
n_phrases = 2
phrase_prob = 0.2
chain_order = 2
chain_prior = "unigram"
n_triggers = 5
trigger_choice = "fixed"
n_classes = 2048
n_labels = 32
burstiness = 2
bursty = 1.0
"""


def test_a_config_of_schema_1_is_read() -> None:
    config = Config(model=ModelConfig(vocab_size=4), data=data_config("markov", order=2, prior="unigram"))
    assert parse_config(SCHEMA_1) == config
    tfds = SCHEMA_1.replace('"markov"', '"tfds:a"').replace('data_dir = ""', 'data_dir = "/x"')
    assert parse_config(tfds).data == data_config("tfds:a", data_dir="/x")


def test_rows_per_device() -> None:
    train = TrainConfig(batch_size=24, accum_steps=3)
    assert [train.rows_per_device(n) for n in (1, 2, 4, 8)] == [8, 4, 2, 1]
    with pytest.raises(UserError, match=r"^train\.batch_size = 24: must be divisible by 5 devices"):
        train.rows_per_device(5)
    with pytest.raises(UserError, match=r"^train\.fsdp = 3: must divide the number of devices, 8$"):
        replace(train, parallel="mesh", fsdp=3).rows_per_device(8)
