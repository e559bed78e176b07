"""Prompts in words for the behaviours of the introductory article: what a model that reads text can be asked.

Each prompt is a text and the answer that belongs behind it. Templates and words are here; what is drawn (names,
numbers, entries, lines) is a function of the seed. Nothing of it depends on a tokenizer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_TITLES = ("Doctor", "Captain", "Professor", "Judge", "Queen", "Baker")
_SURNAMES = ("Smith", "Jones", "Brown", "Clark", "Evans", "Hill", "Moore", "Reed", "Stone", "Young")
_PLACES = ("garden", "kitchen", "harbour", "forest", "village", "market", "school", "castle")
_THINGS = ("letter", "lamp", "boat", "clock", "coat", "key", "map", "song")
_SYLLABLES = tuple(c + v for c in ("b", "d", "f", "g", "k", "l", "m", "n", "r", "t", "v", "z") for v in "aeiou")
_SPANISH = {
    "house": "casa", "dog": "perro", "cat": "gato", "water": "agua", "bread": "pan", "milk": "leche", "book": "libro",
    "moon": "luna", "sun": "sol", "night": "noche", "fire": "fuego", "tree": "árbol", "flower": "flor", "fish": "pez",
    "horse": "caballo", "hand": "mano", "city": "ciudad", "river": "río", "sea": "mar", "door": "puerta",
    "table": "mesa", "friend": "amigo", "red": "rojo", "white": "blanco", "black": "negro", "green": "verde",
    "day": "día", "year": "año", "king": "rey", "queen": "reina", "mother": "madre", "father": "padre",
}  # fmt: skip
CLASSES = (
    ("january", "february", "march", "april", "june", "july", "august", "september", "october", "november", "december"),
    ("blue", "gray", "purple", "yellow", "green", "red", "brown", "pink", "white", "black", "silver"),
    ("bird", "snake", "frog", "lion", "fish", "monkey", "lizard", "horse", "tiger", "mouse", "rabbit"),
    ("grape", "pear", "strawberry", "kiwi", "pineapple", "cherry", "apple", "mango", "lemon", "peach", "banana"),
)
_N_LINES = 12
_N_TRANSLATED = 5
_N_GLOSSED = 4

_STORIES = (
    "One morning {name} walked to the {place} with a {thing}. Nobody knew that {name} lost the {other}. Later {first}",
    "This is the story of {name}, who lived near the {place}. Everybody liked {name}. One day somebody saw {first}",
    "{name} found a {thing} in the {place}. It was old. {name} took it home and showed the {other}. That night {first}",
    "Long ago {name} had a {thing} and a {other}. The {place} was cold. In the morning {first}",
)
_ASIDES = ("The day was cold.", "Nobody said a word.", "It was late.", "The {thing} was still there.")

Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text, and what is to follow it, with the space in front."""

    text: str
    answer: str


def _one(rng: Rng, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def _some(rng: Rng, words: tuple[str, ...], n: int) -> list[str]:
    return [words[i] for i in rng.permutation(len(words))[:n]]


def _invented(rng: Rng, n_syllables: int) -> str:
    return "".join(_some(rng, _SYLLABLES, n_syllables))


def _story(rng: Rng, first: str, last: str) -> Prompt:
    thing, other = _some(rng, _THINGS, 2)
    fields = {"name": f"{first} {last}", "first": first, "place": _one(rng, _PLACES), "thing": thing, "other": other}
    return Prompt(_one(rng, _STORIES).format(**fields), f" {last}")


def new_name(rng: Rng) -> Prompt:
    """A name of two invented words, the second time from its first word on."""
    return _story(rng, _invented(rng, 2).capitalize(), _invented(rng, 3).capitalize())


def known_name(rng: Rng) -> Prompt:
    """A title and a common surname."""
    return _story(rng, _one(rng, _TITLES), _one(rng, _SURNAMES))


def _sum(rng: Rng) -> tuple[int, int]:
    a, b = (int(number) for number in rng.integers(10, 100, 2))
    return a, b


def _said(a: int, b: int) -> str:
    return f"{a} plus {b} is {a + b}."


def repeated_sum(rng: Rng) -> Prompt:
    """Two sums of two-digit numbers, and one of them again."""
    sums = [_sum(rng), _sum(rng)]
    a, b = sums[int(rng.integers(2))]
    aside = _one(rng, _ASIDES).format(thing=_one(rng, _THINGS))
    return Prompt(f"{_said(*sums[0])} {_said(*sums[1])} {aside} {a} plus {b} is", f" {a + b}")


def _new_sum(n_examples: int) -> Callable[[Rng], Prompt]:
    def make(rng: Rng) -> Prompt:
        a, b = _sum(rng)
        others: list[tuple[int, int]] = []
        while len(others) < n_examples:
            pair = _sum(rng)
            if sum(pair) != a + b:  # the answer stands nowhere in the text
                others.append(pair)
        return Prompt(" ".join([*(_said(*pair) for pair in others), f"{a} plus {b} is"]), f" {a + b}")

    return make


def translation(rng: Rng) -> Prompt:
    """English words and their Spanish ones, and one word more."""
    *examples, asked = _some(rng, tuple(_SPANISH), _N_TRANSLATED)
    lines = [f"English: {word}. Spanish: {_SPANISH[word]}." for word in examples]
    return Prompt("\n".join([*lines, f"English: {asked}. Spanish:"]), f" {_SPANISH[asked]}")


def glossary(rng: Rng) -> Prompt:
    """A language made anew: English words and invented ones, and one of them again."""
    words = _some(rng, tuple(_SPANISH), _N_GLOSSED)
    said = {word: _invented(rng, 2) for word in words}
    asked = _one(rng, tuple(words))
    text = ", ".join(f"{word} is {foreign}" for word, foreign in said.items())
    return Prompt(f"In {_invented(rng, 2).capitalize()}, {text}. So {asked} is", f" {said[asked]}")


def pattern(rng: Rng) -> Prompt:
    """The lines of Olsson et al. 2022, Argument 4: which label goes with which classes is new in every prompt."""
    labels = rng.permutation(10)[:4]
    pairs = [(int(rng.integers(2)), int(rng.integers(2))) for _ in range(_N_LINES)]
    asked = pairs[int(rng.integers(_N_LINES))]
    firsts, seconds = ([_some(rng, words, len(words)) for words in group] for group in (CLASSES[:2], CLASSES[2:]))
    a, b = firsts[asked[0]].pop(), seconds[asked[1]].pop()  # words of no other line
    lines = [f"{_one(rng, tuple(firsts[i]))} {_one(rng, tuple(seconds[j]))}: {labels[2 * i + j]}" for i, j in pairs]
    return Prompt("\n".join([*lines, f"{a} {b}:"]), f" {labels[2 * asked[0] + asked[1]]}")


BEHAVIOURS: dict[str, Callable[[Rng], Prompt]] = {
    "new_name": new_name,
    "known_name": known_name,
    "repeated_sum": repeated_sum,
    **{f"new_sum_{n}": _new_sum(n) for n in (0, 1, 2, 4, 8)},
    "translation": translation,
    "glossary": glossary,
    "pattern": pattern,
}
"""By name; of `new_sum_N` N other sums stand before."""


def prompts(behaviour: str, n: int, seed: int = 0) -> list[Prompt]:
    """The first n prompts of one of `BEHAVIOURS`."""
    rng = np.random.default_rng([seed, *behaviour.encode()])
    return [BEHAVIOURS[behaviour](rng) for _ in range(n)]
