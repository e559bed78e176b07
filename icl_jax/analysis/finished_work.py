"""Finished work of an analysis, so that nothing is measured twice: files under RUN/analysis_parts, each replaced whole.

One file holds one measurement of a batch of snapshots (`.npz`, no pickles). A snapshot's answer is found by a key over
the measurement's name and version, what it reads besides the parameters, and the parameters' SHA-256: a run trained
anew, or measured on other rows, finds nothing. The folder may be deleted at any time.
"""

import hashlib
import io
import zipfile

import numpy as np
from etils import epath

from icl_jax.measures.measurement import Context, Measurement
from icl_jax.rundir.files import replace_bytes

Answer = dict[str, np.ndarray]
_KEYS = "keys"


def work_key(measurement: Measurement, context: Context, params_sha256: str) -> str:
    """SHA-256 over all that an answer depends on."""
    text = f"{measurement.name} {measurement.version} {measurement.constants} {context.fingerprint} {params_sha256}"
    return hashlib.sha256(text.encode()).hexdigest()


class FinishedWork:
    """Answers of one measurement, by key."""

    def __init__(self, folder: epath.Path, measurement: Measurement) -> None:
        self._folder = folder / measurement.name
        self._variables = set(measurement.variables)
        self._files: dict[epath.Path, set[str]] = {}
        self._answers: dict[str, Answer] = {}
        if self._folder.exists():
            for path in sorted(self._folder.iterdir()):
                if path.suffix == ".npz":
                    self._read(path)
                elif path.suffix == ".partial":  # of a killed analysis
                    path.unlink(missing_ok=True)

    def _read(self, path: epath.Path) -> None:
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return  # damaged: measured again
        keys = arrays.pop(_KEYS, np.empty(0, "U64"))
        self._files[path] = {str(key) for key in keys}
        if set(arrays) == self._variables and all(len(values) == len(keys) for values in arrays.values()):
            for i, key in enumerate(keys):
                self._answers[str(key)] = {name: np.asarray(values[i]) for name, values in arrays.items()}

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def get(self, key: str) -> Answer:
        return self._answers[key]

    def add(self, keys: list[str], stacked: Answer) -> None:
        """Store the answers of a batch, the snapshot axis in front; on disk when this returns."""
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16]
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **{_KEYS: np.array(keys)}, **stacked)
        path = self._folder / f"{name}.npz"
        replace_bytes(path, buffer.getvalue())
        self._files[path] = set(keys)
        for i, key in enumerate(keys):
            self._answers[key] = {name: np.asarray(values[i]) for name, values in stacked.items()}

    def forget_all_but(self, keys: set[str]) -> None:
        """Delete files in which no answer is of use any more."""
        for path, held in list(self._files.items()):
            if not held & keys:
                path.unlink(missing_ok=True)
                del self._files[path]
