"""`icl-jax verify`."""

from rich.console import Console

from icl_jax.display import say
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import quiet_orbax
from icl_jax.rundir.verify import problems


def verify(path: str, console: Console) -> int:
    """Print what is wrong, a line each, and return 1; or that all is well, and return 0."""
    quiet_orbax()
    run = RunDir.open(path)
    n_problems = 0
    for problem in problems(run):
        n_problems += 1
        say(console, problem)
    if n_problems:
        return 1
    record, entries = run.load_record(), run.manifest.read()
    n_steps = run.config.train.n_steps
    say(
        console,
        f"{run.path}: good: {record.sizes['step']} of {n_steps} steps x {record.sizes['position']} positions recorded,"
        f" {len(entries)} snapshots with the hashes of the manifest",
    )
    return 0
