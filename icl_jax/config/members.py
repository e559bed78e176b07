"""Runs that are trained together: they differ in seeds, and in numbers that change no shape. Section ``[members]``."""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from icl_jax.config.checks import check_types, require
from icl_jax.config.errors import UserError
from icl_jax.config.sameness import SEED

MAX_MEMBERS = 2**16
SEEDS = "train.seed"
ROWS = "data.seed"
VARIED = (
    *(f"optimizer.{name}" for name in (
        "lr", "warmup_steps", "final_lr_fraction", "b1", "b2", "eps", "weight_decay", "decay_change_step",
        "decay_change_factor", "clip_norm",
    )),
    "model.init_std", ROWS,
)  # fmt: skip
"""Fields in which members may differ, besides the seed: they change no shape."""
_OF_INTERVENTION = re.compile(r"intervene\.\d{1,3}\.([a-z_]+)")
_WHOLE_OF_INTERVENTION = ("layers", "heads", "except_heads", "from", "until")
_WHOLE = ("optimizer.warmup_steps", "optimizer.decay_change_step", ROWS)
_ALLOWED = "must be how many (64), a range (0..63) or a list (0,3,8) of different seeds"
_NUMBERS = "must be a list of numbers (0.001,0.003) or a range of whole ones (10..20)"

Setting = tuple[tuple[str, int | float], ...]
"""Fields of one member and their values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MembersConfig:
    """Runs that differ in seeds, or in numbers that change no shape, trained side by side into one run directory."""

    seeds: str = field(default="", metadata=SEED)
    """train.seed of each: how many from 0 (64), a range (0..63) or a list (0,3,8); empty: one run, of train.seed."""
    values: str = ""
    """Other fields of each, such as "optimizer.lr=0.001,0.003; optimizer.b2=0.95,0.98"; in a file also
    "optimizer.lr" = [0.001, 0.003]."""
    combine: Literal["grid", "paired"] = "grid"
    """grid: a member for every combination, seeds varying fastest; paired: the first of each, the second, and so on."""

    def __post_init__(self) -> None:
        value: object = self.seeds
        is_list = isinstance(value, list | tuple) and all(type(seed) is int for seed in value)
        is_number = type(value) is int or is_list
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        if is_number:  # TOML has numbers and lists; a list of one is no count
            object.__setattr__(self, "seeds", f"{text}..{text}" if is_list and text.isdigit() else text or "0")
        require(isinstance(self.seeds, str), "members.seeds", value, _ALLOWED)
        check_types("members", self)
        if self.seeds:
            object.__setattr__(self, "seeds", _canonical(_read_seeds(self.seeds, self.combine)))
        vectors = _read_values(self.values)
        text = "; ".join(f"{name}={','.join(map(repr, values))}" for name, values in vectors.items())
        object.__setattr__(self, "values", text)
        _settings(self.seeds, self.values, self.combine)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """What each member has of its own: train.seed, if there are seeds, and the other fields; empty for one run."""
        return _settings(self.seeds, self.values, self.combine)

    @property
    def names(self) -> tuple[str, ...]:
        """Fields besides train.seed in which members differ."""
        return tuple(_read_values(self.values))

    def __len__(self) -> int:
        """How many members there are; 0 for one run."""
        return len(self.settings)

    def __bool__(self) -> bool:
        """Whether there are members."""
        return bool(self.seeds or self.values)


def gather(given: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a file, in which a field may be a key of its own: ``"optimizer.lr" = [0.001, 0.003]``."""
    kept = {name: value for name, value in given.items() if name in ("seeds", "values", "combine")}
    own = {name: value for name, value in given.items() if name not in kept}
    vectors: dict[str, Any] = {}
    for name, value in own.items():  # optimizer.lr = [...] without quotes is a table in a table
        vectors |= (
            {f"{name}.{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {name: value}
        )
    if SEEDS in vectors:
        if "seeds" in kept:
            raise UserError(f"members.{SEEDS} = {vectors[SEEDS]!r}: members.seeds says the same: leave one out")
        kept["seeds"] = vectors.pop(SEEDS)
    texts = [kept["values"]] if kept.get("values") else []
    for name, value in vectors.items():
        is_list = isinstance(value, list | tuple)
        texts.append(f"{name}={','.join(map(str, value)) if is_list else value}")
    return kept | ({"values": "; ".join(map(str, texts))} if texts else {})


@lru_cache(maxsize=64)
def _settings(seeds: str, values: str, combine: str) -> tuple[Setting, ...]:
    """Raises UserError for vectors of unequal length, too many members, and members that are the same."""
    vectors: dict[str, tuple[int | float, ...]] = dict(_read_values(values))
    if seeds:
        vectors[SEEDS] = _read_seeds(seeds, combine)
    if not vectors:
        return ()
    lengths = {name: len(vector) for name, vector in vectors.items()}
    if combine == "paired":
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} has {n}" for name, n in lengths.items())
            raise UserError(f"members.combine = 'paired': {told}: must be equally many values of each")
        rows: Iterable[tuple[int | float, ...]] = zip(*vectors.values(), strict=True)
    else:
        n = 1
        for length in lengths.values():
            n *= length
        require(n <= MAX_MEMBERS, "members.values", values, f"must be at most {MAX_MEMBERS} members")
        rows = itertools.product(*vectors.values())
    settings = tuple(tuple(zip(vectors, row, strict=True)) for row in rows)
    require(len(set(settings)) == len(settings), "members.values", values, "must make members that differ")
    return settings


