"""analysis.zarr: finished work and what is derived from it, as one labelled Dataset."""

import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from etils import epath

from icl_jax.analysis.finished_work import FinishedWork, work_key
from icl_jax.config import UserError
from icl_jax.maths.icl_score import icl_positions
from icl_jax.measures.measurement import Context, Derived, Measurement, UndefinedError, Variable
from icl_jax.measures.seen_bigrams import HEAD_SETS
from icl_jax.measures.set_ablation import SET_KINDS, SHARES
from icl_jax.measures.table import TABLE, on_request
from icl_jax.rundir import SCHEMA_VERSION, RunDir, SnapshotEntry
from icl_jax.rundir.files import is_bucket
from icl_jax.rundir.seals import ATTRIBUTE, check_seal, seal, sha256_of, unusable

_LISTING, _SNAPSHOTS = "manifest_sha256", "snapshots_asked"
_NOT_ASKED = "not taken: not asked for (icl-jax analyze RUN --only {name} takes it)"


def build_dataset(
    run: RunDir,
    context: Context,
    table: tuple[Measurement | Derived, ...],
    works: dict[str, FinishedWork],
    chosen: list[SnapshotEntry],
    few: list[SnapshotEntry],
    wanted: set[str],
) -> xr.Dataset:
    """Everything that is finished on all chosen snapshots, and what can be derived from it."""
    dataset = xr.Dataset(coords=_coordinates(context, chosen, few))
    absent: dict[str, str] = {}
    for entry in table:
        why = entry.why_not(context)
        if why is not None:
            absent[entry.name] = why
        elif isinstance(entry, Measurement):
            entries = few if entry.on_few else chosen
            keys = [work_key(entry, context, snapshot.sha256) for snapshot in entries]
            work = works[entry.name]
            if not keys or not all(key in work for key in keys):
                absent[entry.name] = entry.too_much(context) or _NOT_ASKED.format(name=entry.name)
                continue
            answers = [work.get(key) for key in keys]
            arrays = {name: np.stack([answer[name] for answer in answers]) for name in entry.variables}
            dims = {name: (entry.snapshot_dim, *variable.dims) for name, variable in entry.variables.items()}
            dataset = _add(dataset, entry, arrays, dims)
    waiting = [entry for entry in table if isinstance(entry, Derived) and entry.name not in absent]
    # One may need what another gives: go round until nothing new can be derived.
    while ready := [entry for entry in waiting if all(name in dataset for name in entry.needs)]:
        for entry in ready:
            waiting.remove(entry)
            try:
                arrays = entry.derive(context, dataset)
            except UndefinedError as error:
                absent[entry.name] = str(error)
                continue
            dataset = _add(dataset, entry, arrays, {name: variable.dims for name, variable in entry.variables.items()})
    for entry in waiting:
        lacking = [name for name in entry.needs if name not in dataset]
        absent[entry.name] = (
            f"needs {', '.join(lacking)}" if entry.name in wanted else _NOT_ASKED.format(name=entry.name)
        )
    dataset.attrs = _attributes(run, context, absent)
    return dataset


def note_asked(dataset: xr.Dataset, entries: list[SnapshotEntry], snapshots: int | Sequence[int] | None) -> xr.Dataset:
    """The dataset that says of which snapshots of how long a run it is, for `outdated` and `asked_of`."""
    asked = snapshots if snapshots is None or isinstance(snapshots, int) else [int(step) for step in snapshots]
    return dataset.assign_attrs({_LISTING: listing_sha256(entries), _SNAPSHOTS: json.dumps(asked)})


def _add(
    dataset: xr.Dataset, entry: Measurement | Derived, arrays: dict[str, np.ndarray], dims: dict[str, tuple[str, ...]]
) -> xr.Dataset:
    if set(arrays) != set(entry.variables):
        raise ValueError(f"{entry.name} filled {sorted(arrays)}, not {sorted(entry.variables)}")
    new = {}
    for name, variable in entry.variables.items():
        values = np.asarray(arrays[name])
        new[name] = (dims[name], values, _variable_attributes(entry, variable, values))
    return dataset.assign(new)


