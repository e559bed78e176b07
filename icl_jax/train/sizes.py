"""What a run needs at least, against what this machine has: asked before anything is made, and before JAX is there."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from icl_jax import process
from icl_jax.config import Config, UserError
from icl_jax.rundir.files import is_bucket
from icl_jax.telling import format_bytes

# A step number as a Python integer in a set.
_SCHEDULED_BYTES = 100


def check_memory(config: Config, n_processes: int = 1) -> None:
    """Raise UserError where the run cannot fit in this machine's memory.

    What is compared is the least that any platform needs: the parameters once, over the processes that share them where
    they are sharded, and the rows of one step. What is refused
    here would fail later; what is not may do so still.
    """
    has = process.memory_bytes()
    for name, value, what, n_bytes in _memory(config, n_processes):
        if n_bytes > has:
            needs = f"{what} would need {format_bytes(n_bytes)} of memory, and this machine has {format_bytes(has)}"
            raise UserError(f"{name} = {value}: {needs}")
    n_tokens = config.train.n_steps * config.tokens_per_step
    if n_tokens >= 2**63:
        raise UserError(f"train.n_steps = {config.train.n_steps}: {n_tokens} tokens: must be fewer than 2**63")


def check_disk(config: Config, path: str) -> None:
    """Raise UserError where the record and the snapshots of a new run cannot fit on the disk of `path`."""
    if is_bucket(path):
        return
    free = free_bytes(_nearest(Path(path)))
    for name, value, what, n_bytes in _disk(config):
        if n_bytes > free:
            needs = f"{what} would take {format_bytes(n_bytes)}, and {format_bytes(free)} are free"
            raise UserError(f"{path}: cannot write the run directory: {name} = {value}: {needs}")


def least_params(config: Config) -> int:
    """Parameters that the model has at least: its matrices, without norms and biases."""
    model = config.model
    attention = 2 * model.d_model * model.head_width * (model.n_heads + model.key_heads)
    layer = attention + (3 if model.gated_mlp else 2) * model.d_model * model.d_mlp
    return model.vocab_size * model.d_model * (1 if model.tied_unembedding else 2) + model.n_layers * layer


def _memory(config: Config, n_processes: int) -> Iterator[tuple[str, int, str, int]]:
    """Field, its value, what it makes large, and the bytes of that in one process."""
    model, probes, snapshots = config.model, config.probes, config.snapshots
    row = 4 * (model.n_ctx + 1)
    sizes = {f"model.{name}": getattr(model, name) for name in ("n_layers", "d_model", "d_mlp", "vocab_size")}
    sizes |= {"model.n_heads": model.n_heads, "model.d_head": model.head_width}
    largest = max(sizes, key=lambda name: sizes[name])
    n_sharing = min(config.train.fsdp, n_processes)
    yield largest, sizes[largest], "the parameters", 4 * least_params(config) // n_sharing
    n_bytes = len(config.members) * 4 * least_params(config)
    yield "members.seeds", len(config.members), "the parameters of all members", n_bytes
    yield "model.n_ctx", model.n_ctx, "one row and its activations", row + 4 * model.n_ctx * model.d_model
    yield (
        "train.batch_size",
        config.train.batch_size,
        "the rows of one step",
        config.train.batch_size // n_processes * row,
    )
    n_phrases = getattr(config.data.options, "n_phrases", 0)
    yield (
        f"data.{config.data.corpus}.n_phrases",
        n_phrases,
        "the phrases of one row",
        8 * n_phrases * config.model.n_ctx,
    )
    yield "probes.held_out_rows", probes.held_out_rows, "the rows of the probes", probes.held_out_rows * row
    yield "probes.n_sequences", probes.n_sequences, "the sequences of the probes", probes.n_sequences * row
    for name, n in (
        ("snapshots.n_linear", snapshots.n_linear), ("snapshots.n_log", snapshots.n_log),
        ("probes.n_probes", probes.n_probes),
    ):  # fmt: skip
        yield name, n, "the list of their steps", n * _SCHEDULED_BYTES


def _disk(config: Config) -> Iterator[tuple[str, int, str, int]]:
    """The same of files. Compression takes a twentieth off losses, and nothing off parameters."""
    n_members = max(1, len(config.members))
    n_steps, snapshots, params = config.train.n_steps, config.snapshots, 4 * least_params(config) * n_members
    n_linear = snapshots.n_linear if snapshots.keep == "all" else 0
    n_snapshots = min(max(n_linear, snapshots.n_log // 2, 2), n_steps + 1)
    yield "snapshots.n_linear", snapshots.n_linear, f"{n_snapshots} snapshots", n_snapshots * params
    record = n_steps * 4 * (config.model.n_ctx + 3) * n_members
    yield "train.n_steps", n_steps, "the record of every step and position", record


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write there."""
    return shutil.disk_usage(folder).free


def _nearest(path: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
