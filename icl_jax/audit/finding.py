"""What an audit finds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault of a series: a row of the table."""

    steps: tuple[int, ...]
    """Where; empty: the series as a whole."""
    kind: str
    """equal weights, tensor out of line, checkpoint out of line, jump, return, start, descent, loss, missing, stray,
    damaged."""
    said: str
    """A sentence, with the numbers that it rests on."""


def steps_text(steps: tuple[int, ...], most: int = 4) -> str:
    """Steps for a table: all of a few, else the first, the last and how many."""
    if len(steps) <= most:
        return ", ".join(map(str, steps))
    return f"{', '.join(map(str, steps[: most - 1]))}, ..., {steps[-1]} ({len(steps)})"
