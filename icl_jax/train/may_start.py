"""Whether a run can be trained in a folder, asked before JAX is there: that takes seconds."""

from dataclasses import replace

from icl_jax.config import Config, UserError, numeric_differences
from icl_jax.data import Corpus
from icl_jax.rundir import RunDir
from icl_jax.train.sizes import check_disk, check_memory


def may_start(path: str, config: Config, n_processes: int = 1) -> RunDir | None:
    """The run that is there, to be resumed by `config`, or None where one can be made.

    Raises UserError where the folder holds something else, or a run whose config would give other numbers, and where
    the run cannot fit on this machine.
    """
    n_rows, n_shards = config.train.batch_size // config.train.accum_steps, config.train.fsdp
    if n_rows % n_shards:  # as they do not among any number of devices; JAX would make as many on a CPU
        allowed = f"must divide the {n_rows} rows of train.batch_size / train.accum_steps"
        raise UserError(f"train.fsdp = {n_shards}: {allowed}")
    check_memory(config, n_processes)
    if not RunDir.is_run(path):
        RunDir.check_free(path)
        check_disk(config, path)
        return None
    run = RunDir.open(path)
    if run.imported is not None:
        raise UserError(f"{run.path}: was imported and has no training state: icl-jax branch trains on from a snapshot")
    differences = numeric_differences(run.config, config)
    if differences:
        raise UserError(f"{run.path}: is a run with another config ({'; '.join(differences)}): give --run another path")
    return replace(run, config=config)


def check_vocabulary(config: Config, corpus: Corpus) -> None:
    """Raise UserError where the corpus has more token ids than the model."""
    if corpus.vocab_size > config.model.vocab_size:
        allowed = f"must be at least the corpus's {corpus.vocab_size}"
        raise UserError(f"model.vocab_size = {config.model.vocab_size}: {allowed}")