@lru_cache(maxsize=64)
def _read_values(text: str) -> Mapping[str, tuple[int | float, ...]]:
    """Vectors by the names of their fields. Raises UserError."""
    vectors: dict[str, tuple[int | float, ...]] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, _, numbers = (piece.strip() for piece in part.partition("="))
        if name not in VARIED and not _OF_INTERVENTION.fullmatch(name):
            allowed = f"must change no shape: {', '.join((SEEDS, *VARIED))}, or a field of intervene.0"
            raise UserError(f"members: {name!r}: {allowed}")
        require(name not in vectors, f"members.{name}", numbers, "is there twice")
        vectors[name] = _numbers(name, numbers)
    return vectors


def _numbers(name: str, text: str) -> tuple[int | float, ...]:
    ends = re.fullmatch(r"(\d{1,9})\s*\.\.\s*(\d{1,9})", text)
    if ends:
        require(int(ends[1]) <= int(ends[2]), f"members.{name}", text, "must be 1 value or more")
        numbers: list[int | float] = list(range(int(ends[1]), min(int(ends[2]), int(ends[1]) + MAX_MEMBERS) + 1))
    else:
        require(bool(text.strip("[] ")), f"members.{name}", text, "must be 1 value or more")
        try:
            numbers = [_number(one.strip()) for one in text.strip("[]").split(",")]
        except ValueError:
            raise UserError(f"members.{name} = {text!r}: {_NUMBERS}") from None
    require(len(numbers) <= MAX_MEMBERS, f"members.{name}", text, f"must be at most {MAX_MEMBERS} members")
    of_intervention = _OF_INTERVENTION.fullmatch(name)
    is_whole = of_intervention[1] in _WHOLE_OF_INTERVENTION if of_intervention else name in _WHOLE
    is_int = all(type(number) is int for number in numbers)
    require(is_int or not (of_intervention and is_whole), f"members.{name}", text, "must be whole numbers")
    return tuple(numbers if is_whole else map(float, numbers))


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch("-?[0-9]{1,19}", text) else float(text)


def _read_seeds(text: str, combine: str) -> tuple[int, ...]:
    """Seeds that a text names; of a paired set they need not differ. Raises UserError."""
    count = re.fullmatch(r"\s*(\d{1,19})\s*", text)
    ends = re.fullmatch(r"\s*(\d{1,19})\s*\.\.\s*(\d{1,19})\s*", text)
    if count:
        seeds: Iterable[int] = range(int(count[1]))
        n = int(count[1])
    elif ends:
        seeds = range(int(ends[1]), int(ends[2]) + 1)
        n = max(0, int(ends[2]) + 1 - int(ends[1]))
    else:
        parts = [part.strip() for part in text.split(",")]
        require(all(re.fullmatch(r"\d{1,19}", part) for part in parts), "members.seeds", text, _ALLOWED)
        seeds = [int(part) for part in parts]
        n = len(parts)
        require(combine == "paired" or len(set(seeds)) == n, "members.seeds", text, _ALLOWED)
    require(n >= 1, "members.seeds", text, "must be 1 member or more")
    require(n <= MAX_MEMBERS, "members.seeds", text, f"must be at most {MAX_MEMBERS} members")
    require(all(seed < 2**32 for seed in seeds), "members.seeds", text, "each must be from 0 to 2**32 - 1")
    return tuple(seeds)


def _canonical(seeds: tuple[int, ...]) -> str:
    """One text for the same seeds, however they were written."""
    is_range = seeds == tuple(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]}..{seeds[-1]}" if is_range else ",".join(map(str, seeds))
