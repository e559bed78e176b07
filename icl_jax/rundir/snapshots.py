"""snapshots/STEP: the parameters that a run directory keeps, as its manifest lists them."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from icl_jax.config import UserError
from icl_jax.rundir.agreement import read_snapshots
from icl_jax.rundir.checkpoints import Arrays, save_arrays
from icl_jax.rundir.manifest import SnapshotEntry, hashes, snapshot_sha256
from icl_jax.rundir.members import of_member
from icl_jax.rundir.place import Place
from icl_jax.rundir.saved_arrays import SavedArray, in_memory, open_arrays


class Snapshots(Place):
    """The snapshots of a run directory."""

    __slots__ = ()

    def read_snapshots(self) -> list[SnapshotEntry]:
        """Snapshots of the run in order. Raises UserError if the manifest is damaged or lacks some."""
        return read_snapshots(self)

    def save_snapshot(self, step: int, params: Arrays, tokens: int | None = None, failed: Collection[int] = ()) -> None:
        """Save parameters and then add them to the manifest. The manifest never names half a snapshot.

        tokens: predicted in training before; None: what the config says. failed: members that it does not list.
        """
        with ThreadPoolExecutor(1) as beside:
            hashing = beside.submit(hashes, params, failed if self.config.members else None)
            save_arrays(self.path / "snapshots" / str(step), params)
        n_bytes = sum(array.nbytes for array in params.values())
        tokens = step * self.config.tokens_per_step if tokens is None else tokens
        sha256, members = hashing.result()
        self.manifest.add(SnapshotEntry(step, tokens, sha256, n_bytes, members))

    def snapshots(self) -> list[SnapshotEntry]:
        """What `read_snapshots` finds. Raises UserError where that is nothing."""
        entries = self.read_snapshots()
        if not entries:
            raise UserError(f"{self.path}: has no snapshots yet")
        return entries

    def snapshot(self, step: int) -> SnapshotEntry:
        """The manifest's entry of a step. Raises UserError if it has none."""
        entries = {entry.step: entry for entry in self.manifest.read()}
        if step not in entries:
            near = ", ".join(str(s) for s in sorted(entries, key=lambda s: abs(s - step))[:3]) or "none"
            raise UserError(f"{self.path}: no snapshot of step {step}; the nearest are {near}")
        return entries[step]

    def load_params(self, step: int) -> Arrays:
        """The parameters after `step` updates, checked against the manifest; float32, however they are saved.

        Of a run with members all of theirs, the member axis in front; of members that had failed whatever is there.
        Raises UserError if there is no such snapshot, or if it is damaged or not the one that the manifest names.
        """
        entry = self.snapshot(step)
        params, found = self.read_params(entry)
        if found != entry.sha256:
            twin = next((other.step for other in self.manifest.read() if other.sha256 == found), None)
            what = f"it holds the parameters of step {twin}" if twin is not None else "its contents have changed"
            raise UserError(f"{self.root / 'snapshots' / str(step)}: SHA-256 differs from the manifest: {what}")
        return {name: array.astype(np.float32, copy=False) for name, array in params.items()}

    def read_params(self, entry: SnapshotEntry) -> tuple[Arrays, str]:
        """The parameters of a snapshot as they are on disk, and their SHA-256. Raises UserError if they are damaged."""
        params = {name: in_memory(array) for name, array in self.open_params(entry).items()}
        return params, snapshot_sha256(params, entry)

    def open_params(self, entry: SnapshotEntry) -> dict[str, np.ndarray | SavedArray]:
        """The parameters of a snapshot, to be read when they are needed. Raises UserError if they cannot be."""
        path = self.root / "snapshots" / str(entry.step)
        params = open_arrays(path)
        return {**params} if self.index is None else of_member(params, self.index, path)
