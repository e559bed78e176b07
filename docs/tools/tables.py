"""Make the tables of README and docs that are numbers of runs and of the calibration: `python docs/tools/tables.py`.

They are made from docs/data/: `runs.csv`, what the detector of changes found in each curve of the runs of
`icl-jax reproduce stories`, `quick`, `python` and `tasks` and where the curve ends, and `change_points.json`, what
`python -m benchmarks.change_points --out docs/data/change_points.json` writes. With RUN... behind it the rows of these
runs are read anew from their analysis.zarr first. A test compares the pages with what is made.
"""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs" / "data"
_FIELDS = ("run", "curve", "at_end", "p", *(f"{what}{end}" for what in ("start", "end", "size", "share")
                                            for end in ("", "_low", "_high")))  # fmt: skip
_LABELS = ("bigram", "known_name", "novel_name", "repeated_sum", "glossary", "new_sum")
_MODELS = {
    "stories-0l": "no layers", "stories-1l": "one layer", "stories-1l-smeared": "one layer, smeared keys",
    "stories-2l": "two layers", "stories-2l-mlp": "two layers with MLPs", "stories-3l": "three layers",
}  # fmt: skip
_ICL, _LOSS = "ICL", "loss"
_QUICK = dict.fromkeys(("repeats-0l", "repeats-1l", "repeats-2l", "repeats-1l-smeared"), (_ICL, "p(phrase_again)")) | {
    f"{run}-seed40": (_ICL, "p(novel_name)") for run in ("stories-0l", "stories-1l", "stories-2l", "stories-1l-smeared")
}  # fmt: skip
_PYTHON = ("python-1l", "python-2l-seed0", "python-2l-seed1", "python-2l-seed2", "python-3l", "python-1l-smeared")
_TASKS = {
    "markov-3": (_LOSS, _ICL), "triggers-5": ("p(output_again)", _ICL), "classes-icl": ("p(new_class)", _ICL),
    "classes-iwl": ("p(in_weights)", "p(new_class)", _ICL),
}  # fmt: skip

Row = dict[str, str]
Rows = dict[tuple[str, str], list[Row]]


def read_run(path: Path) -> Iterator[Row]:
    """Rows of one run: one for each change, and one for a curve without. Of one not analyzed, the live ICL score."""
    from icl_jax.analysis.dataset import load_dataset
    from icl_jax.maths.finding import find_in_record
    from icl_jax.measures.phase_change import finding_of
    from icl_jax.rundir import RunDir

    run = RunDir.open(str(path))
    if (run.path / "analysis.zarr").exists():
        data = load_dataset(run.path / "analysis.zarr")
        curves = [(_ICL, finding_of(data), data["icl_windowed"].values)]
        if "loss_change_p" in data:
            curves.append((_LOSS, finding_of(data, "loss_change"), data["loss_by_position"].values.mean(axis=1)))
        for i, label in enumerate(data["label"].values.tolist() if "label_change_p" in data else ()):
            found = finding_of(data, "label_change", label=i)
            curves.append((f"p({label})", found, data["label_prob"].values[:, i]))
    else:
        record = run.load_record()
        only = find_in_record(record)
        assert only is not None
        curves = [(_ICL, only, record["icl_windowed"].values)]
    for curve, finding, values in curves:
        row = {"run": path.name, "curve": curve, "at_end": f"{values[-1]:.4g}", "p": f"{finding.p_value:.1g}"}
        if not finding.changes:
            yield row
        for change in finding.changes:
            numbers = dict[str, str]()
            for what in ("start", "end", "size", "share"):
                of_it = (getattr(change, what), *getattr(change, f"{what}_interval"))
                numbers |= {f"{what}{end}": f"{x:.6g}" for end, x in zip(("", "_low", "_high"), of_it, strict=True)}
            yield row | numbers


