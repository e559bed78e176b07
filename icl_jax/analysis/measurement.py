"""What a measurement is: a pure function, the variables that it fills and when it applies."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr

from icl_jax.config import Config

StackedParams = dict[str, np.ndarray]
"""Parameters of several snapshots, the snapshot axis in front of every array."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One array of analysis.zarr. Dims leave out the snapshot axis, which stands in front of all of them."""

    dims: tuple[str, ...]
    units: str
    """nats, attention (a share of attention, [0, 1]) or 1 (a plain number)."""
    text: str
    """One line: what it is, and its range."""


@dataclass(frozen=True)
class Context:
    """What the measurements of a run share besides its parameters: fixed rows, the same for all snapshots."""

    config: Config
    held_out: np.ndarray
    """int32 [row, position + 1]; rows that were never trained on, BOS first."""
    candidates: np.ndarray
    """Token ids for random sequences: neither the most nor the least common."""
    bos_id: int
    seed: int

    @cached_property
    def repeated(self) -> np.ndarray:
        """int32 [sequence, position]: BOS and a block of distinct random tokens four times (10 sequences of 101)."""
        from icl_jax.model.head_scores import repeated_tokens

        return repeated_tokens(
            self.candidates, self.bos_id, self.config.model.n_ctx, n_sequences=10, repeat_len=25, n_repeats=4,
            seed=self.seed,
        )  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """Taken from each snapshot on its own."""

    name: str
    source: str
    """Paper and section."""
    variables: dict[str, Variable]
    measure: Callable[[Context, StackedParams], dict[str, np.ndarray]]
    """Every array of the answer has the snapshot axis in front. Must not depend on which snapshots share a call."""
    why_not: Callable[[Config], str | None] = lambda _config: None
    """The reason why the measurement is undefined for a model, or None where it applies."""


@dataclass(frozen=True)
class Derived:
    """Computed from the variables of other measurements over all snapshots."""

    name: str
    source: str
    needs: tuple[str, ...]
    """Variables that must be there."""
    variables: dict[str, Variable]
    """Here dims are complete: the snapshot axis is named where there is one."""
    derive: Callable[[Context, xr.Dataset], dict[str, np.ndarray]]
    why_not: Callable[[Config], str | None] = lambda _config: None
