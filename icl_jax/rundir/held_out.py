"""held_out.zarr: what analysis needs of the corpus, so that a copied run directory is enough.

A Zarr v3 group that opens with ``xarray.open_zarr``, written once when the run is made.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from etils import epath

from icl_jax.config import UserError
from icl_jax.rundir.manifest import params_sha256
from icl_jax.rundir.seals import Tally, check_seal, seal, unusable

MAX_ROWS = 1024
MAX_BYTES = 2**24
MAX_COUNTED_VOCAB = 2048


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows that were never trained on, and what is needed to make random sequences."""

    rows: np.ndarray
    """int32 [row, position + 1], BOS first."""
    candidates: np.ndarray
    """int32: token ids for random sequences, neither the most nor the least common ones."""
    bos_id: int
    bigram_counts: np.ndarray | None = None
    """uint32 [token, next token] over the first training tokens; None for a large vocabulary."""
    label_names: tuple[str, ...] = ()
    """What single tokens show, such as phrase_again; empty for a corpus without labels."""
    labels: np.ndarray | None = None
    """uint8 [row, position + 1]: i for the i-th label name from 1, 0 for no label; None without label names."""

    chains: np.ndarray | None = None
    """float64 [row, last states, next state]: what each row of the `markov` corpus was drawn from; None for others."""

    @property
    def sha256(self) -> str:
        """Over all that is held: a lost chunk reads back as zeros, which are good token ids."""
        arrays = {"rows": self.rows.astype(np.int32), "candidates": self.candidates.astype(np.int32)}
        if self.bigram_counts is not None:
            arrays["bigram_counts"] = self.bigram_counts.astype(np.uint32)
        if self.labels is not None:
            arrays["labels"] = self.labels.astype(np.uint8)
        if self.chains is not None:
            arrays["chains"] = self.chains
        return params_sha256(arrays)

    def save(self, path: epath.Path) -> None:
        """Write the group; an existing one is replaced."""
        arrays = {
            "rows": (("row", "token"), self.rows.astype(np.int32), "token ids of rows never trained on, BOS first"),
            "candidates": (("candidate",), self.candidates.astype(np.int32), "token ids for random sequences"),
        }
        if self.bigram_counts is not None:
            meaning = "how often the second token follows the first in the first training rows"
            arrays["bigram_counts"] = (("first", "second"), self.bigram_counts.astype(np.uint32), meaning)
        if self.labels is not None:
            meaning = "what the token shows: i for the i-th of the attribute label_names from 1, 0 for nothing"
            arrays["labels"] = (("row", "token"), self.labels.astype(np.uint8), meaning)
        if self.chains is not None:
            meaning = "transition probabilities that the row was drawn from"
            arrays["chains"] = (("row", "states", "next_state"), self.chains, meaning)
        import xarray as xr

        dataset = xr.Dataset(
            {name: (dims, values, {"units": "1", "long_name": text}) for name, (dims, values, text) in arrays.items()},
            attrs={"bos_id": int(self.bos_id), "label_names": list(self.label_names), "sha256": self.sha256},
        )
        with warnings.catch_warnings():
            # Consolidated metadata is xarray's fast way in; the Zarr v3 specification has yet to adopt it.
            warnings.simplefilter("ignore")
            dataset.to_zarr(str(path), mode="w", zarr_format=3, consolidated=True)
        seal(path)


def n_rows_kept(n_held_out: int, n_ctx: int) -> int:
    """Rows that go into the run directory: at most 1,024, and at most 16 MiB of ids."""
    return max(1, min(n_held_out, MAX_ROWS, MAX_BYTES // (4 * (n_ctx + 1))))


def load_held_out(path: epath.Path, tally: Tally | None = None) -> HeldOut:
    """Read what `HeldOut.save` wrote. Raises UserError if it is missing or damaged."""
    if not path.exists():
        raise UserError(f"{path}: missing: analysis needs the held-out rows that icl-jax train puts there")
    import xarray as xr

    with unusable(path, "cannot read the held-out rows"):
        check_seal(path, tally)
        dataset = xr.open_zarr(str(path), consolidated=False).load()
        counts = dataset["bigram_counts"].values if "bigram_counts" in dataset else None
        rows, candidates = dataset["rows"].values, dataset["candidates"].values
        labels = dataset["labels"].values if "labels" in dataset else None
        chains = dataset["chains"].values if "chains" in dataset else None
        names = tuple(dataset.attrs.get("label_names", ()))
        held_out = HeldOut(rows, candidates, int(dataset.attrs["bos_id"]), counts, names, labels, chains)
        sha256 = dataset.attrs["sha256"]
    if held_out.sha256 != sha256:
        raise UserError(
            f"{path}: damaged: SHA-256 differs from the one in its attributes; copy it again from the source"
        )
    return held_out
