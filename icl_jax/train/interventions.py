"""Which interventions are on, step by step, and what the step is given of them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from icl_jax.config import Config
from icl_jax.interventions.tap import Given, Intervened, given_of, layers_of, open_donors
from icl_jax.rundir.intervened import are_on, first_seen, induction_heads


class Moment(NamedTuple):
    """What holds until an intervention begins or ends; the same object as long as it does."""

    on: tuple[int, ...]
    """Interventions that are on, of members in any."""
    given: Mapping[str, Mapping[str, np.ndarray]]
    """Arguments of the program; with members each has their axis in front."""
    are_on: np.ndarray
    """1 or 0, float32 [intervention], of members [member, intervention]."""


NOTHING = Moment((), {}, np.zeros(0, np.float32))
"""Of a config without interventions."""


class Interventions:
    """Those of a run. `record`: what it has recorded so far, where the first induction head may be in it."""

    def __init__(self, config: Config, record: xr.Dataset | None) -> None:
        self._config = config
        # Without any there is nothing to ask of members.
        own = [config.member(k) for k in range(len(config.members))] if config.intervene else []
        self._members = own or [config]
        self._waits = any(one.waits for member in self._members for one in member.intervene)
        self._first: list[tuple[int, np.ndarray] | None] = [None] * len(self._members)
        self._donors = open_donors(config.intervene, config)
        self._layers = {i: layers_of(config, i) for i in range(len(config.intervene))}
        self.shared: dict[str, dict[str, np.ndarray]] = {str(i): donor.params for i, donor in self._donors.items()}
        """What no member has for itself: other runs' parameters."""
        self._moment, self._key = NOTHING, b""
        if self._waits and record is not None and "prefix_matching" in record:
            steps, scores = record["probe_step"].values, record["prefix_matching"].values
            each = np.moveaxis(scores, 1, 0) if config.members else scores[None]
            self._first = [first_seen(steps, own) for own in each]

    def see(self, step: int, prefix_matching: np.ndarray) -> None:
        """Take a probe's scores, [layer, head], of members [member, layer, head]."""
        if not self._waits:
            return
        for k, score_NH in enumerate(prefix_matching if self._config.members else prefix_matching[None]):
            if self._first[k] is None and (heads := induction_heads(score_NH)).any():
                self._first[k] = (step, heads)

    def at(self, step: int) -> Moment:
        """What is on at a step."""
        if not self._config.intervene:
            return NOTHING
        heads = [None if first is None else first[0] for first in self._first]
        on = np.concatenate(
            [are_on(member, np.array([step]), head) for member, head in zip(self._members, heads, strict=True)]
        )
        key = on.tobytes() + str(heads).encode()
        if key != self._key:
            self._key, self._moment = key, self._made(on)
        return self._moment

    def _made(self, on: np.ndarray) -> Moment:
        numbers = tuple(np.flatnonzero(on.any(axis=0)).tolist())
        given: dict[str, dict[str, Any]] = {}
        for i in numbers:
            each = [
                given_of(
                    member.intervene[i], member.model, seed=member.train.seed,
                    formed=None if first is None else first[1], is_on=bool(on[k, i]),
                )
                for k, (member, first) in enumerate(zip(self._members, self._first, strict=True))
            ]  # fmt: skip
            stacked = {name: np.stack([own[name] for own in each]) for name in each[0]}
            given[str(i)] = stacked if self._config.members else {name: x[0] for name, x in stacked.items()}
        return Moment(numbers, given, on if self._config.members else on[0])

    def intervened(
        self, on: tuple[int, ...], given: Given, shared: Any, step: Any, axes: tuple[str, ...]
    ) -> Intervened:
        """What a step of one model is compiled with."""
        whole = {name: {**own, "donor": shared[name]} if name in shared else own for name, own in given.items()}
        ones = {i: self._config.intervene[i] for i in on}
        return Intervened(self._config.model, ones, self._layers, self._donors, whole, step, axes)
