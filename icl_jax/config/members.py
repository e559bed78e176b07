"""Runs that differ in their seeds alone, trained together: the section ``[members]`` of a config."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from icl_jax.config.checks import check_types, require
from icl_jax.config.sameness import SEED

MAX_MEMBERS = 2**16
_ALLOWED = "must be how many (64), a range (0..63) or a list (0,3,8) of different seeds"


@dataclass(frozen=True, kw_only=True, slots=True)
class MembersConfig:
    """Runs that differ in their seeds alone, trained side by side in one program and kept in one run directory."""

    seeds: str = field(default="", metadata=SEED)
    """train.seed of each: how many from 0 (64), a range (0..63) or a list (0,3,8); empty: one run, of train.seed."""

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
            object.__setattr__(self, "seeds", _canonical(self.train_seeds))

    @property
    def train_seeds(self) -> tuple[int, ...]:
        """train.seed of each member; empty for one run."""
        return tuple(_read(self.seeds)) if self.seeds else ()

    def __len__(self) -> int:
        """How many members there are; 0 for one run."""
        return len(self.train_seeds)

    def __bool__(self) -> bool:
        """Whether there are members."""
        return bool(self.seeds)


def _read(text: str) -> Iterable[int]:
    """Seeds that a text names. Raises UserError."""
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
        require(len(set(seeds)) == n, "members.seeds", text, _ALLOWED)
    require(n >= 1, "members.seeds", text, "must be 1 member or more")
    require(n <= MAX_MEMBERS, "members.seeds", text, f"must be at most {MAX_MEMBERS} members")
    require(all(seed < 2**32 for seed in seeds), "members.seeds", text, "each must be from 0 to 2**32 - 1")
    return seeds


def _canonical(seeds: tuple[int, ...]) -> str:
    """One text for the same seeds, however they were written."""
    is_range = seeds == tuple(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]}..{seeds[-1]}" if is_range else ",".join(map(str, seeds))
