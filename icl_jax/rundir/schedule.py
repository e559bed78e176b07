"""At which steps parameters are kept and probes taken."""

import numpy as np

from icl_jax.config import Config


def snapshot_steps(config: Config) -> list[int]:
    """Steps whose parameters are kept: log-spaced and evenly spaced ones joined, 0 and the last among them.

    Step s means the parameters after s updates. Rounding makes early log-spaced steps coincide, so there are somewhat
    fewer than n_linear + n_log. With `snapshots.keep = "few"` those that are only evenly spaced are left to the probes.
    """
    n_steps, schedule = config.train.n_steps, config.snapshots
    steps = {0, n_steps}
    if schedule.keep == "all":
        steps |= _linear_steps(config)
    if schedule.n_log:
        steps.update(int(s) for s in np.round(np.geomspace(1, n_steps, schedule.n_log)))
    return sorted(steps)


def probe_steps(config: Config) -> list[int]:
    """Steps at which the live measures are taken: evenly spaced, 0 and the last among them; none for n_probes = 0.

    With `snapshots.keep = "few"` those too at which a snapshot would have been kept.
    """
    n_steps, n_probes = config.train.n_steps, config.probes.n_probes
    steps = {n_steps} if n_probes == 1 else {int(s) for s in np.round(np.linspace(0, n_steps, n_probes))}
    if config.snapshots.keep == "few":
        steps |= _linear_steps(config) - set(snapshot_steps(config))
    return sorted(steps)


def _linear_steps(config: Config) -> set[int]:
    n_steps = config.train.n_steps
    return {int(s) for s in np.round(np.linspace(0, n_steps, config.snapshots.n_linear + 1))[1:]}
