"""Write the tables of docs/causes.md: `python docs/tools/causes.py SUITE_FOLDER`, of `icl-jax reproduce causes`.

The numbers of every seed go to docs/data/causes.csv, causes-replaced.csv and causes-ablated.csv first, and a test
compares the page with what is made of them. Without SUITE_FOLDER the tables are made of the stored numbers. A run that
is not there, or not at its end, has no row.
"""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from made_part import head, replace_part, row

from icl_jax.config.builtin import suite_file
from icl_jax.maths.activations import as_jax
from icl_jax.maths.head_scores import HEAD_THRESHOLD
from icl_jax.measures.label_matching import label_matching
from icl_jax.model.loss import losses
from icl_jax.model.params import Params
from icl_jax.report.causes import Replaced, Seed, as_row, causes_rows, replaced, seeds_of
from icl_jax.rundir import RunDir
from icl_jax.suites.suite import load_suite

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs" / "data"
REMOVED = "heads-removed"
REDUNDANT = "singh-2l"


@dataclass(frozen=True, slots=True)
class Ablated:
    """A head of the last layer of one seed at the end of training, and the loss of the query without it."""

    run: str
    seed: int
    head: int
    matching: float
    """Attention to the right label at the query."""
    whole: float
    """Loss of the query, nats, with all heads, without this one, with none of those that have formed, with it alone."""
    without: float
    without_formed: float
    alone: float


def ablated(run: RunDir) -> list[Ablated]:
    """Of every seed of a run, each head of its last layer."""
    config = run.config
    layer, n_heads = config.model.n_layers - 1, config.model.n_heads

    @jax.jit
    def loss(params: Params, rows: jax.Array, kept_H: jax.Array) -> jax.Array:
        def tap(_name: str, index: int, value: jax.Array) -> jax.Array:
            return value * kept_H[None, None, :, None] if index == layer else value

        loss_BT = losses(params, rows, config.model, tap=tap, seen=("result",))
        return jnp.mean(loss_BT[:, config.train.loss_from :])

    looks = jax.jit(lambda params, rows, labels: label_matching(params, rows, labels, 1, config.model)[0, layer])
    found, every = [], np.eye(n_heads, dtype=np.float32)
    for one in run.each():
        held_out = one.load_held_out()
        assert held_out.labels is not None
        rows, labels = jnp.asarray(held_out.rows[:512]), jnp.asarray(held_out.labels[:512])
        params = as_jax(one.load_params(one.read_snapshots()[-1].step))
        matching = np.asarray(looks(params, rows, labels))
        masks = np.stack([np.ones(n_heads), matching < HEAD_THRESHOLD, *(1 - every), *every]).astype(np.float32)
        whole, none, *each = (float(loss(params, rows, jnp.asarray(mask))) for mask in masks)
        found += [
            Ablated(
                run.path.name, one.config.train.seed, h, float(matching[h]), whole, each[h], none, each[n_heads + h]
            )
            for h in range(n_heads)
        ]  # fmt: skip
    return found


def _write(name: str, rows: Sequence[Any]) -> None:
    written = [as_row(one) for one in rows]
    with (DATA / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(written[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(written)


def _read(name: str, kind: Any) -> list[Any]:
    types = kind.__annotations__
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return [kind(**{key: types[key](x) for key, x in each.items()}) for each in csv.DictReader(file)]


def measure(folder: Path) -> None:
    """Read the runs of the suite's folder anew. Raises UserError where a run is missing or damaged."""
    titles, runs = {}, {}
    for one in load_suite(suite_file("causes")).members:
        if (folder / one.name / "record.zarr").exists():
            run = RunDir.open(str(folder / one.name))
            if run.load_record().sizes["step"] == run.config.train.n_steps:
                titles[one.name], runs[one.name] = one.title, run
    _write("causes.csv", seeds_of(list(runs.values()), list(titles.values())))
    if REMOVED in runs:
        _write("causes-replaced.csv", replaced(runs[REMOVED]))
    if REDUNDANT in runs:
        _write("causes-ablated.csv", ablated(runs[REDUNDANT]))


def _replaced(found: Sequence[Replaced]) -> list[str]:
    lines = head(["seed", "removed at, M tokens", "removed", "others later", "of the same layer", "first of them",
                  "just before, nats", "just after", "at the end"])  # fmt: skip
    for one in found:
        first = f"{one.first_new / 1e6:.2f}" if np.isfinite(one.first_new) else "never"
        values = [f"{x:.2f}" for x in (one.before, one.after, one.last)]
        counts = map(str, (one.n_removed, one.n_new, one.n_same_layer))
        lines.append(row([str(one.seed), f"{one.at / 1e6:.2f}", *counts, first, *values]))
    return lines


def _ablated(found: Sequence[Ablated]) -> list[str]:
    lines = head(["seed", "heads that formed", "loss", "without one of them, at most", "without all of them",
                  "best head alone"])  # fmt: skip
    for seed in sorted({one.seed for one in found}):
        each = [one for one in found if one.seed == seed]
        formed = [one for one in each if one.matching >= HEAD_THRESHOLD]
        worst = f"{max(one.without for one in formed):.2f}" if formed else ""
        lines.append(row([str(seed), str(len(formed)), f"{each[0].whole:.2f}", worst, f"{each[0].without_formed:.2f}",
                            f"{min(one.alone for one in each):.2f}"]))  # fmt: skip
    return lines


def tables() -> str:
    """The part of the page that is made, of the stored numbers."""
    header, rows = causes_rows(_read("causes.csv", Seed))
    parts = [*head(header), *map(row, rows)]
    for name, kind, title, made in (
        ("causes-replaced.csv", Replaced, "Induction heads of `repeats-2l` removed the moment they form:", _replaced),
        (
            "causes-ablated.csv",
            Ablated,
            "The heads of layer 1 with five tokens, at the end, nats of the query:",
            _ablated,
        ),
    ):
        if (DATA / name).exists():
            parts += ["", title, "", *made(_read(name, kind))]
    return "\n".join(parts)


def main(folders: list[str]) -> None:
    """Measure, where a folder is given, and put the tables into the page."""
    if folders:
        measure(Path(folders[0]))
    replace_part(ROOT / "docs" / "causes.md", "causes.py", tables())


if __name__ == "__main__":
    main(sys.argv[1:])