def _variable_attributes(entry: Measurement | Derived, variable: Variable, values: np.ndarray) -> dict[str, str]:
    attributes = {
        "units": variable.units,
        "long_name": variable.text,
        "text": variable.text,
        "source": entry.source,
        "measurement": entry.name,
    }
    n_missing = int(np.sum(~np.isfinite(values))) if values.dtype.kind == "f" else 0
    if n_missing:
        why = variable.missing or "UNEXPECTED: the measurement gave values that are not finite"
        attributes["missing"] = f"{n_missing} of {values.size} values: {why}"
    return attributes


def _coordinates(context: Context, chosen: list[SnapshotEntry], few: list[SnapshotEntry]) -> dict[str, xr.Variable]:
    model = context.config.model
    rows, positions = context.sampled
    n = context.n_ablation_tokens

    def coordinate(dim: str, values: object, text: str) -> xr.Variable:
        return xr.Variable((dim,), np.asarray(values), {"units": "1", "long_name": text})

    coordinates = {
        "snapshot": coordinate("snapshot", [e.step for e in chosen], "updates before the snapshot"),
        "tokens": coordinate("snapshot", [e.tokens for e in chosen], "tokens predicted in training before"),
        "position": coordinate("position", np.arange(model.n_ctx), "index t of the last token seen, BOS is 0"),
        "token_row": coordinate("token", rows, "held-out row of the token"),
        "token_position": coordinate("token", positions, "index of the last token seen"),
        "token_id": coordinate("token", context.held_out[rows, positions + 1], "id of the token that is predicted"),
    }
    examples = context.held_out[: context.n_examples, 1:].astype(np.int32)
    text = "id of the token that is predicted"
    coordinates["example_id"] = xr.Variable(("example", "position"), examples, {"units": "1", "long_name": text})
    if context.labels is not None:
        labels = context.labels[:, 1:]
        label_rows, label_positions = context.labelled
        counts = [np.sum(labels == i + 1) for i in range(len(context.label_names))]
        coordinates["label"] = coordinate("label", context.label_names, "what the corpus says the token shows")
        coordinates["label_n"] = coordinate("label", counts, "held-out tokens that carry the label")
        coordinates["labelled_row"] = coordinate("labelled", label_rows, "held-out row of the token")
        coordinates["labelled_position"] = coordinate("labelled", label_positions, "index of the last token seen")
        numbers = labels[label_rows, label_positions].astype(np.int32) - 1
        coordinates["labelled_label"] = coordinate("labelled", numbers, "index of the token's label on the axis label")
    if model.n_layers:
        coordinates["layer"] = coordinate("layer", np.arange(model.n_layers), "layer")
        coordinates["head"] = coordinate("head", np.arange(model.n_heads), "head within its layer")
    if few:
        coordinates["selected"] = coordinate("selected", [e.step for e in few], "updates before the snapshot")
        text = "tokens predicted in training before"
        coordinates["selected_tokens"] = coordinate("selected", [e.tokens for e in few], text)
        coordinates["ablated_set"] = coordinate("ablated_set", HEAD_SETS, "heads that are taken away together")
        coordinates["set_kind"] = coordinate("set_kind", SET_KINDS, "heads that are taken away together, by kind")
        coordinates["set_share"] = coordinate("set_share", SHARES, "so large a part of all heads")
        coordinates["copy"] = coordinate("copy", np.arange(1, 5), "which time the random tokens are said")
        coordinates["ablated_token"] = coordinate("ablated_token", np.arange(n), "index on the axis token")
    return coordinates


def _attributes(run: RunDir, context: Context, absent: dict[str, str]) -> dict[str, object]:
    positions = icl_positions(context.config.model.n_ctx)
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run.run_id,
        "held_out_rows": len(context.held_out),
        "icl_early": positions.early,
        "icl_late": positions.late,
        "icl_early_window": list(positions.early_window),
        "icl_late_window": list(positions.late_window),
        "absent": json.dumps(absent, sort_keys=True),
    }


def listing_sha256(entries: list[SnapshotEntry]) -> str:
    """Over the steps and hashes of all snapshots that a run had: it changes when the run goes on."""
    return sha256_of("".join(f"{entry.step} {entry.sha256}\n" for entry in entries))