def read_data() -> Rows:
    """Rows of the stored runs, by run and curve."""
    found: Rows = {}
    with (DATA / "runs.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault((row["run"], row["curve"]), []).append(row)
    return found


def add(paths: list[str]) -> None:
    """Read runs anew into the data; those that are stored and not given stay."""
    new = [row for path in paths for row in read_run(Path(path))]
    names = {row["run"] for row in new}
    kept = [row for rows in read_data().values() for row in rows if row["run"] not in names]
    with (DATA / "runs.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _FIELDS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(kept + new, key=lambda row: row["run"]))


def _millions(row: Row, what: str, *, interval: bool = True) -> str:
    value, low, high = (float(row[f"{what}{end}"]) for end in ("", "_low", "_high"))
    if not np.isfinite(value):
        return "still going on"
    words = f"{value / 1e6:.2f}"
    return f"{words} ({low / 1e6:.2f} to {high / 1e6:.2f})" if interval else words


def _size(row: Row) -> str:
    value, low, high = (float(row[f"size{end}"]) for end in ("", "_low", "_high"))
    digits = 2 if abs(value) >= 0.1 else 3
    return f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _changes(rows: Rows, curves: dict[str, tuple[str, ...]]) -> list[str]:
    """A row for each change, and one for a curve without."""
    lines = ["| curve | start, M tokens | end, M tokens | size | share | p |", "| --- | --- | --- | --- | --- | --- |"]
    for run, names in curves.items():
        for name in names:
            for row in rows[run, name]:
                found = ["none", "", "", ""]
                if row["start"]:
                    share = f"{100 * float(row['share']):.0f} %"
                    found = [_millions(row, "start"), _millions(row, "end"), _size(row), share]
                lines.append(f"| {run}: {name} | {' | '.join(found)} | {row['p']} |".replace("|  |  |  |", "| | | |"))
    return lines


def _over_seeds(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    if max(values) - min(values) > 0.3:
        return ", ".join(f"{value:.2f}" for value in sorted(values))
    return low if low == high else f"{low} to {high}"


def _ends(rows: Rows, model: str, label: str) -> list[float]:
    runs = sorted(run for run, curve in rows if curve == f"p({label})" and run.rpartition("-seed")[0] == model)
    return [float(rows[run, f"p({label})"][0]["at_end"]) for run in runs]


def _behaviours(rows: Rows) -> list[str]:
    lines = [f"| | {' | '.join(f'`{label}`' for label in _LABELS)} |", "|---|---|---|---|---|---|---|"]
    counts = {3: "three", 8: "eight"}
    for model, title in _MODELS.items():
        ends = [_ends(rows, model, label) for label in _LABELS]
        lines.append(f"| {title}, {counts[len(ends[0])]} seeds | {' | '.join(map(_over_seeds, ends))} |")
    return [*lines, "| floor of the grammar | 0.90 | 1 | 1 | 1 | 1 | 1 |"]


def _eight_seeds(rows: Rows) -> list[str]:
    labels = ("known_name", "novel_name", "glossary", "repeated_sum")
    head = " | ".join(f"`{label}`" for label in labels)
    lines = [f"| seed | {head} | ICL score |", "|---|---|---|---|---|---|"]

    def windows(found: list[Row]) -> str:
        return ", ".join(
            f"{_millions(row, 'start', interval=False)} to {_millions(row, 'end', interval=False)}"
            for row in found if row["start"]
        ) or "none"  # fmt: skip

    for seed in range(40, 48):
        run = f"stories-2l-seed{seed}"
        cells = [
            f"{windows(rows[run, f'p({label})'])}; {float(rows[run, f'p({label})'][0]['at_end']):.2f}"
            for label in labels
        ]
        lines.append(f"| {seed} | {' | '.join(cells)} | {windows(rows[run, _ICL])} |")
    return lines


def _readme(rows: Rows) -> list[str]:
    names = ('"green" → "grass"', '"Doctor Smith … Doctor" → "Smith"', 'a new name, "Gigamuru", again', "a new sum")
    lines = [f"| | {' | '.join(names)} |", "|---|---|---|---|---|"]
    for model in ("stories-0l", "stories-1l", "stories-1l-smeared", "stories-2l"):
        ends = (_ends(rows, model, label) for label in ("bigram", "known_name", "novel_name", "new_sum"))
        lines.append(f"| {_MODELS[model]} | {' | '.join(map(_over_seeds, ends))} |")
    return lines


def tables() -> list[tuple[str, list[str]]]:
    """Every table that is made: the page that it stands in, and its lines."""
    from benchmarks.change_points import null_table, step_table

    rows = read_data()
    calibration = json.loads((DATA / "change_points.json").read_text(encoding="utf-8"))
    smooth, steps = list(null_table(calibration["smooth"])), list(step_table(calibration["steps"]))
    return [
        ("README.md", _readme(rows)),
        ("docs/change-point.md", smooth),
        ("docs/change-point.md", steps),
        ("docs/change-point.md", _changes(rows, _QUICK)),
        ("docs/measures.md", smooth),
        ("docs/measures.md", steps),
        ("docs/reproduction.md", _behaviours(rows)),
        ("docs/reproduction.md", _eight_seeds(rows)),
        ("docs/reproduction.md", _changes(rows, dict.fromkeys((r for r in _PYTHON if (r, _ICL) in rows), (_ICL,)))),
        ("docs/tasks.md", _changes(rows, _TASKS)),
    ]


def main(paths: list[str]) -> None:
    """Put each table in the place of the one with the same head."""
    if paths:
        add(paths)
    for page, lines in tables():
        path = ROOT / page
        old = path.read_text(encoding="utf-8").splitlines()
        first = old.index(lines[0])
        last = next(i for i in range(first, len(old) + 1) if i == len(old) or not old[i].startswith("|"))
        path.write_text("\n".join([*old[:first], *lines, *old[last:]]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
