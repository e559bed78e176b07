"""A config as nested dicts, as its TOML file has them: sections, and below [data] the table of the corpus."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from icl_jax.config.corpora import NAMES, Options, corpus_kind, corpus_name
from icl_jax.config.errors import UserError

if TYPE_CHECKING:
    from icl_jax.config.schema import Config

_SCHEMA_1 = {
    "phrase_len": ("repeats", "phrase_len"),
    "n_phrases": ("repeats", "n_phrases"),
    "phrase_prob": ("repeats", "phrase_prob"),
    "chain_order": ("markov", "order"),
    "chain_prior": ("markov", "prior"),
    "n_triggers": ("triggers", "n_triggers"),
    "trigger_choice": ("triggers", "choice"),
    "n_classes": ("classes", "n_classes"),
    "n_labels": ("classes", "n_labels"),
    "burstiness": ("classes", "burstiness"),
    "bursty": ("classes", "bursty"),
    "field": ("tfds", "field"),
    "split": ("tfds", "split"),
    "data_dir": ("tfds", "data_dir"),
}
"""Where the keys of [data] of before `schema_version` 2 are now: all corpora's options were in every config."""


def to_tables(config: "Config") -> dict[str, Any]:
    """The config as its file says it, every field."""
    from icl_jax.config.interventions import to_table

    tables = asdict(config)
    tables["intervene"] = [to_table(one) for one in config.intervene]
    options = tables["data"].pop("options")
    if options:
        tables["data"][config.data.corpus] = options
    return tables


def flat(config: "Config") -> dict[str, Any]:
    """Every field by its full name, such as model.n_layers or data.markov.order."""
    return _flat(to_tables(config), "")


def _flat(tables: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tables.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Tables with some fields changed. The options of a corpus go with it where the changes name another source."""
    left = (
        {name for name in NAMES if name != str(changes["source"]).partition(":")[0]} if "source" in changes else set()
    )
    merged = {name: value for name, value in base.items() if name not in left}
    for name, value in changes.items():
        below = merged.get(name)
        merged[name] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def unknown(name: str, known: list[str]) -> UserError:
    """The error of a key that is not known."""
    close = difflib.get_close_matches(name.rpartition(".")[2], known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UserError(f"unknown key {name!r}: {hint}known are {', '.join(known)}")


def split_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of [data], the table of its corpus as `options`. Raises UserError, also for another corpus's table."""
    if "options" in values:
        raise UserError("unknown key 'data.options': the options of a corpus are its table, such as [data.repeats]")
    shared = {name: value for name, value in values.items() if name not in NAMES and name not in _SCHEMA_1}
    chosen = corpus_name(shared.get("source", "repeats"))
    tables: dict[str, dict[str, Any]] = {chosen: {}}
    for name, (corpus, option) in _SCHEMA_1.items():
        if name in values:
            tables.setdefault(corpus, {})[option] = values[name]
    for name in NAMES:
        if name in values and not isinstance(values[name], dict):
            raise UserError(f"data.{name} = {values[name]!r}: must be a table, [data.{name}]")
        if name in values and name != chosen:
            raise UserError(
                f"data.{name}: only with data.source = {name!r}, and it is {shared.get('source', chosen)!r}"
            )
    tables[chosen] |= values.get(chosen, {})
    # Those of other corpora, in a config of before, are read too, so that a mistake in them is named.
    options = {name: _options(name, table) for name, table in tables.items()}
    return shared | {"options": options[chosen]}


def _options(name: str, table: Mapping[str, Any]) -> Options:
    cls = corpus_kind(name).options
    known = [field.name for field in fields(cls)]
    for key in table:
        if key not in known:
            raise (
                unknown(f"data.{name}.{key}", known) if known else UserError(f"data.{name}: the corpus has no options")
            )
    return cls(**table)
