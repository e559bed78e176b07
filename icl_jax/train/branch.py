"""Training that goes on from a snapshot of another run, in a run directory of its own.

A branch goes on with the steps of its parent: it holds the parent's record and snapshots of before, and from the
parent's full state of that step, if nothing was changed, the same bits follow. Anew, and always of an imported run,
which has no record, the snapshot is step 0 of a run like any other.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from icl_jax.config import Config, ProbeConfig, UserError
from icl_jax.config.tables import flat
from icl_jax.data import Corpus
from icl_jax.rundir import RunDir, SnapshotEntry
from icl_jax.rundir.checkpoints import Arrays, saved_steps
from icl_jax.rundir.files import absolute
from icl_jax.rundir.manifest import params_sha256
from icl_jax.rundir.record import INTERVENED, PROBE_SCALARS, ProbeResult, StepBlock

BRANCH = "branch"
"""Entry of environment.json: parent, step, and what was changed or is fresh."""
_BLOCK = 4096
_SCHEDULES = (
    "model.n_ctx", "train.n_steps", "train.batch_size", "snapshots.n_linear", "snapshots.n_log", "snapshots.keep",
    "probes.",
)  # fmt: skip
"""Fields that the parent's record and snapshots are laid out by."""


@dataclass(frozen=True)
class Branch:
    """Where a new run begins."""

    parent: RunDir
    step: int
    is_anew: bool = False
    """Steps count from 0."""
    fresh_optimizer: bool = False

    @property
    def first_step(self) -> int:
        """Of the training that is to be done."""
        return 0 if self.is_anew else self.step

    @cached_property
    def _state(self) -> Arrays | None:
        """The parent's full state of the step, if it has it."""
        return self.parent.load_state(self.step) if self._has_state else None

    @property
    def _has_state(self) -> bool:
        return self.step in saved_steps(self.parent.root / "state")

    @cached_property
    def params(self) -> Arrays:
        """Of the snapshot, else of the state."""
        if self._state is None or any(entry.step == self.step for entry in self.parent.manifest.read()):
            return self.parent.load_params(self.step)
        return {name.removeprefix("params."): a for name, a in self._state.items() if name.startswith("params.")}

    @property
    def fresh(self) -> list[str]:
        """What does not go on."""
        if self.is_anew:
            return ["optimiser state", "count of steps"]
        if self.fresh_optimizer:
            return ["optimiser state"]
        return [] if self._has_state else ["optimiser state: the parent has no full state of this step"]

    def check(self, config: Config) -> None:
        """Raise UserError where the parent's parameters, or its record and snapshots, are not of such a config."""
        from icl_jax.model.params import param_shapes

        theirs, ours = param_shapes(self.parent.config.model), param_shapes(config.model)
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                here, there = (f"the shape {list(s)}" if (s := x.get(name)) else "no place" for x in (ours, theirs))
                raise UserError(f"model: {name} has {here}, and in {self.parent.path} {there}: must be the same")
        if self.is_anew:
            return
        before, now = flat(self.parent.config), flat(config)
        for name, value in now.items():
            if name.startswith(_SCHEDULES) and before[name] != value:
                allowed = f"must be {before[name]!r}, for the steps before are the parent's; --anew counts from step 0"
                raise UserError(f"{name} = {value!r}: {allowed}")
        if self.step >= config.train.n_steps:
            raise UserError(f"--at = {self.step}: must be less than train.n_steps = {config.train.n_steps}, or --anew")

    def check_rows(self, config: Config, corpus: Corpus) -> None:
        """Raise UserError where a corpus that goes on is not what it was."""
        is_same = not self.is_anew and config.data == self.parent.config.data
        if is_same and corpus.fingerprint != self.parent.corpus_sha256:
            raise UserError(f"{self.parent.path}: its corpus has changed since; --anew takes it as it is")

    def notes(self, config: Config, corpus: Corpus) -> Iterator[str]:
        """What is to be known of the rows, a line each: another first token, held-out rows that were trained on."""
        where, bos_id = self.parent.path, self.parent.load_held_out().bos_id
        if bos_id != corpus.bos_id:
            (ours,), (theirs,) = corpus.decode([corpus.bos_id]), corpus.decode([bos_id])
            yield f"rows begin with {ours!r} (id {corpus.bos_id}), those of {where} with {theirs!r} (id {bos_id})"
        before = self.parent.config
        is_same_text = corpus.n_rows is not None and config.data.source == before.data.source
        splits = [(c.data.seed, c.data.held_out_rows, c.data.options, c.model.n_ctx) for c in (before, config)]
        if is_same_text and self.parent.imported is None and splits[0] != splits[1]:
            yield f"held-out rows are drawn anew: {where} was trained on most of them"

    def described(self, config: Config) -> dict[str, Any]:
        """The entry of environment.json."""
        imported = self.parent.imported
        return {
            "run_id": self.parent.run_id,
            "path": str(absolute(self.parent.path)),
            "step": self.step,
            "tokens": self._entry.tokens if self._entry else self.step * self.parent.config.tokens_per_step,
            "sha256": params_sha256(self.params),
            "anew": self.is_anew,
            "fresh": self.fresh,
            "changed_fields": self.changed_fields(config),
            **({} if imported is None else {
                "imported": {"source": imported["source"], **imported["snapshots"].get(str(self.step), {})}
            }),
        }  # fmt: skip

    def changed_fields(self, config: Config) -> dict[str, list[Any]]:
        """By name, the parent's value and the new one; none of an imported run, of whose training nothing is known."""
        if self.parent.imported is not None:
            return {}
        before, now = flat(self.parent.config), flat(config)
        return {name: [before.get(name), value] for name, value in now.items() if before.get(name) != value}

    @property
    def _entry(self) -> SnapshotEntry | None:
        return next((entry for entry in self.parent.manifest.read() if entry.step == self.step), None)

    def is_of(self, run: RunDir) -> bool:
        """Whether a run that is there was made by the same branch."""
        made = run.environment.get(BRANCH, {})
        return bool(
            (self.parent.run_id, self.step, self.is_anew) == (made.get("run_id"), made.get("step"), made.get("anew"))
        )

    def fill(self, run: RunDir) -> None:
        """Give a new run what it goes on from; its state last, so that a killed start is done again."""
        run.cut(0)
        if not self.is_anew:
            self._copy_history(run)
        run.save_state(self.first_step, self._first_state(run.config))

    def _first_state(self, config: Config) -> Arrays:
        import jax.numpy as jnp

        from icl_jax.train.optimizer import init_opt_state
        from icl_jax.train.state_arrays import state_to_arrays
        from icl_jax.train.step import TrainState

        if self._state is not None and not self.fresh:
            return self._state
        params = {name: jnp.asarray(array) for name, array in self.params.items()}
        state = TrainState(jnp.int32(self.first_step), params, init_opt_state(config, params))
        return {name: np.asarray(array) for name, array in state_to_arrays(state).items()}

    def _copy_history(self, run: RunDir) -> None:
        theirs, ours = self.parent.load_record(), run.open_record()
        for start in range(0, self.step, _BLOCK):
            part = theirs.isel(step=slice(start, min(start + _BLOCK, self.step)))
            names = [field.name for field in fields(StepBlock) if field.name not in ("first_step", INTERVENED)]
            columns = {name: part[name].values for name in names}
            columns[INTERVENED] = _intervened_before(part, self.parent.config, run.config)
            ours.write_steps(StepBlock(first_step=start, **columns))
        for i, step in enumerate(theirs["probe_step"].values if "probe" in theirs.sizes else ()):
            if step < self.step:
                at = theirs.isel(probe=i)
                names = [field.name for field in fields(ProbeResult) if field.name != "step"]
                found: dict[str, Any] = {
                    name: at[name].values if name in at else np.nan if name in PROBE_SCALARS else np.zeros(0)
                    for name in names
                }
                ours.write_probe(ProbeResult(step=int(step), **found))
        for entry in self.parent.manifest.read():
            if entry.step < self.step:
                run.save_snapshot(entry.step, self.parent.load_params(entry.step))


