"""A source's checkpoints, one at a time, into a run directory."""

import contextlib
import datetime
import fnmatch
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from icl_jax import __version__
from icl_jax.config import Config, ModelConfig, OptimizerConfig, ProbeConfig, TrainConfig, UserError
from icl_jax.importing.checkpoint import Checkpoint, open_checkpoint
from icl_jax.importing.families.family import Arrays
from icl_jax.importing.families.table import family_of
from icl_jax.importing.held_out import open_rows, run_of, text_of
from icl_jax.importing.map_weights import map_weights, read_config
from icl_jax.importing.sources.revision import Revision, choose_steps
from icl_jax.importing.sources.source import Fetched, Source
from icl_jax.rundir import RunDir
from icl_jax.rundir.lock import exclusive
from icl_jax.telling import format_bytes, format_duration

Tell = Callable[[str], None]
_PROBE_ROWS = 128


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """How checkpoints are imported: see `icl_jax.cli.import_verb.ImportArgs`."""

    steps: str = ""
    text: str = ""
    n_ctx: int = 0
    tokenizer: str = ""
    tokens_per_step: int = 0
    ignored: tuple[str, ...] = ()


def import_run(source: Source, path: str, settings: ImportSettings, tell: Tell) -> RunDir:
    """Import what the run lacks of a source's checkpoints; the run is made where there is none.

    A step that cannot be had is told and noted, and the others go on. Raises UserError where none can, for a kind of
    model that is not represented, and for a run directory that is not of this source.
    """
    return _Import(source, path, settings, tell).all()


