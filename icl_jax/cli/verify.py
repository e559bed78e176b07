"""`icl-jax verify`."""

from rich.console import Console

from icl_jax.display import say
from icl_jax.rundir import RunDir
from icl_jax.rundir.seals import Tally
from icl_jax.rundir.verify import problems


def verify(path: str, console: Console) -> int:
    """Print what is wrong, a line each, and return 1; or what was checked, and return 0."""
    run, tally = RunDir.open(path), Tally()
    n_problems = 0
    for problem in problems(run, tally):
        n_problems += 1
        say(console, problem)
    if n_problems:
        return 1
    if run.imported is not None:
        say(console, f"{run.path}: good: imported from {run.imported['source']}, {_checked(tally)}")
        return 0
    record = run.load_record()
    steps = f"{record.sizes['step']} of {run.config.train.n_steps} steps x {record.sizes['position']} positions"
    say(console, f"{run.path}: good: {steps} recorded, {_checked(tally)}")
    for name in tally.unsealed:
        again = "; icl-jax analyze seals it" if name == "analysis.zarr" else ""
        say(console, f"{run.path / name}: has no seal, being of before 2026-11-27: a lost chunk would not show{again}")
    return 0


def _checked(tally: Tally) -> str:
    counts = [
        f"{tally.n_snapshots} snapshots with the hashes of the manifest",
        f"{tally.n_states} states with their checksums",
        *(f"{name} as sealed ({n} arrays)" for name, n in tally.sealed.items()),
    ]
    return ", ".join(counts)
