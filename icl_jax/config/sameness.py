"""Which configs are of one run, of one experiment, of the same rows: read off the marks on the fields.

A field, or a whole section, is marked where it is declared: ``field(default=5.0, metadata=FREE)``.
"""

from dataclasses import MISSING, Field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from icl_jax.config.tables import flat

if TYPE_CHECKING:
    from icl_jax.config.schema import Config

_MARK = "changes"
FREE = {_MARK: "nothing"}
"""Changes no recorded number: a run may be resumed with another value."""
SEED = {_MARK: "the draw"}
"""Changes what is drawn at random, and nothing else: runs that differ in it are repetitions."""


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _without(section: Any, *marks: dict[str, str]) -> Any:
    """The section with its marked fields at their defaults."""
    kept = {}
    for field in fields(section):
        value = getattr(section, field.name)
        if any(mark[_MARK] == field.metadata.get(_MARK) for mark in marks):
            kept[field.name] = _default(field)
        elif is_dataclass(value):
            kept[field.name] = _without(value, *marks)
    return replace(section, **kept)


def experiment(config: "Config") -> "Config":
    """The config without seeds and all that changes no number: equal for the repetitions of one experiment."""
    return _without(config, FREE, SEED)


def rows_of(config: "Config") -> tuple[Any, ...]:
    """What fixes the rows but for their seed: where it is equal, losses can be held against each other."""
    same = experiment(config)
    return same.data, same.model.vocab_size, same.model.n_ctx


def numbers_of(config: "Config") -> str:
    """All that changes the numbers of a run, as one text: equal for two runs of which either is the other."""
    return repr(flat(_without(config, FREE)))


def numeric_differences(a: "Config", b: "Config") -> list[str]:
    """Fields in which two configs differ and that change the numbers of a run, as ``section.name: A != B``."""
    ours, theirs = (flat(_without(config, FREE)) for config in (a, b))
    return [
        f"{name}: {ours[name]!r} != {theirs[name]!r}" for name in ours if theirs.get(name, ours[name]) != ours[name]
    ]


def changed_fields(begun: "Config", now: "Config") -> dict[str, Any]:
    """Every field that is not as in `begun`, by its full name, with its value in `now`."""
    before = flat(begun)
    return {name: value for name, value in flat(now).items() if name not in before or value != before[name]}
