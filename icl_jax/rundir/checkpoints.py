"""Dicts of arrays on disk, by Orbax: parameters only (snapshots/STEP) and full states (state/STEP).

Orbax and JAX are imported where they are called: they take seconds, and only saving and going on need them.
"""

import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from icl_jax.config import UserError
from icl_jax.rundir.files import absolute, is_bucket, reason
from icl_jax.rundir.saved_arrays import damaged, open_arrays

if TYPE_CHECKING:
    import jax
    import orbax.checkpoint as ocp

Arrays = dict[str, np.ndarray]

_BYTES_AT_A_TIME = 2**24
# Orbax measures its patience by the time of day, which may jump; JAX itself notices a process that is gone.
_FOR_EVER_S = 10**9
# Orbax writes this last where folders cannot be renamed.
_COMMITTED = "commit_success.txt"


def _handler(options: "ocp.options.MultiprocessingOptions") -> "ocp.PyTreeCheckpointHandler":
    import orbax.checkpoint as ocp

    # Compression takes 7 % off parameters in float32, and a fifth of the time of a small snapshot.
    return ocp.PyTreeCheckpointHandler(
        use_ocdbt=True, use_zarr3=True, use_compression=False, multiprocessing_options=options
    )


def _checkpointer() -> "ocp.Checkpointer":
    import jax
    import orbax.checkpoint as ocp

    # Only one process writes and what it writes is on the host already: Orbax must not wait for the others.
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
    )
    return ocp.Checkpointer(_handler(alone), multiprocessing_options=alone)


def quiet_orbax() -> None:
    """Orbax logs every save through absl, and failures with tracebacks before it raises them; callers tell the user."""
    for name in ("absl", "asyncio"):  # asyncio: of the other arrays of a save that failed at one
        logging.getLogger(name).setLevel(logging.CRITICAL)


def save_arrays(path: epath.Path, arrays: Arrays) -> None:
    """Save under `path`, which appears only when it is complete. An existing folder is replaced."""
    import orbax.checkpoint as ocp

    if path.exists():
        remove_arrays(path)
    with _checkpointer() as checkpointer:
        checkpointer.save(absolute(path), args=ocp.args.PyTreeSave(arrays))


def save_sharded(
    path: epath.Path, arrays: Mapping[str, Any], may_appear: Callable[[], object]
) -> "ocp.AsyncCheckpointer":
    """Begin to save arrays over devices, of which each process writes its shards; every process must call it.

    When it returns, the arrays may be donated. Orbax writes in the background, then calls `may_appear`, on process 0,
    and only after that `path` appears, where no folder may be. The answer's `close` waits and raises what went wrong;
    the next save must not begin before.
    """
    import orbax.checkpoint as ocp

    # Folders made in the background are told of by signals that are one for all of a process's saves: a snapshot that
    # is saved meanwhile would take them.
    options = ocp.AsyncOptions(
        timeout_secs=_FOR_EVER_S, post_finalization_callback=may_appear, create_directories_asynchronously=False
    )
    checkpointer = ocp.AsyncCheckpointer(_handler(ocp.options.MultiprocessingOptions()), async_options=options)
    checkpointer.save(absolute(path), args=ocp.args.PyTreeSave(dict(arrays)))
    return checkpointer


def load_sharded(path: epath.Path, like: Mapping[str, "jax.ShapeDtypeStruct"]) -> "dict[str, jax.Array]":
    """Load arrays with the shardings of `like`, each process its shards; every process must call it.

    Raises UserError where the folder is missing or damaged, or a name, shape or type differs.
    """
    import orbax.checkpoint as ocp

    saved = open_arrays(path)
    for name, wanted in like.items():
        if name not in saved:
            raise UserError(f"saved state: {name} is missing; the config says that it should be there")
        found = f"{saved[name].dtype}{list(saved[name].shape)}"
        expected = f"{wanted.dtype}{list(wanted.shape)}"
        if found != expected:
            raise UserError(f"saved state: {name} = {found}: the config says {expected}")
    restore_args = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in saved} | {
        name: ocp.ArrayRestoreArgs(sharding=wanted.sharding, global_shape=wanted.shape, dtype=wanted.dtype)
        for name, wanted in like.items()
    }
    together = ocp.options.MultiprocessingOptions()
    # What is being read is in memory three times; Orbax refuses a shard that is not below the limit.
    largest = max(math.prod(_sharding(a).shard_shape(a.shape)) * a.dtype.itemsize for a in like.values())
    reader = ocp.BasePyTreeCheckpointHandler(
        restore_concurrent_bytes=max(_BYTES_AT_A_TIME, largest + 1), multiprocessing_options=together
    )
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(handler_impl=reader)) as checkpointer:
            args = ocp.args.PyTreeRestore(item=dict.fromkeys(saved, 0), restore_args=restore_args)
            return dict(checkpointer.restore(absolute(path), args=args))
    except Exception as error:
        for array in saved.values():
            array.read()  # says which is damaged, where TensorStore's words are of its own functions
        raise damaged(path, reason(error)) from error


def _sharding(array: "jax.ShapeDtypeStruct") -> "jax.sharding.Sharding":
    assert array.sharding is not None
    return array.sharding


def remove_arrays(path: epath.Path) -> None:
    """Remove what `save_arrays` saved: first what makes it count as complete, as a kill may leave half of the rest."""
    import orbax.checkpoint as ocp

    if is_bucket(path):
        (path / _COMMITTED).unlink(missing_ok=True)
    else:
        path = path.rename(path.parent / f"{path.name}{ocp.utils.TMP_DIR_SUFFIX}removed")
    path.rmtree()


def load_arrays(path: epath.Path) -> Arrays:
    """Load what `save_arrays` saved, as NumPy arrays. Raises UserError if it is missing or damaged."""
    return {name: array.read() for name, array in open_arrays(path).items()}


def saved_steps(folder: epath.Path) -> list[int]:
    """Steps with a complete checkpoint in `folder`, in order.

    Half-written ones have other names on a disk, and no file that says that they are complete in a bucket.
    """
    if not folder.exists():
        return []
    found = [file.parent for file in folder.glob(f"*/{_COMMITTED}")] if is_bucket(folder) else folder.iterdir()
    return sorted(int(path.name) for path in found if path.name.isdigit())


def remove_partial(folder: epath.Path) -> None:
    """Remove what a killed save or removal left behind; files of others (.DS_Store) stay."""
    if not folder.exists():
        return
    import orbax.checkpoint as ocp

    complete = {str(step) for step in saved_steps(folder)}
    for path in folder.iterdir():
        is_uncommitted = is_bucket(folder) and path.name.isdigit() and path.name not in complete
        if is_uncommitted or ocp.utils.TMP_DIR_SUFFIX in path.name:
            path.rmtree()