def _intervened_before(part: xr.Dataset, theirs: Config, ours: Config) -> np.ndarray:
    """Of the parent's steps which of the branch's interventions were on: those that the parent has too."""
    found = np.zeros((part.sizes["step"], len(ours.intervene)), np.float32)
    for i, one in enumerate(ours.intervene):
        if one in theirs.intervene:
            found[:, i] = part[INTERVENED].values[:, theirs.intervene.index(one)]
    return found


def open_branch(path: str, step: int, *, is_anew: bool = False, fresh_optimizer: bool = False) -> Branch:
    """A branch of the run `path`. Raises UserError for a step of which it has neither a snapshot nor a state."""
    parent = RunDir.open(path).one()
    branch = Branch(parent, step, is_anew or parent.imported is not None, fresh_optimizer)
    if not branch._has_state:
        parent.snapshot(step)
    if not branch.is_anew and (n := parent.load_record().sizes["step"]) < step:
        raise UserError(f"--at = {step}: {parent.path} has recorded {n} steps")
    return branch


def default_config(parent: RunDir) -> Config:
    """The parent's; of an imported run, of whose training nothing is known, what a config says by default.

    A quarter of the rows that it is measured on are then held out, of the same text.
    """
    config = parent.config
    if parent.imported is None:
        return config
    n_rows = max(1, config.data.held_out_rows // 4)
    probes = ProbeConfig(held_out_rows=min(ProbeConfig().held_out_rows, n_rows))
    return Config(model=config.model, data=replace(config.data, held_out_rows=n_rows), probes=probes)


def with_its_tokenizer(parent: RunDir, config: Config) -> Config:
    """With the parent's tokenizer.json for other text: ids must mean what they meant. One that is given stays."""
    path, before, now = parent.root / "tokenizer.json", parent.config.data, config.data
    is_same = (now.source, now.options) == (before.source, before.options) and parent.imported is None
    if is_same or now.tokenizer != before.tokenizer or not path.exists():
        return config
    return replace(config, data=replace(now, tokenizer=str(absolute(path))))
