"""One run as the report sees it: its config, record, analysis and what is read off them everywhere."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath

import numpy as np
import xarray as xr

from icl_jax.analysis.dataset import load_dataset
from icl_jax.analysis.recorded import recorded_of
from icl_jax.config import Config
from icl_jax.config.interventions import words
from icl_jax.maths.finding import Finding
from icl_jax.maths.head_scores import HEAD_THRESHOLD
from icl_jax.measures.measurement import Derived, Recorded
from icl_jax.measures.phase_change import finding_of
from icl_jax.measures.table import TABLE
from icl_jax.report.chart import Band, Gap, Role, Stretch
from icl_jax.rundir import RunDir
from icl_jax.rundir.files import absolute
from icl_jax.rundir.record import HELD_OUT_AGAIN, INTERVENED

_N_STRETCHES = 300
HAS_LABEL = 0.5
"""Probability of the right token from which on a model has a behaviour."""
_NAMES = {"prefix_matching": "induction", "previous_token": "previous"}
_OWNER = {variable: entry for entry in TABLE for variable in entry.variables}
_TAKES = "icl-jax analyze"
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class ReportedRun:
    """A run directory with its analysis. Raises UserError where either is missing or damaged."""

    run: RunDir
    name: str
    """Unique among the runs of the report."""
    also: tuple[str, ...] = ()
    """Other paths that were given and hold the same run."""

    @property
    def is_analyzed(self) -> bool:
        return bool((self.run.path / "analysis.zarr").exists())

    @cached_property
    def config(self) -> Config:
        return self.run.config

    @cached_property
    def data(self) -> xr.Dataset:
        """analysis.zarr, in memory."""
        return load_dataset(self.run.path / "analysis.zarr").load()

    @cached_property
    def record(self) -> xr.Dataset:
        """record.zarr, so far."""
        return self.run.load_record()

    @cached_property
    def recorded(self) -> Recorded | None:
        """Learning rate and live probes; None without a record."""
        return recorded_of(self.run)

    @cached_property
    def absent(self) -> dict[str, str]:
        """Measurements that the analysis lacks, and why."""
        return dict(json.loads(self.data.attrs["absent"]))

    def gap(self, *variables: str) -> Gap | None:
        """Why one of these variables is not there, or None where all are."""
        for name in variables:
            if name not in self.data and name not in self.data.coords:
                return Gap(self._why_absent(name))
        return None

    def _why_absent(self, variable: str) -> str:
        entry = _OWNER.get(variable)
        # What is derived from something absent is absent for that one's reason.
        for needed in entry.needs if isinstance(entry, Derived) else ():
            if needed not in self.data:
                return self._why_absent(needed)
        unknown = f"{variable} is not in this analysis; icl-jax analyze RUN takes it"
        return unknown if entry is None else self.absent.get(entry.name, unknown)

    def has(self, *variables: str) -> bool:
        return self.gap(*variables) is None

    def not_taken(self, *variables: str) -> list[str]:
        """Of these variables, those that the model has but nobody asked for: the reason names the command that does."""
        return [name for name in variables if (gap := self.gap(name)) is not None and _TAKES in gap.why]

    @property
    def is_single(self) -> bool:
        """Whether it is one snapshot, which has no curve."""
        return len(self.tokens) == 1

    @property
    def tokens(self) -> np.ndarray:
        """Training tokens at the snapshots, [snapshot]."""
        return self.data["tokens"].values

    def at(self, name: str, step: int) -> np.ndarray:
        """A variable at one snapshot, or at one of the `selected` ones."""
        dim = "selected" if "selected" in self.data[name].dims else "snapshot"
        return self.data[name].sel({dim: step}).values

    def last(self, name: str) -> np.ndarray:
        return self.data[name].values[-1]

    @cached_property
    def training_loss(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [stretch] and mean loss [stretch, position] of training batches, in up to 300 stretches of steps.

        None of an imported run: it has no record.
        """
        if self.run.imported is not None:
            return np.zeros(0), np.zeros((0, self.config.model.n_ctx))
        record = self.record
        loss, tokens = record["loss"].values, record["tokens"].values
        bounds = np.unique(np.linspace(0, len(loss), min(_N_STRETCHES, len(loss)) + 1).astype(int))
        counts = np.diff(bounds)
        return np.add.reduceat(tokens, bounds[:-1]) / counts, np.add.reduceat(loss, bounds[:-1]) / counts[:, None]

    @property
    def training_icl(self) -> np.ndarray:
        """The windowed ICL score of the training batches at the tokens of `training_loss`; nats."""
        loss = self.training_loss[1]
        (early_a, early_b), (late_a, late_b) = (self.data.attrs[f"icl_{end}_window"] for end in ("early", "late"))
        return loss[:, late_a - 1 : late_b].mean(axis=1) - loss[:, early_a - 1 : early_b].mean(axis=1)

    @property
    def window(self) -> tuple[int, int] | None:
        """Steps of the snapshots before and after: around the largest phase change, or a tenth of the run and its end.

        None if the analysis does not say.
        """
        if not self.has("step_before", "step_after"):
            return None
        return int(self.data["step_before"]), int(self.data["step_after"])

    @property
    def before_after(self) -> tuple[int, int]:
        """Indexes of the snapshots before and after; if the analysis does not say, a tenth of the run and its end."""
        steps = list(self.data["snapshot"].values)
        if self.window is not None:
            return steps.index(self.window[0]), steps.index(self.window[1])
        return int(np.searchsorted(steps, steps[-1] / 10)), len(steps) - 1

    @cached_property
    def phase(self) -> Finding | None:
        """The abrupt changes of the ICL score, of which there may be none; None if it was not looked for them."""
        return finding_of(self.data) if self.has("change_p", "change_start") else None

    @property
    def phase_words(self) -> str:
        """The same in a line."""
        return "phase change not looked for" if self.phase is None else self.phase.words().replace("-", "−")

    @cached_property
    def bands(self) -> tuple[Band, ...]:
        """The phase changes as they are drawn."""

        return bands_of(self.phase, float(self.tokens[-1]))

    @cached_property
    def intervened(self) -> tuple[Stretch, ...]:
        """When each intervention was on, as it was recorded."""
        if self.run.imported is not None or INTERVENED not in self.record:
            return ()
        found, per_step = [], self.config.tokens_per_step
        for i, one in enumerate(self.config.intervene):
            edges = np.diff(self.record[INTERVENED].values[:, i], prepend=0.0, append=0.0)
            for start, end in zip(np.flatnonzero(edges > 0), np.flatnonzero(edges < 0), strict=True):
                found.append(Stretch(float(start * per_step), float(end * per_step), words(one)))
        return tuple(found)

    def stretch(self, band: Band, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and values of the part of a [snapshot] curve inside a band, interpolated at its ends."""
        inside = self.tokens[(self.tokens > band.start) & (self.tokens < band.end)]
        x = np.concatenate([[band.start], inside, [band.end]])
        return x, np.interp(x, self.tokens, y)

    @property
    def heads(self) -> Iterator[tuple[int, int]]:
        """Layer and head of every head."""
        model = self.config.model
        return ((layer, head) for layer in range(model.n_layers) for head in range(model.n_heads))

    @cached_property
    def own_matching(self) -> np.ndarray:
        """Of each head the best attention by label, at labels that the model has, [snapshot, layer, head]; 0 to 1.

        Unless keys hold something of the token before, a head of the first layer sees single tokens: it matches
        nothing, and has 0 here.
        """
        model = self.config.model
        found = np.zeros((len(self.tokens), model.n_layers, model.n_heads))
        if self.has("label_matching", "label_prob"):
            is_known = np.nan_to_num(self.last("label_prob")) >= HAS_LABEL
            scores = np.nan_to_num(self.data["label_matching"].values[:, is_known])
            found = scores.max(axis=1, initial=0.0)
            if not model.keys_hold_tokens_before:
                found[:, 0] = 0
        return found

    @property
    def matching_of_best(self) -> np.ndarray:
        """Prefix matching of the head that is best at the end, on random tokens or by label, [snapshot]."""
        scores = np.maximum(self.data["prefix_matching"].values, self.own_matching).reshape(len(self.tokens), -1)
        return scores[:, int(np.argmax(scores[-1]))]

    @cached_property
    def roles(self) -> dict[tuple[int, int], Role]:
        """What each head does at the last snapshot: induction before previous token, where it is both.

        Induction: prefix matching on random tokens, or at the labels of the run's own corpus.
        """
        roles: dict[tuple[int, int], Role] = dict.fromkeys(self.heads, "other")
        for variable, role in reversed(_NAMES.items()):
            if self.has(variable):
                scores = self.last(variable)
                roles |= {head: role for head in self.heads if scores[head] >= HEAD_THRESHOLD}  # type: ignore[misc]
        return roles | {head: "induction" for head in self.heads if self.own_matching[(-1, *head)] >= HEAD_THRESHOLD}

    def heads_of(self, role: Role) -> list[tuple[int, int]]:
        return [head for head, found in self.roles.items() if found == role]

    @property
    def forms_induction(self) -> bool | None:
        """Whether a head ends as an induction head.

        None: not known, for the heads were not scored. A model without layers has none.
        """
        found = bool(self.heads_of("induction"))
        return None if self.not_taken("prefix_matching") and not found else found

    @cached_property
    def size(self) -> str:
        """The architecture in words: two layers, smeared keys."""
        model = self.config.model
        count = _NUMBERS[model.n_layers] if model.n_layers < len(_NUMBERS) else str(model.n_layers)
        words = [f"{count} layer{'' if model.n_layers == 1 else 's'}"]
        words += ["smeared keys"] if model.smeared_keys else []
        words += ["key offset"] if model.key_offset else []
        words += ["smear gate"] if model.smear_gate else []
        words += ["grouped keys"] if model.key_heads < model.n_heads else []
        words += ["MLPs"] if model.d_mlp else []
        return ", ".join(words)

    @cached_property
    def details(self) -> str:
        """What else tells runs apart: heads, widths, data, length, seed."""
        model, config = self.config.model, self.config
        heads = f"{model.n_heads} heads, " if model.n_layers else ""
        tokens: int | None = config.train.n_steps * config.tokens_per_step
        same = f"; the same run as in {', '.join(self.also)}" if self.also else ""
        n_again = 0
        if self.run.imported is not None:
            last = self.run.snapshots()[-1]
            # One row a step where nothing is known.
            is_known = self.run.imported["tokens_per_step"] or last.tokens != last.step * config.tokens_per_step
            tokens = last.tokens if is_known else None
        else:
            n_again = self.record.attrs.get(HELD_OUT_AGAIN, 0)
        again = f"; {n_again} of {config.data.held_out_rows} held-out rows are also in training" if n_again else ""
        length = f"context {model.n_ctx}, {config.data.source}"
        length += "" if tokens is None else f", {millions(tokens)} tokens"
        return f"{heads}d_model {model.d_model}, {length}{again}{same}"

    @property
    def seeds(self) -> str:
        if self.run.imported is not None:
            return f"imported from {self.run.imported['source']}"
        train, data = self.config.train.seed, self.config.data.seed
        return f"seed {train}" if train == data else f"seed {train}, data seed {data}"


def bands_of(finding: Finding | None, last: float) -> tuple[Band, ...]:
    """Changes as they are drawn, up to the curve's last point."""

    def inside(interval: tuple[float, float]) -> tuple[float, float]:
        low, high = np.minimum(interval, last).tolist()
        return low, high

    return tuple(
        Band(*inside((change.start, change.end)), inside(change.start_interval), inside(change.end_interval),
             change.is_open)
        for change in (() if finding is None else finding.changes)
    )  # fmt: skip


def open_runs(paths: list[str]) -> list[ReportedRun]:
    """Open runs under names that differ: the folder's, with as many parents as it takes.

    A run that is named twice, or is there with its copy, is one run, not two seeds: that which has got further.
    """
    found: dict[str, list[RunDir]] = {}
    for path in paths:
        run = RunDir.open(path).one()
        found.setdefault(run.run_id, []).append(run)
    runs, also = [], []
    for same in found.values():
        chosen = max(same, key=lambda run: len(run.manifest.read())) if len(same) > 1 else same[0]
        runs.append(chosen)
        also.append(tuple(dict.fromkeys(str(run.path) for run in same if run.path != chosen.path)))
    names = short_names([_parts(run) for run in runs])
    return [ReportedRun(*each) for each in zip(runs, names, also, strict=True)]


def _parts(run: RunDir) -> tuple[str, ...]:
    """A member's number alone would name nothing."""
    parts = PurePath(absolute(run.path)).parts
    return parts if run.index is None else (*parts[:-3], "/".join(parts[-3:]))


def short_names(parts: list[tuple[str, ...]]) -> list[str]:
    """The last part of each path, with as many before it as tell it from all others."""
    counts = Counter(mine[-n:] for mine in parts for n in range(1, len(mine) + 1))
    return ["/".join(next(mine[-n:] for n in range(1, len(mine) + 1) if counts[mine[-n:]] == 1)) for mine in parts]


def millions(tokens: float) -> str:
    """Training tokens for people: 0.38 M, 12 M, 3.1 B."""
    return f"{tokens / 1e9:.3g} B" if tokens >= 1e9 else f"{tokens / 1e6:.3g} M"


def share(value: float) -> str:
    """Two digits, a true minus."""
    return f"{value:.2f}".replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """With its sign, a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")