def listing_stamp(entries: list[SnapshotEntry]) -> dict[str, str]:
    """Attributes that say of which snapshots an analysis over members is, for `outdated`."""
    return {_LISTING: listing_sha256(entries), _SNAPSHOTS: "null"}


def outdated(run: RunDir, dataset: xr.Dataset) -> str | None:
    """What the run has become since it was analyzed, in a sentence; None if nothing. Raises UserError."""
    entries, analyzed = run.read_snapshots(), dataset["snapshot"].values
    known = dataset.attrs.get(_LISTING)  # an analysis of before 2026-11-27 has its snapshots alone
    is_same = known == listing_sha256(entries) if known else not entries or entries[-1].step <= analyzed[-1]
    if is_same:
        return None
    then = f"{len(analyzed)} snapshots up to step {analyzed[-1]} then"
    now = f"{len(entries)} up to step {entries[-1].step} now" if entries else "none now"
    return f"{run.path}: the run has changed since it was analyzed: {then}, {now}"


def asked_of(dataset: xr.Dataset) -> dict[str, Any]:
    """Keyword arguments of `icl_jax.analysis.analyze` that take again what an analysis holds."""
    is_all = not any("not asked for" in why for why in json.loads(dataset.attrs["absent"]).values())
    # What is derived comes by itself.
    taken = {variable.attrs["measurement"] for variable in dataset.data_vars.values()}
    taken &= {entry.name for entry in TABLE if isinstance(entry, Measurement)}
    return {
        "only": None if is_all and not taken & on_request() else sorted(taken),
        "snapshots": json.loads(dataset.attrs.get(_SNAPSHOTS, "null")),
        "n_rows": int(dataset.attrs["held_out_rows"]),
    }


def save_dataset(dataset: xr.Dataset, path: epath.Path) -> None:
    """Write a Zarr v3 group beside `path` and move it there, so that a reader never meets half of one."""
    if is_bucket(path):  # no folder is moved in one go; without the metadata, which come last, it is no analysis
        _write(dataset, path)
        return
    partial, old = path.parent / f".{path.name}.partial", path.parent / f".{path.name}.old"
    for leftover in (partial, old):
        if leftover.exists():
            leftover.rmtree()
    _write(dataset, partial)
    if path.exists():
        path.rename(old)
    partial.rename(path)
    if old.exists():
        old.rmtree()


_TEXTS = "flag_meanings_json"


def _numbered(dataset: xr.Dataset) -> xr.Dataset:
    """Texts as numbers, with their list in an attribute: the Zarr v3 specification has no array of texts."""
    for name, variable in dataset.variables.items():
        if variable.dtype.kind in "UO":
            attributes = {**variable.attrs, _TEXTS: json.dumps(variable.values.tolist())}
            numbers = np.arange(variable.size, dtype=np.int32).reshape(variable.shape)
            dataset = dataset.assign({name: (variable.dims, numbers, attributes)})
    return dataset


def _worded(dataset: xr.Dataset) -> xr.Dataset:
    for name, variable in dataset.variables.items():
        if _TEXTS in variable.attrs:
            attributes = dict(variable.attrs)
            texts = np.array(json.loads(attributes.pop(_TEXTS)))
            dataset = dataset.assign_coords({name: (variable.dims, texts, attributes)})
    return dataset


def _write(dataset: xr.Dataset, path: epath.Path) -> None:
    with warnings.catch_warnings():
        # Consolidated metadata is xarray's fast way in; the Zarr v3 specification has yet to adopt it.
        warnings.simplefilter("ignore")
        _numbered(dataset).to_zarr(str(path), mode="w", zarr_format=3, consolidated=True)
    seal(path)


def load_dataset(path: epath.Path) -> xr.Dataset:
    """What `save_dataset` wrote, checked against its seal and read lazily. Raises UserError: missing or damaged."""
    if not path.exists():
        raise UserError(f"{path}: no analysis yet: icl-jax analyze {path.parent} makes it")
    try:
        check_seal(path)
        with unusable(path, "cannot read the analysis"):
            dataset = xr.open_zarr(str(path), consolidated=True)
            dataset.attrs.pop(ATTRIBUTE, None)
            dataset = _worded(dataset)
    except UserError as error:
        raise UserError(f"{error}; icl-jax analyze makes it anew") from error
    return dataset
