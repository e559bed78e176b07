"""The corpora by name. All else about a corpus, its options too, is declared in its file of ``icl_jax/data/corpora``.

Config stands below data, so that file is imported by name, and only when a config asks for its corpus.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from icl_jax.config.checks import require

if TYPE_CHECKING:
    from icl_jax.config.schema import Config

NAMES = (
    "repeats", "patterns", "stories", "mixture", "markov", "triggers", "classes", "fewshot", "python", "manual", "text",
    "tfds",
)  # fmt: skip
"""Files of ``icl_jax/data/corpora`` that hold a ``CORPUS``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of a corpus, the table ``[data.NAME]`` of a config; a corpus without any has this one."""

    def check(self, config: "Config") -> None:
        """Raise UserError where the rest of the config does not go with the corpus."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusKind:
    """What a corpus's file declares as ``CORPUS``."""

    open: Callable[..., Any]
    """``open(config, progress)`` gives the :class:`~icl_jax.data.corpus.Corpus`; progress may be None."""
    options: type[Options] = Options
    argument: str = ""
    """What follows NAME and a colon in ``data.source``, in capitals; empty: nothing."""


def corpus_kind(name: str) -> CorpusKind:
    """The corpus of one of the NAMES."""
    kind: CorpusKind = import_module(f"icl_jax.data.corpora.{name}").CORPUS
    return kind


def sources() -> list[str]:
    """What ``data.source`` can be."""
    kinds = {name: corpus_kind(name) for name in NAMES}
    return [f"{name}:{kind.argument}" if kind.argument else name for name, kind in kinds.items()]


def corpus_name(source: object) -> str:
    """The name in a ``data.source``. Raises UserError if there is no such corpus, or it lacks what follows its name."""
    name, _, argument = source.partition(":") if isinstance(source, str) else ("", "", "")
    is_known = name in NAMES and source == name + (f":{argument}" if argument else "")
    if not is_known or bool(argument) != bool(corpus_kind(name).argument):
        require(False, "data.source", source, f"must be {', '.join(map(repr, sources()))}")
    return name