class _Import:
    def __init__(self, source: Source, path: str, settings: ImportSettings, tell: Tell) -> None:
        self._source, self._path, self._settings, self._tell = source, path, settings, tell
        self._n_ctx = settings.n_ctx
        if (run := run_of(settings.text)) is not None:
            self._n_ctx = run.config.model.n_ctx
            if settings.n_ctx not in (0, self._n_ctx):
                allowed = f"must be {self._n_ctx}, the tokens of the rows of --text = {settings.text!r}"
                raise UserError(f"--n-ctx = {settings.n_ctx}: {allowed}")
        self._run = self._existing()
        self._missing: dict[int, str] = {}
        self._held = contextlib.ExitStack()

    def _existing(self) -> RunDir | None:
        """The run that is there. Raises UserError where it is another's, or something else."""
        if not RunDir.is_run(self._path):
            RunDir.check_free(self._path)
            return None
        run = RunDir.open(self._path)
        if run.imported is None:
            raise UserError(f"{run.path}: is a run that was trained here: give --run another path")
        if run.imported["source"] != self._source.name:
            raise UserError(f"{run.path}: was imported from {run.imported['source']}: give --run another path")
        n_ctx, text = run.config.model.n_ctx, run.imported["text"]
        other = "give --run another path"
        if self._settings.n_ctx not in (0, n_ctx):
            raise UserError(f"--n-ctx = {self._settings.n_ctx}: {run.path} was imported with {n_ctx}: {other}")
        if self._settings.text and text_of(self._settings.text) != text:
            raise UserError(f"--text = {self._settings.text!r}: {run.path} was imported with {text!r}: {other}")
        return run

    def all(self) -> RunDir:
        """Every step that is wanted, the run held against others from where it is there."""
        with self._held:
            if self._run is not None:
                self._held.enter_context(exclusive(self._path))
            return self._all()

    def _all(self) -> RunDir:
        chosen = self._chosen()
        done = set() if self._run is None else {entry.step for entry in self._run.manifest.read()}
        todo = [revision for revision in chosen if self._step(revision) not in done]
        if len(todo) < len(chosen):
            self._tell(f"{self._path}: {len(chosen) - len(todo)} of {len(chosen)} steps are there already")
        if self._run is not None:
            self._run.remove_unlisted()
            snapshots = self._run.environment["imported"]["snapshots"]
            for step in [step for step in snapshots if int(step) not in done]:
                del snapshots[step]  # of a killed import
        elif (config := self._source.config(todo[0])) is not None:
            # Before anything large is fetched, and before each step would be refused for the same reason.
            where = f"{self._source.name}: config.json of {todo[0].name}"
            read_config(config, where, self._n_ctx, self._settings.ignored)
        pace = _Pace(len(todo))
        errors = []
        for revision in todo:
            try:
                n_bytes = self._one(revision, chosen)
            except UserError as error:
                self._missing[self._step(revision)] = str(error)
                self._tell(f"step {self._step(revision)}: left out: {error}")
                errors.append(error)
            else:
                self._tell(f"step {self._step(revision)}{pace.after(n_bytes)}")
        if self._run is None:
            raise errors[0]
        self._note_missing(self._run)
        return self._run

    def _chosen(self) -> list[Revision]:
        revisions, words = self._source.revisions()
        for line in words:
            self._tell(line)
        if len(revisions) == 1 and revisions[0].step is None:
            return revisions
        chosen, missing = choose_steps(revisions, self._settings.steps)
        for step in missing:
            self._missing[step] = f"{self._source.name} has no such revision"
            self._tell(f"step {step}: left out: {self._missing[step]}")
        return chosen

    def _step(self, revision: Revision) -> int:
        """Of a checkpoint that does not say: the one that --steps names, else 1."""
        if revision.step is not None:
            return revision.step
        return int(self._settings.steps) if self._settings.steps.isdecimal() else 1

    def _one(self, revision: Revision, chosen: list[Revision]) -> int:
        """Import one checkpoint, and count its bytes. Raises UserError; nothing of it then counts."""
        with self._source.fetch(revision) as fetched:
            checkpoint = open_checkpoint(fetched.path)
            n_bytes = checkpoint.n_bytes
            try:
                model, params = map_weights(
                    checkpoint, n_ctx=self._n_ctx if self._run is None else self._run.config.model.n_ctx,
                    ignored=self._settings.ignored,
                )  # fmt: skip
            finally:
                files = checkpoint.files  # a file that is not what its hash says is the reason of whatever it is
            if self._run is None:
                self._run = self._create(checkpoint, model, chosen)
            elif model != self._run.config.model:
                raise UserError(f"{fetched.path}: its config.json is of another architecture than the run's")
            self._keep(self._run, revision, fetched, files, params)
        return n_bytes

    def _keep(self, run: RunDir, revision: Revision, fetched: Fetched, files: dict[str, str], params: Arrays) -> None:
        step, imported = self._step(revision), run.environment["imported"]
        imported["snapshots"][str(step)] = {
            "revision": revision.name, "commit": fetched.commit, "files": files,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        imported["missing"].pop(str(step), None)
        run.save_environment()
        tokens = revision.tokens
        if tokens is None and imported["tokens_per_step"]:
            tokens = step * imported["tokens_per_step"]
        # Last: what the manifest does not name does not count.
        run.save_snapshot(step, params, tokens)

    def _note_missing(self, run: RunDir) -> None:
        imported = run.environment["imported"]
        there = {entry.step for entry in run.manifest.read()}
        missing = imported["missing"] | {str(step): why for step, why in self._missing.items()}
        kept = {step: why for step, why in missing.items() if int(step) not in there}
        # Once all were wanted the steps that are there are the series'.
        now = {"missing": kept} | ({} if self._settings.steps else {"steps": ""})
        if any(imported.get(name) != value for name, value in now.items()):
            imported |= now
            run.save_environment()

    def _create(self, checkpoint: Checkpoint, model: ModelConfig, chosen: list[Revision]) -> RunDir:
        rows = open_rows(self._settings.text or "manual", checkpoint, model, self._settings.tokenizer)
        n_rows = len(rows.held_out.rows)
        per_step = self._tokens_per_step(checkpoint, chosen)
        batch_size = per_step // model.n_ctx if per_step and per_step % model.n_ctx == 0 else 1
        config = Config(
            model=model,
            data=rows.data,
            train=TrainConfig(n_steps=max(1, *map(self._step, chosen)), batch_size=batch_size),
            optimizer=OptimizerConfig(warmup_steps=0),
            probes=ProbeConfig(n_probes=0, held_out_rows=min(_PROBE_ROWS, n_rows)),
        )
        imported: dict[str, Any] = {
            "source": self._source.name,
            "family": family_of(checkpoint.config, str(checkpoint.path)).name,
            "icl_jax": __version__,
            "tokens_per_step": per_step,
            "bos": list(rows.bos),
            "text": rows.text,
            "steps": self._settings.steps,
            "ignored_options": list(self._settings.ignored),
            "snapshots": {},
            "missing": {},
        }
        shape = f"{model.n_layers} layers of {model.n_heads} heads, d_model {model.d_model}"
        measured = f"{n_rows} rows of {model.n_ctx} tokens of {rows.data.source}"
        self._tell(f"{self._path}: {imported['family']}, {shape}, vocabulary {model.vocab_size:,}; {measured}")
        self._held.enter_context(exclusive(self._path))
        return RunDir.create(
            self._path, config, corpus_sha256=rows.corpus_sha256, tokenizer_json=rows.tokenizer_json,
            held_out=rows.held_out, imported=imported,
        )  # fmt: skip

    def _tokens_per_step(self, checkpoint: Checkpoint, chosen: list[Revision]) -> int | None:
        """What the user says, else what is known of the series; None, told, where nothing is."""
        if self._settings.tokens_per_step:
            return self._settings.tokens_per_step
        for series in family_of(checkpoint.config, str(checkpoint.path)).series:
            if fnmatch.fnmatchcase(self._source.title, series.names):
                return series.tokens_per_step
        if any(revision.tokens is None for revision in chosen):
            what = "how many tokens a step has is not known: --tokens-per-step says it"
            self._tell(f"{self._source.name}: {what}; counted as one row")
        return None


class _Pace:
    """Bytes and time so far, and what is left, in words."""

    def __init__(self, n_steps: int) -> None:
        self._n_steps, self._n_done, self._n_bytes, self._began = n_steps, 0, 0, time.monotonic()

    def after(self, n_bytes: int) -> str:
        """Another step is there."""
        self._n_done += 1
        self._n_bytes += n_bytes
        took_s, left = time.monotonic() - self._began, (self._n_steps - self._n_done) / self._n_done
        words = (
            f" ({self._n_done} of {self._n_steps}): {format_bytes(n_bytes)} in {format_duration(took_s / self._n_done)}"
        )
        return (
            f"{words}; {format_bytes(self._n_bytes * left)}, {format_duration(took_s * left)} left" if left else words
        )
