"""`icl-jax reproduce`: the comparison of the papers' Arguments 1 and 2, in minutes."""

import signal
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from icl_jax.cli import process
from icl_jax.cli.arguments import find_config
from icl_jax.cli.train import default_cpu_devices

# Config, and what the picture calls it.
_RUNS = {
    "repeats-1l": "one layer",
    "repeats-2l": "two layers",
    "repeats-1l-smeared": "one layer, smeared keys",
}


def reproduce(out: str, console: Console) -> int:
    """Train the runs that are not complete under `out`, draw `out`/phase_change.png and print what it shows."""
    configs = {name: find_config(name)[1] for name in _RUNS}
    process.configure_jax(min(default_cpu_devices(config, process.cpu_count()) for config in configs.values()))
    from icl_jax.cli.data import open_corpus
    from icl_jax.report.phase_change import load_curve, plot_phase_change
    from icl_jax.train import session  # after JAX is configured

    for name, config in configs.items():
        outcome = session.run(config, str(Path(out) / name), console, open_corpus=open_corpus, argv=sys.argv)
        if outcome.signum:
            console.print(f"stopped at step {outcome.step} of {name}; the same command goes on from there")
            return 130 if outcome.signum == signal.SIGINT else 0
    curves = [load_curve(str(Path(out) / name), title) for name, title in _RUNS.items()]
    picture = Path(out) / "phase_change.png"
    plot_phase_change(curves, picture)

    table = Table(Column("model", no_wrap=True), "phase change", "ICL score", "best prefix matching", box=None)
    for curve in curves:
        start, end = (curve.tokens[i] / 1e6 for i in (curve.change.start, curve.change.end))
        first, last = curve.before_after()
        icl = curve.record["icl_windowed"].values
        matching = curve.prefix_matching
        table.add_row(
            curve.name,
            f"{start:.1f} to {end:.1f} M tokens" if curve.has_induction else "none",
            f"{icl[first]:.2f} -> {icl[last]:.2f}",
            f"{matching[first]:.2f} -> {matching[last]:.2f}",
        )
    console.print(table)
    console.print(f"the picture: {picture}", markup=False, highlight=False, soft_wrap=True)
    return 0
