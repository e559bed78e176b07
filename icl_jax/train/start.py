"""Making a run directory, or picking an existing one up where it stopped."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import jax

from icl_jax.config import Config, UserError
from icl_jax.data import Corpus, each_corpus
from icl_jax.data.corpora.text import TextCorpus
from icl_jax.maths.icl_score import icl_positions
from icl_jax.rundir import RunDir
from icl_jax.rundir.lock import exclusive
from icl_jax.rundir.place import CORPORA
from icl_jax.rundir.record import HELD_OUT_AGAIN
from icl_jax.train.branch import BRANCH, Branch
from icl_jax.train.held_out import take_held_out
from icl_jax.train.may_start import may_start
from icl_jax.train.processes import all_or_none, is_first


def open_or_create(path: str, config: Config, corpus: Corpus, branch: Branch | None = None) -> RunDir:
    """A run directory cut back to its last full state, ready for `train`.

    `branch`: what a new one begins with. Raises UserError if the folder is not a run, is one whose config or corpus
    would give other numbers or one of another branch, or cannot be written.
    """
    run = may_start(path, config, jax.process_count())  # again: this process now holds the folder
    if run is None:
        return _create(path, config, corpus, branch)
    if branch is not None and not branch.is_of(run):
        raise UserError(f"{run.path}: is a run that does not begin there: give --run another path")
    if BRANCH in run.environment and run.last_state_step() is None:
        if branch is None:
            raise UserError(f"{run.path}: lacks what it begins with: icl-jax branch, as it was made, completes it")
        branch.fill(run)
    return _resume(run, corpus)


@contextlib.contextmanager
def held_run(path: str, config: Config, corpus: Corpus, branch: Branch | None = None) -> Iterator[RunDir]:
    """What `open_or_create` gives, held against a second trainer. Process 0 opens it for all: it fails for all."""
    with contextlib.ExitStack() as held:

        def open_first() -> RunDir | None:
            if not is_first():
                return None
            held.enter_context(exclusive(path))
            return open_or_create(path, config, corpus, branch)

        what = f"cannot use this run directory, {path}"
        run = all_or_none(what, open_first)
        yield all_or_none(what, lambda: run or replace(RunDir.open(path), config=config))


def _create(path: str, config: Config, corpus: Corpus, branch: Branch | None) -> RunDir:
    if branch is not None:
        branch.check_rows(config, corpus)
    positions = icl_positions(config.model.n_ctx)
    attributes: dict[str, object] = {
        "icl_early": positions.early,
        "icl_late": positions.late,
        "icl_early_window": list(positions.early_window),
        "icl_late_window": list(positions.late_window),
        "position": "loss[step, t] is that of predicting token t + 1; token 0 is BOS",
    }
    corpora = dict(zip(config.row_seeds, each_corpus(corpus), strict=True))
    again = [len(one.held_out_again) for one in corpora.values() if isinstance(one, TextCorpus)]
    if again:  # of each member, where they have rows of their own
        attributes[HELD_OUT_AGAIN] = again[0] if len(corpora) == 1 else [again[i] for i in config.rows_of_members]
    held_out = {seed: take_held_out(replace(config, data=replace(config.data, seed=seed)), one)
                for seed, one in corpora.items()}  # fmt: skip
    run = RunDir.create(
        path, config, corpus_sha256=corpus.fingerprint, tokenizer_json=corpus.tokenizer_json,
        record_attributes=attributes, held_out=held_out if len(corpora) > 1 else held_out[config.row_seeds[0]],
        said=({} if branch is None else {BRANCH: branch.described(config)})
        | ({} if len(corpora) == 1 else {CORPORA: {str(seed): one.fingerprint for seed, one in corpora.items()}}),
    )  # fmt: skip
    if branch is not None:
        branch.fill(run)
    return run


def _resume(run: RunDir, corpus: Corpus) -> RunDir:
    if run.environment.get("corpus_sha256") != corpus.fingerprint:
        raise UserError(
            f"{run.path}: the corpus has changed since the run began (SHA-256 {corpus.fingerprint[:12]}, was"
            f" {str(run.environment.get('corpus_sha256'))[:12]}): give --run another path"
        )
    step = run.last_state_step() or 0
    if step < run.config.train.n_steps:
        run.cut(step)
    else:
        run.remove_partial()
    return run
