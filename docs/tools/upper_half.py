"""Write the tables of docs/upper-half.md: `python docs/tools/upper_half.py [RUN...]`.

They are made from docs/data/upper_half.json. With RUN... behind it these runs, analyzed with what the suite
`upper-half` asks for, are read into it first; of a run with members all of them. A test compares the page.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from made_part import head, replace_between, row

from icl_jax.analysis.dataset import load_dataset
from icl_jax.report.answers import SHOWN_EXAMPLES
from icl_jax.report.seeds import interval
from icl_jax.rundir import RunDir

ROOT = Path(__file__).parents[2]
DATA, PAGE = ROOT / "docs" / "data" / "upper_half.json", ROOT / "docs" / "upper-half.md"
_LABELS = (
    "new_sum", "repeated_sum", "plus", "minus", "larger", "reversed", "translation", "glossary", "pattern",
    "known_pattern", "novel_name",
)  # fmt: skip
_IN_CONTEXT = ("new_sum", "repeated_sum", "plus", "minus", "larger", "reversed")
_SCORES = {
    "novel_name": "label_matching", "literal": "literal_copying_attention",
    "translation": "translation_attention", "pattern": "pattern_matching_attention",
}  # fmt: skip
_LEAST_SEEDS = 3
"""Of fewer each number stands by itself."""
_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

Entry = dict[str, Any]


def read_run(path: Path) -> Iterator[Entry]:
    """What the tables need of a run, or of each of its members."""
    run = RunDir.open(str(path))
    if run.config.members:
        for member in sorted((path / "members").iterdir(), key=lambda of: int(of.name)):
            yield from read_run(member)
        return
    whole, model = load_dataset(run.path / "analysis.zarr"), run.config.model
    data = whole.isel(snapshot=-1)
    labels = [str(label) for label in data["label"].values]

    def rounded(values: Any) -> Any:
        found = np.asarray(values, np.float64)
        return np.where(np.isfinite(found), np.round(found, 4), np.nan).tolist()

    entry: Entry = {
        "layers": model.n_layers, "mlp": model.d_mlp, "seed": run.config.train.seed, "tokens": int(data["tokens"]),
        "answers": {
            label: {
                "by": rounded(data["answer_prob"][i]), "prob": rounded(data["answer_prob_all"][i]),
                "right": rounded(data["answer_right_all"][i]), "token_prob": rounded(data["label_prob"][i]),
                "learned": rounded(whole["answer_tokens_all"][i]), "n": int(data["label_n"][i]),
            }
            for i, label in enumerate(labels)
        },
    }  # fmt: skip
    if model.n_layers:
        scores = {name: data[variable] for name, variable in _SCORES.items()}
        scores["novel_name"] = scores["novel_name"][labels.index("novel_name")]
        entry["heads"] = {name: rounded(values) for name, values in scores.items()}
        entry["same"] = {name: rounded(data[name]) for name in data if str(name).startswith("same_heads_")}
        ablated = whole["ablated_label_prob"].isel(selected=-1)
        entry["ablated"] = {label: rounded(ablated[:, i]) for i, label in enumerate(labels)}
    yield entry


def add(paths: Sequence[str]) -> None:
    """Read runs anew into the data; those that are stored and not given stay."""
    new = [entry for path in paths for entry in read_run(Path(path))]
    kept = {_key(entry): entry for entry in [*(_stored() if DATA.exists() else []), *new]}
    lines = ",\n".join(json.dumps(kept[key]) for key in sorted(kept))
    DATA.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _stored() -> list[Entry]:
    stored: list[Entry] = json.loads(DATA.read_text(encoding="utf-8"))
    return stored


def _key(entry: Entry) -> tuple[int, int, int]:
    return entry["layers"], entry["mlp"], entry["seed"]


def _words(values: Sequence[float]) -> str:
    """`_mean`, and the lowest and highest where they differ."""
    found = [value for value in values if np.isfinite(value)]
    if len(found) < _LEAST_SEEDS:
        return _mean(found)
    low, high = f"{min(found):.2f}", f"{max(found):.2f}"
    return low if low == high else f"{_mean(found)} ({low} to {high})"


def _mean(values: Sequence[float]) -> str:
    """Mean with its 95 % interval over seeds (Student's t)."""
    if len(values) < _LEAST_SEEDS:
        return ", ".join(f"{value:.2f}" for value in values)
    mean, half = interval(np.array(values))
    assert half is not None
    return f"{mean:.2f}" if half < 0.005 else f"{mean:.2f} ± {half:.2f}"


def _learned(tokens: Sequence[float]) -> str:
    found = [value for value in tokens if np.isfinite(value)]
    if not found:
        return "never"
    some = "" if len(found) == len(tokens) else f", {len(found)} of {len(tokens)}"
    return f"{np.median(found) / 1e6:.1f}{some}"


def _title(layers: int, mlp: int) -> str:
    return f"{_COUNTS[layers]} layer{'' if layers == 1 else 's'}{', MLPs' if mlp else ''}"


class _Runs:
    """The stored runs by model."""

    def __init__(self) -> None:
        self.of: dict[tuple[int, int], list[Entry]] = {}
        for entry in _stored():
            self.of.setdefault((entry["layers"], entry["mlp"]), []).append(entry)

    def most(self) -> list[tuple[int, int]]:
        """Models of one and of two layers."""
        return [key for key in self.of if key[0] in (1, 2)]

    def answers(self, key: tuple[int, int], label: str, what: str) -> list[Any]:
        return [entry["answers"][label][what] for entry in self.of[key]]

    def title(self, key: tuple[int, int]) -> str:
        n = len(self.of[key])
        return f"{_title(*key)}: {_COUNTS[n] if n < len(_COUNTS) else n} seed{'' if n == 1 else 's'}"


# What is asked for, of which models, and the probability of the whole answer that says so: at least, or at most.
_GOALS = (
    ("sums said before, 0.95 and more", "repeated_sum", ((2, 0), (2, 256)), 0.95, True),
    ("the same with one layer, at most 0.3", "repeated_sum", ((1, 0),), 0.3, False),
    ("new sums with MLPs, 0.9 and more", "new_sum", ((2, 256), (3, 256)), 0.9, True),
    ("new sums, attention alone: later or below", "new_sum", ((2, 0), (3, 0)), 0.9, True),
    ("translation, 0.9 and more", "translation", ((2, 0), (2, 256)), 0.9, True),
    ("a dictionary made anew, 0.95 and more", "glossary", ((2, 0), (2, 256)), 0.95, True),
    ("patterns of classes, 0.9 and more", "pattern", ((2, 0), (2, 256)), 0.9, True),
    ("new names, 0.9 and more", "novel_name", ((2, 0), (2, 256)), 0.9, True),
    *((f"the rule `{rule}` from examples, 0.9 and more", rule, ((2, 0), (2, 256)), 0.9, True)
      for rule in ("plus", "minus", "larger", "reversed")),
)  # fmt: skip


def _goals(runs: _Runs) -> Iterator[str]:
    yield from head(["goal", "model", "whole answer", "all right", "a token of it", "seeds that miss it"])
    for goal, label, keys, level, at_least in _GOALS:
        for key in (key for key in keys if key in runs.of):
            prob, token = (np.array(runs.answers(key, label, what)) for what in ("prob", "token_prob"))
            missed = (prob < level) if at_least else (prob > level)
            right = _mean(runs.answers(key, label, "right"))
            cells = [_words(prob.tolist()), right, _mean(token.tolist()), f"{missed.sum()} of {len(prob)}"]
            yield row([goal, _title(*key), *cells])


def _ends(runs: _Runs) -> Iterator[str]:
    keys = runs.most()
    yield from head(["whole answers at the end", *(runs.title(key) for key in keys)])
    for label in _LABELS:
        yield row([f"`{label}`", *(_words(runs.answers(key, label, "prob")) for key in keys)])


def _times(runs: _Runs) -> Iterator[str]:
    keys = runs.most()
    yield from head(["M tokens to 0.9, median", *(_title(*key) for key in keys)])
    for label in _LABELS:
        yield row([f"`{label}`", *(_learned(runs.answers(key, label, "learned")) for key in keys)])


def _by_examples(runs: _Runs) -> Iterator[str]:
    shown = ["8 and more" if n == SHOWN_EXAMPLES[-1] else str(n) for n in SHOWN_EXAMPLES]
    yield from head(["examples before", "", *shown, "all right"])
    for label in _IN_CONTEXT:
        for key in (key for key in runs.most() if key[0] == 2):
            by = np.array(runs.answers(key, label, "by"), np.float64)
            cells = [_mean(by[:, n]) if np.isfinite(by[:, n]).all() else "" for n in SHOWN_EXAMPLES]
            yield row([f"`{label}`", _title(*key), *cells, _mean(runs.answers(key, label, "right"))])


def _depths(runs: _Runs) -> Iterator[str]:
    labels = ("new_sum", "plus", "minus", "larger", "reversed", "translation", "glossary", "pattern", "novel_name")
    yield from head(["tokens of answers", "seeds", *(f"`{label}`" for label in labels)])
    for key in sorted(runs.of, key=lambda key: (key[1] > 0, key[0])):
        n = len(runs.of[key])
        yield row([_title(*key), str(n), *(_mean(runs.answers(key, label, "token_prob")) for label in labels)])


def _best(scores: list[list[float]]) -> str:
    values = np.array(scores)
    layer, head = np.unravel_index(values.argmax(), values.shape)
    return f"{layer}.{head}: {values.max():.2f}"


def _heads(runs: _Runs) -> Iterator[str]:
    yield from head(["", "seed", *(f"`{name}`" for name in _SCORES)])
    for key in (key for key in runs.most() if key[0] == 2):
        for entry in runs.of[key]:
            yield row([_title(*key), str(entry["seed"]), *(_best(entry["heads"][name]) for name in _SCORES)])


def _same(runs: _Runs) -> Iterator[str]:
    pairs = {
        "same_heads_literal_translation": "literal copying and translation",
        "same_heads_literal_pattern": "literal copying and patterns",
        "same_heads_translation_pattern": "translation and patterns",
    }  # fmt: skip
    keys = [key for key in runs.most() if key[0] == 2]
    yield from head(["rank correlation over heads", *(_title(*key) for key in keys)])
    for name, title in pairs.items():
        yield row([title, *(_words([entry["same"][name] for entry in runs.of[key]]) for key in keys)])
    for name in ("literal", "pattern", "translation"):
        same = [_share([_is_among(entry["heads"], name) for entry in runs.of[key]]) for key in keys]
        yield row([f"highest head of `{name}` is one of the two for new names", *same])


def _is_among(heads: dict[str, list[list[float]]], name: str) -> bool:
    """Whether the highest head of a score is one of the two highest at new names."""
    copying, score = (np.array(heads[of]).ravel() for of in ("novel_name", name))
    return bool(score.argmax() in np.argsort(copying)[-2:])


def _share(are: Sequence[bool]) -> str:
    return f"{sum(are)} of {len(are)} seeds"


def _ablated(runs: _Runs) -> Iterator[str]:
    yield from head(["", "tokens of answers", "intact", "without the copying heads", "without as many others",
                      "cost of the first less that of the others"])  # fmt: skip
    for key in (key for key in runs.most() if key[0] == 2):
        for label in _LABELS:
            found = np.array([entry["ablated"][label] for entry in runs.of[key]], np.float64)
            cells = [_mean(found[:, i]) for i in range(3)]
            yield row([_title(*key), f"`{label}`", *cells, _words((found[:, 2] - found[:, 1]).tolist())])


TABLES = (_goals, _ends, _times, _by_examples, _depths, _heads, _same, _ablated)


def tables() -> list[list[str]]:
    """The lines of every table of the page."""
    runs = _Runs()
    return [list(table(runs)) for table in TABLES]


def main(paths: Sequence[str]) -> None:
    """Put each table between its marks, `<!-- table N -->` and `<!-- end of table N -->`."""
    if paths:
        add(paths)
    text = PAGE.read_text(encoding="utf-8")
    for number, lines in enumerate(tables()):
        begin, end = f"<!-- table {number} -->", f"<!-- end of table {number} -->"
        text = replace_between(text, begin, end, "\n".join(lines))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
