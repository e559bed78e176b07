"""`icl-jax probe`: one text, token by token."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from icl_jax import process
from icl_jax.analysis.checks import text_ids
from icl_jax.config import UserError
from icl_jax.display import say
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import quiet_orbax

_COLUMN_GAP = "  "


@dataclass(frozen=True, kw_only=True)
class ProbeArgs:
    """Arguments of `icl-jax probe`."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    text: Annotated[Positional[str], tyro.conf.arg(metavar="TEXT")]
    """What the model reads after BOS. Where the corpus has no tokenizer: token ids such as "5 17 5"."""
    step: int = -1
    """Snapshot; -1: those before and after the phase change where the analysis found one, else the last."""
    top: int = 5
    """Predictions to show at each token."""
    heads: int = 3
    """Heads to show at each token."""


def probe(args: ProbeArgs, console: Console) -> int:
    """Print a line for each token. Returns the exit status 0. Raises UserError."""
    for name in ("top", "heads"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} = {getattr(args, name)}: must be 1 or more")
    quiet_orbax()
    run = RunDir.open(args.run).one()
    text_ids(run, args.text)
    run.snapshots()
    if args.step != -1:
        run.snapshot(args.step)
    process.configure_jax(process.cpu_count())
    process.devices()
    from icl_jax.analysis.probe import probe

    found = probe(run, args.text, None if args.step == -1 else args.step)
    shown = [_quoted(token) for token in found.vocabulary]
    last, model = found.looks[-1], run.config.model
    top = last.top(args.top)
    columns = {"": [str(t) for t in range(len(found.ids) + 1)], "token": [*(shown[i] for i in found.ids), "(next)"]}
    for look in found.looks:
        columns[f"loss at {look.step}"] = ["", *(f"{loss:.2f}" for loss in look.attribution.loss_nats), ""]
    predicted = (zip(ids, probs[ids], strict=True) for ids, probs in zip(top, last.probs, strict=True))
    columns["predicted"] = ["", *(_COLUMN_GAP.join(f"{shown[i]} {p:.2f}" for i, p in pairs) for pairs in predicted)]
    terms = last.attribution
    if model.n_layers:
        columns["heads for the token"] = ["", *(_heads(heads, args.heads) for heads in np.asarray(terms.heads)), ""]
    columns["embedding"] = ["", *(f"{value:+.1f}" for value in terms.embedding), ""]
    if model.d_mlp:
        columns["MLPs"] = ["", *(f"{value:+.1f}" for value in terms.mlps.sum(axis=-1)), ""]
    if {"b_O", "b_U"} & set(model.biases):
        columns["biases"] = ["", *(f"{value:+.1f}" for value in terms.biases), ""]
    if found.outdated is not None:
        say(console, f"{found.outdated}: icl-jax analyze measures what is new")
    say(console, f"{run.path}: {_title([look.step for look in found.looks])}")
    _print_table(console, columns)
    for look in found.looks:
        say(console, f"mean loss at step {look.step}: {look.attribution.loss_nats.mean():.3f} nats")
    return 0


def _title(steps: list[int]) -> str:
    if len(steps) == 1:
        return f"step {steps[0]}; losses in nats, terms of the true token's logit"
    return (
        f"steps {steps[0]} and {steps[1]}, before and after the phase change; losses in nats; predictions and terms of "
        f"the true token's logit at {steps[1]}"
    )


def _quoted(token: str) -> str:
    """A token whose edges could not be seen, in quotes."""
    return token if token and token == token.strip() else f"'{token}'"


def _heads(values: np.ndarray, n: int) -> str:
    """The heads that add most to the token's logit, as layer.head and what it adds."""
    order = np.argsort(-values, axis=None, kind="stable")[:n]
    pairs = zip(*np.unravel_index(order, values.shape), strict=True)
    return _COLUMN_GAP.join(f"{layer}.{head} {values[layer, head]:+.1f}" for layer, head in pairs)


def _print_table(console: Console, columns: dict[str, list[str]]) -> None:
    """A table on a terminal, folded to its width; elsewhere lines with aligned columns, however long."""
    is_number = {name: name == "" or name.startswith("loss") or name in ("embedding", "MLPs") for name in columns}
    rows = list(zip(*columns.values(), strict=True))
    if console.is_terminal:
        table = Table(box=None, pad_edge=False)
        for name in columns:
            table.add_column(Text(name), justify="right" if is_number[name] else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
        return
    widths = [max(map(len, [name, *cells])) for name, cells in columns.items()]
    for row in [tuple(columns), *rows]:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number.values(), strict=True)
        )
        say(console, _COLUMN_GAP.join(cells).rstrip())
