"""How often one character follows another in English technical prose: what the ``triggers`` corpus is drawn from.

Counted once, so that rows do not depend on the Python that makes them, from the language reference that comes with
every Python (`pydoc_data.topics`, CPython 3.11.7): white space is one space, a run of one mark (a ruled line) is that
mark, and of all characters the 64 most common are kept. ``python -m
icl_jax.data.corpora.character_bigrams`` counts again and writes the table.
"""

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

N_CHARACTERS = 64
_TABLE = Path(__file__).with_suffix(".json")


class CharacterBigrams(NamedTuple):
    """Characters, the most common first, and counts[a, b] of character b right after character a."""

    characters: str
    counts: Int[np.ndarray, "C C"]

    @property
    def unigram(self) -> Float[np.ndarray, " C"]:
        """Share of each character among all that have a successor; sums to 1."""
        return self.counts.sum(axis=1) / self.counts.sum()

    @property
    def bigram(self) -> Float[np.ndarray, "C C"]:
        """Chance of each next character; rows sum to 1."""
        return self.counts / self.counts.sum(axis=1, keepdims=True)


def count_bigrams(text: str, n_characters: int = N_CHARACTERS) -> CharacterBigrams:
    """Counts in a text cleaned as above.

    Characters equally common stand in the order of their code points.
    """
    text = re.sub(r"(\W)\1+", r"\1", " ".join(text.split()))
    common = sorted(Counter(text).items(), key=lambda item: (-item[1], item[0]))[:n_characters]
    characters = "".join(character for character, _ in common)
    number = {character: i for i, character in enumerate(characters)}
    kept = np.array([number[character] for character in text if character in number])
    counts = np.zeros((len(characters), len(characters)), np.int64)
    np.add.at(counts, (kept[:-1], kept[1:]), 1)
    return CharacterBigrams(characters, counts)


def python_reference() -> str:
    """The topics of Python's language reference, as `help()` shows them, in the order of their names."""
    from pydoc_data.topics import topics

    return " ".join(topics[name] for name in sorted(topics))


@cache
def load_character_bigrams() -> CharacterBigrams:
    """The committed table."""
    table = json.loads(_TABLE.read_text(encoding="utf-8"))
    counts = np.array(table["counts"], np.int64)
    counts.setflags(write=False)
    return CharacterBigrams(table["characters"], counts)


def save_character_bigrams(table: CharacterBigrams, path: Path = _TABLE) -> None:
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in table.counts.tolist())
    path.write_text(f'{{"characters": {json.dumps(table.characters)},\n"counts": [\n{rows}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    save_character_bigrams(count_bigrams(python_reference()))
