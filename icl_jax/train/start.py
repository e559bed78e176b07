"""Making a run directory, or picking an existing one up where it stopped."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import jax
from etils import epath
from jax.experimental import multihost_utils

from icl_jax.config import Config, UserError, numeric_differences
from icl_jax.data import Corpus
from icl_jax.model.icl_score import icl_positions
from icl_jax.rundir import RunDir


@contextlib.contextmanager
def exclusive(path: str) -> Iterator[None]:
    """Hold the run directory against a second trainer on this machine. Raises UserError if one holds it already.

    The kernel drops the lock with the process, so a killed run leaves nothing to clean up. Bucket paths are not locked.
    """
    if "://" in path or jax.process_index() != 0:
        yield
        return
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        lock = (Path(path) / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{path}: cannot write the run directory: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{path}: another process is training in this run directory") from None
        yield


def open_or_create(path: str, config: Config, corpus: Corpus) -> RunDir:
    """A run directory cut back to its last full state, ready for `train`.

    Raises UserError if the folder is not a run, or is one whose config or corpus would give other numbers.
    """
    if jax.process_index() == 0:
        run = _resume(path, config, corpus) if RunDir.is_run(path) else _create(path, config, corpus)
    _all_wait("run directory ready")
    return run if jax.process_index() == 0 else RunDir.open(path)


def _create(path: str, config: Config, corpus: Corpus) -> RunDir:
    positions = icl_positions(config.model.n_ctx)
    attributes: dict[str, object] = {
        "icl_early": positions.early,
        "icl_late": positions.late,
        "icl_early_window": list(positions.early_window),
        "icl_late_window": list(positions.late_window),
        "position": "loss[step, t] is that of predicting token t + 1; token 0 is BOS",
    }
    return RunDir.create(
        path, config, corpus_sha256=corpus.fingerprint, tokenizer_json=corpus.tokenizer_json,
        record_attributes=attributes,
    )  # fmt: skip


def _resume(path: str, config: Config, corpus: Corpus) -> RunDir:
    run = RunDir.open(path)
    differences = numeric_differences(run.config, config)
    if differences:
        raise UserError(
            f"{epath.Path(path)}: is a run with another config ({'; '.join(differences)}): give --run another path"
        )
    if run.environment.get("corpus_sha256") != corpus.fingerprint:
        raise UserError(
            f"{epath.Path(path)}: the corpus has changed since the run began (SHA-256 {corpus.fingerprint[:12]}, was"
            f" {str(run.environment.get('corpus_sha256'))[:12]}): give --run another path"
        )
    run = RunDir(run.path, config, run.environment)
    step = run.last_state_step() or 0
    if step < config.train.n_steps:
        run.cut(step)
    return run


def _all_wait(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
