"""state/STEP: the full training state of a run directory, each array with a checksum."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from icl_jax.config import UserError
from icl_jax.rundir import checkpoints
from icl_jax.rundir.checkpoints import Arrays, load_arrays, load_sharded, save_sharded, saved_steps
from icl_jax.rundir.checksum import checksum_of
from icl_jax.rundir.manifest import params_sha256
from icl_jax.rundir.members import of_member
from icl_jax.rundir.place import Place
from icl_jax.rundir.saved_arrays import in_memory

if TYPE_CHECKING:
    import jax

# An array of each state, over all the others; states of before 2026-11-27 have a SHA-256, of before 2026-11-25 nothing.
_STATE_CHECKSUMS = "checksums"
_STATE_SHA256 = "sha256"


class States(Place):
    """The states of a run directory."""

    __slots__ = ()

    def save_state(self, step: int, state: Mapping[str, Any]) -> None:
        """Save the full state of one process, and wait until it is on disk. See `begin_state`."""
        names = sorted(state)
        checksums = np.array([checksum_of(np.asarray(state[name])) for name in names], np.uint32)
        self.begin_state(step, state, checksums)()

    def begin_state(
        self,
        step: int,
        state: Mapping[str, Any],
        checksums: np.ndarray,
        may_appear: Callable[[], object] = lambda: None,
    ) -> Callable[[], None]:
        """Begin to save the full state, each process its shards; every process must call it.

        checksums: of the arrays in the order of their names, see `icl_jax.rundir.checksum`. The state appears after
        `may_appear` has returned. The answer waits until it is on disk, then drops all but the last
        `snapshots.keep_states`. A state that is there already is left: it is the one that the run was resumed from.
        """
        folder = self.path / "state"
        if step in saved_steps(folder):
            return lambda: None
        saving = save_sharded(folder / str(step), {**state, _STATE_CHECKSUMS: checksums}, may_appear)

        def finish() -> None:
            import jax

            saving.close()
            if jax.process_index() == 0:
                for old in saved_steps(folder)[: -self.config.snapshots.keep_states]:
                    checkpoints.remove_arrays(folder / str(old))

        return finish

    def load_state(self, step: int) -> Arrays:
        """The whole of a saved state. Raises UserError if it is missing, damaged or not the state of that step."""
        path = self.root / "state" / str(step)
        state = load_arrays(path)
        saved_sha256, checksums = state.pop(_STATE_SHA256, None), state.pop(_STATE_CHECKSUMS, None)
        _check_step(path, step, state.get("step"))
        if saved_sha256 is not None:
            sha256 = np.frombuffer(bytes.fromhex(params_sha256(state)), np.uint8)
            if not np.array_equal(saved_sha256, sha256):
                raise UserError(f"{path}: SHA-256 differs from the one saved with it: its contents have changed")
        if checksums is not None:
            found = np.array([checksum_of(state[name]) for name in sorted(state)], np.uint32)
            _check_checksums(path, sorted(state), found, checksums)
        if self.index is None:
            return state
        # The step is that of all.
        per_member = {name: array for name, array in state.items() if name != "step"}
        member = of_member(per_member, self.index, path)
        return {name: in_memory(array) for name, array in member.items()} | {"step": state["step"]}

    def load_state_sharded(
        self, step: int, like: Mapping[str, "jax.ShapeDtypeStruct"], checksums_of: Callable[[Any], np.ndarray]
    ) -> "dict[str, jax.Array]":
        """A saved state with the shardings of `like`, each process its shards; every process must call it.

        `checksums_of` takes those of the loaded arrays in the order of their names. Raises UserError as `load_state`
        does, and where a name, shape or type is not that of `like`.
        """
        path = self.path / "state" / str(step)
        state = load_sharded(path, like)
        checksums = state.pop(_STATE_CHECKSUMS, None)
        if state.pop(_STATE_SHA256, None) is not None:  # of schema 1: over all arrays whole
            self.load_state(step)
        _check_step(path, step, state["step"])
        if checksums is not None:
            _check_checksums(path, sorted(state), checksums_of(state), np.asarray(checksums))
        return state


def _check_step(path: epath.Path, step: int, saved: Any) -> None:
    if saved is None or saved.shape != ():
        raise UserError(f"{path}: is not a training state: it has no step")
    if int(saved) != step:
        raise UserError(f"{path}: swapped: it holds the state of step {int(saved)}")


def _check_checksums(path: epath.Path, names: list[str], found: np.ndarray, saved: np.ndarray) -> None:
    if not np.array_equal(found, saved):
        changed = [name for name, a, b in zip(names, found, saved, strict=False) if a != b]
        what = f"{changed[0]}'s checksum" if changed else "the number of its arrays"
        raise UserError(f"{path}: {what} differs from the one saved with it: its contents have changed")
