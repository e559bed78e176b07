"""How far `icl_jax.maths.change_point` can be trusted: synthetic curves of known truth. Makes the table of its page.

    python -m benchmarks.change_points                # 500 curves a kind
    python -m benchmarks.change_points --null         # how many smooth curves reach a p-value

Curves are in nats, over a run of 1 to 10 M tokens, with 16 to 400 snapshots (log-uniform), even ones or, in half of the
curves, with a third of them spaced by logarithm as in a run's schedule. Noise is up to 0.3 nats, white unless it says
otherwise.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from scipy.optimize import nnls
from scipy.special import ndtr, ndtri

from icl_jax.maths.change_point import ChangePoints, change_points
from icl_jax.maths.step_search import smooth_columns

RISE = 2 * np.log(9)
N_SNAPSHOTS = (16, 400)
ALPHA = 0.03
"""Chance of a change in a smooth curve that is asked for."""
N_CORNERS = 64
N_TOGETHER = 24
"""Curves that are looked at together: three scores of eight heads."""


@dataclass(frozen=True)
class Args:
    """What to make."""

    curves: int = 500
    """Curves a kind."""
    seed: int = 0
    """Of the curves."""
    null: bool = False
    """Print the tail of the statistic in place of the table."""
    alpha: float = ALPHA
    """Chance of a change in a smooth curve that is asked for."""
    only: str = ""
    """Kinds whose name has this in it; all when empty."""
    out: Path = Path("runs/bench/change_points.json")
    """Where the JSON goes."""


@dataclass(frozen=True)
class Run:
    """Where a synthetic run was looked at."""

    tokens: np.ndarray
    warmup: float
    """Part of the run."""

    @property
    def u(self) -> np.ndarray:
        return self.tokens / self.tokens[-1]

    @property
    def spent(self) -> np.ndarray:
        """Cumulative learning rate, from 0 to 1: exact, not from the snapshots."""
        fine = np.linspace(0, 1, 5001)
        total = np.concatenate([[0.0], np.cumsum(rate_at(fine, self.warmup)[1:])])
        return np.interp(self.u, fine, total / total[-1])

    @property
    def spacing(self) -> float:
        """Of most snapshots."""
        return float(np.median(np.diff(self.u)))


@dataclass(frozen=True)
class Truth:
    """A curve and the steps in it: (start, end, size) in parts of the run and nats."""

    run: Run
    curve: np.ndarray
    steps: tuple[tuple[float, float, float], ...] = ()
    clean: np.ndarray | None = None
    """In units of the noise and without it, where it is white."""


def rate_at(u: np.ndarray, warmup: float) -> np.ndarray:
    rise = np.minimum(u / warmup, 1)
    return rise * (0.1 + 0.9 * (1 + np.cos(np.pi * np.clip((u - warmup) / (1 - warmup), 0, 1))) / 2)


def some_run(rng: np.random.Generator, n: int = 0) -> Run:
    n = n or round(np.exp(rng.uniform(*np.log(N_SNAPSHOTS))))
    warmup = rng.uniform(0.02, 0.2)
    u = np.linspace(0, 1, n)
    if rng.random() < 0.5:
        u = np.unique(np.concatenate([[0.0], np.geomspace(0.003, 1, n // 3), np.linspace(0, 1, n - n // 3)]))
    return Run(u * rng.uniform(1e6, 1e7), warmup)


def smooth(rng: np.random.Generator, clock: np.ndarray) -> np.ndarray:
    """A power law or an exponential that falls by 1, over most of the run or at once."""
    rate = np.exp(rng.uniform(np.log(1), np.log(50)))
    curve = np.exp(-rate * clock) if rng.random() < 0.5 else (1 + rate * clock) ** -rng.uniform(0.3, 1.5)
    return curve - curve[0]


def noise(rng: np.random.Generator, n: int, sd: float, correlation: float = 0.0) -> np.ndarray:
    white = rng.normal(size=n)
    for i in range(1, n):
        white[i] = correlation * white[i - 1] + np.sqrt(1 - correlation**2) * white[i]
    return sd * white


def logistic(u: np.ndarray, start: float, end: float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip((u - (start + end) / 2) * RISE / (end - start), -500, 500)))


def flat(rng: np.random.Generator) -> Truth:
    run = some_run(rng)
    return Truth(run, noise(rng, len(run.u), rng.uniform(0.001, 0.3)))


def wander(rng: np.random.Generator) -> Truth:
    run = some_run(rng)
    return Truth(run, noise(rng, len(run.u), rng.uniform(0.001, 0.3), rng.uniform(0.3, 0.8)))


def linear(rng: np.random.Generator) -> Truth:
    run = some_run(rng)
    return Truth(run, -rng.uniform(0.2, 3) * run.u + noise(rng, len(run.u), rng.uniform(0, 0.3)))


def power_law(rng: np.random.Generator) -> Truth:
    run = some_run(rng)
    fall = (1 + np.exp(rng.uniform(0, 6)) * run.u) ** -rng.uniform(0.2, 2)
    return Truth(run, rng.uniform(0.2, 5) * fall + noise(rng, len(run.u), rng.uniform(0, 0.3)))


def exponential(rng: np.random.Generator) -> Truth:
    run = some_run(rng)
    fall = np.exp(-np.exp(rng.uniform(0, 4.5)) * run.u)
    return Truth(run, rng.uniform(0.2, 5) * fall + noise(rng, len(run.u), rng.uniform(0, 0.3)))


def schedule(rng: np.random.Generator) -> Truth:
    run = some_run(rng)
    return Truth(run, rng.uniform(0.2, 5) * smooth(rng, run.spent) + noise(rng, len(run.u), rng.uniform(0, 0.3)))


def noiseless(rng: np.random.Generator) -> Truth:
    run = some_run(rng)
    clock = run.spent if rng.random() < 0.5 else run.u
    return Truth(run, rng.uniform(0.2, 5) * (smooth(rng, clock) if rng.random() < 0.7 else -run.u))


def one_step(rng: np.random.Generator, ratio: float, n: int = 0, correlation: float = 0.0) -> Truth:
    """A step `ratio` times the noise, on top of a smooth fall that is half or twice as large, or of none."""
    run = some_run(rng, n)
    width = np.exp(rng.uniform(np.log(0.02), np.log(0.15)))
    start = rng.uniform(0.1, 0.9 - width)
    size = rng.uniform(0.2, 1.5)
    curve = rng.choice([0.0, 0.5, 2.0]) * size * smooth(rng, run.spent) - size * logistic(run.u, start, start + width)
    sd = size / ratio if np.isfinite(ratio) else 0.0
    clean = curve / sd if sd and not correlation else None
    return Truth(run, curve + noise(rng, len(run.u), sd, correlation), ((start, start + width, -size),), clean)


def two_steps(rng: np.random.Generator) -> Truth:
    """Two apart by a tenth of the run and more."""
    run = some_run(rng)
    steps = []
    for low in (0.1, 0.55):
        width = np.exp(rng.uniform(np.log(0.02), np.log(0.12)))
        start = rng.uniform(low, low + 0.3 - width)
        steps.append((start, start + width, -rng.uniform(0.5, 1.0)))
    curve = 0.5 * smooth(rng, run.spent) + sum(size * logistic(run.u, a, b) for a, b, size in steps)
    return Truth(run, curve + noise(rng, len(run.u), 0.5 / 8), tuple(steps))


def in_warmup(rng: np.random.Generator) -> Truth:
    """A step of ten times the noise that begins and ends within the warm-up, of 48 snapshots and more."""
    n = max(round(np.exp(rng.uniform(*np.log(N_SNAPSHOTS)))), 48)
    run = some_run(rng, n)
    run = Run(run.tokens, 0.2)
    width = rng.uniform(0.02, 0.06)
    start = rng.uniform(0.06, 0.2 - width)
    size = rng.uniform(0.2, 1.5)
    curve = 0.3 * size * smooth(rng, run.spent) - size * logistic(run.u, start, start + width)
    return Truth(run, curve + noise(rng, len(run.u), size / 10), ((start, start + width, -size),))


def cut_off(rng: np.random.Generator) -> Truth:
    """The run ends when a half to four fifths of the step are done; what it has done is 8 times the noise."""
    run = some_run(rng)
    width = rng.uniform(0.05, 0.2)
    done = rng.uniform(0.5, 0.8)
    place = 1 - np.log(done / (1 - done)) * width / RISE
    size = rng.uniform(0.2, 1.5)
    step = size * logistic(run.u, place - width / 2, place + width / 2)
    curve = rng.choice([0.0, 0.5]) * size * smooth(rng, run.spent) - step
    sd = (step[-1] - step[0]) / 8
    truth = (place - width / 2, place + width / 2, -float(step[-1] - step[0]))
    return Truth(run, curve + noise(rng, len(run.u), sd), (truth,))


def linear_or_power(rng: np.random.Generator, n: int) -> Truth:
    run = some_run(rng, n)
    fall = run.u if rng.random() < 0.5 else 1 - (1 + np.exp(rng.uniform(0, 6)) * run.u) ** -rng.uniform(0.2, 2)
    return Truth(run, -rng.uniform(0.2, 5) * fall + noise(rng, len(run.u), rng.uniform(0, 0.3)))


def corner(rng: np.random.Generator) -> Truth:
    """Falls evenly and then stays; in half of the curves it rises again."""
    run = some_run(rng)
    at, size = rng.uniform(0.2, 0.8), rng.uniform(0.2, 3)
    rise = rng.choice([0.0, 0.5]) * np.maximum(run.u - at, 0)
    sd = size / np.exp(rng.uniform(np.log(3), np.log(100)))
    return Truth(run, size * (rise - np.minimum(run.u, at) / at) + noise(rng, len(run.u), sd))


NULLS: dict[str, Callable[[np.random.Generator], Truth]] = {
    "no change": flat,
    "no change, noise that wanders": wander,
    "linear": linear,
    "power law": power_law,
    "exponential": exponential,
    "power law or exponential under warm-up and cosine": schedule,
    "the same and lines, without noise": noiseless,
    "linear or power law, 16 snapshots": lambda rng: linear_or_power(rng, 16),
    "linear or power law, 30 snapshots": lambda rng: linear_or_power(rng, 30),
    "linear or power law, 50 snapshots": lambda rng: linear_or_power(rng, 50),
    "an even fall with a corner": corner,
}
STEPS: dict[str, Callable[[np.random.Generator], Truth]] = {
    "step, no noise": lambda rng: one_step(rng, np.inf),
    "step, 20 times the noise": lambda rng: one_step(rng, 20),
    "step, 10 times": lambda rng: one_step(rng, 10),
    "step, 5 times, 16 to 400 snapshots": lambda rng: one_step(rng, 5),
    "step, 5 times, 16 snapshots": lambda rng: one_step(rng, 5, 16),
    "step, 5 times, 30 snapshots": lambda rng: one_step(rng, 5, 30),
    "step, 5 times, 50 snapshots": lambda rng: one_step(rng, 5, 50),
    "step, 5 times, 100 snapshots": lambda rng: one_step(rng, 5, 100),
    "step, 5 times, 200 snapshots": lambda rng: one_step(rng, 5, 200),
    "step, 5 times, 400 snapshots": lambda rng: one_step(rng, 5, 400),
    "step, 10 times a noise that wanders": lambda rng: one_step(rng, 10, correlation=0.6),
    "step in the warm-up, 10 times": in_warmup,
    "two steps, 8 to 16 times": two_steps,
    "cut off in the middle, 8 times": cut_off,
}


def schedule_of(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """As the record of the run would have it."""
    steps = np.linspace(0, 1, 1001)
    return steps * run.tokens[-1], rate_at(steps, run.warmup)


def detect(truth: Truth, alpha: float = ALPHA) -> ChangePoints:
    run = truth.run
    return change_points(run.tokens, truth.curve, schedule=schedule_of(run), direction=-1, alpha=alpha)


def most_found(truth: Truth) -> float:
    """Chance that any test finds this step, if it may be wrong about no convex curve more often than 5 in 100 times.

    By Neyman and Pearson: the best test between this curve and the convex one nearest to it, both known to it, as is
    the noise. It need not look for a place.
    """
    if truth.clean is None:
        return np.nan
    u = truth.run.u
    corners = np.linspace(0, 1, N_CORNERS + 2)[1:-1]
    bends = (np.maximum(side * (u[:, None] - corners), 0) for side in (-1, 1))
    convex = np.concatenate([smooth_columns(truth.run.tokens, schedule_of(truth.run)), *bends, u[:, None]], axis=1)
    _, distance = nnls(convex - convex.mean(axis=0), truth.clean - truth.clean.mean(), maxiter=5000)
    return float(ndtr(distance - ndtri(0.95)))


def of_nulls(curves: int, seed: int, alpha: float, only: str) -> dict[str, dict[str, float]]:
    """Curves in which a change is found, %."""
    found = {}
    for number, (name, make) in enumerate(NULLS.items()):
        if only not in name:
            continue
        rng = np.random.default_rng([seed, 0, number])
        results = [detect(make(rng), alpha) for _ in range(curves)]
        found[name] = {
            "false": 100 * float(np.mean([int(one.n_changes) > 0 for one in results])),
            "p": 100 * float(np.mean([float(one.p_value) < alpha for one in results])),
        }
    return found


def of_families(families: int, seed: int, alpha: float, only: str) -> dict[str, dict[str, float]]:
    """Families of smooth curves of all kinds with noise, each tested at its part of `alpha`: any found, %."""
    name = f"{N_TOGETHER} smooth curves together, any of them"
    if only not in name:
        return {}
    rng = np.random.default_rng([seed, 3])
    kinds = [flat, linear, power_law, exponential, schedule]
    results = []
    for _ in range(families):
        looks = [detect(kinds[i % len(kinds)](rng), alpha / N_TOGETHER) for i in range(N_TOGETHER)]
        results.append((any(one.n_changes > 0 for one in looks), min(float(one.p_value) for one in looks)))
    found, p = (np.array(column) for column in zip(*results, strict=True))
    return {name: {"false": 100 * float(found.mean()), "p": 100 * float(np.mean(N_TOGETHER * p < alpha))}}


def of_steps(curves: int, seed: int, alpha: float, only: str) -> dict[str, dict[str, float]]:
    """Steps found, and the most that any test finds, %; windows too many, %; and of those found, the coverage of the
    intervals, %, and the bias in snapshot spacings.
    """
    found = {}
    for number, (name, make) in enumerate(STEPS.items()):
        if only not in name:
            continue
        rng = np.random.default_rng([seed, 1, number])
        rows, n_extra, n_steps, most = [], 0, 0, []
        for _ in range(curves):
            truth = make(rng)
            result, end = detect(truth, alpha), truth.run.tokens[-1]
            n_steps += len(truth.steps)
            most.append(most_found(truth))
            hits = 0
            for start, stop, size in truth.steps:
                for k in range(int(result.n_changes)):
                    if result.start[k] <= stop * end and result.end[k] >= start * end:
                        hits += 1
                        rows.append(_compare(result, k, start, stop, size, end, truth.run.spacing))
                        break
            n_extra += int(result.n_changes) - hits
        found[name] = {"found": 100 * len(rows) / n_steps, "most": 100 * float(np.mean(most))}
        found[name]["extra"] = 100 * n_extra / curves
        for key in rows[0] if rows else ():
            values = np.array([row[key] for row in rows], float)
            scale = 100 if "covered" in key or key == "open" else 1
            found[name][key] = (
                scale * float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else np.nan
            )
    return found


def _compare(
    result: Any, k: int, start: float, stop: float, size: float, end: float, spacing: float
) -> dict[str, float]:
    def covered(interval: np.ndarray, value: float) -> bool:
        return bool(interval[0] <= value <= interval[1])

    is_open = bool(result.is_open[k])
    return {
        "start covered": covered(result.start_interval[k] / end, start),
        "end covered": covered(result.end_interval[k] / end, stop if stop <= 1 else np.inf),
        "size covered": covered(result.size_interval[k], size),
        "start bias": (result.start[k] / end - start) / spacing,
        "end bias": np.nan if is_open else (result.end[k] / end - stop) / spacing,
        "size ratio": result.size[k] / size,
        "open": is_open,
    }


def of_statistic(curves: int, seed: int) -> None:
    """-log of the p-value that is used against the share of smooth curves that reach it: equal where it is right."""
    for number, (name, make) in enumerate(NULLS.items()):
        rng = np.random.default_rng([seed, 2, number])
        p = np.array([float(detect(make(rng)).p_value) for _ in range(curves)])
        print(name, {level: round(float(np.mean(p <= level)), 3) for level in (0.2, 0.1, 0.05, 0.02, 0.01)}, flush=True)


def null_table(found: dict[str, dict[str, float]]) -> Iterator[str]:
    yield "| smooth curves | false windows, % | p below 0.03, % |"
    yield "| --- | --- | --- |"
    for name, one in found.items():
        yield f"| {name} | {one['false']:.1f} | {one['p']:.1f} |"


def step_table(found: dict[str, dict[str, float]]) -> Iterator[str]:
    yield "| curves with steps | found, % | any test, at most, % | windows too many, % | start, end, size within " + (
        "90 % interval, % | bias of start, end, snapshots | size, of the true one | still going on, % |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, one in found.items():
        covered = ", ".join(f"{one[f'{what} covered']:.0f}" for what in ("start", "end", "size"))
        bias = ", ".join("-" if np.isnan(x) else f"{x:+.1f}" for x in (one["start bias"], one["end bias"]))
        most = "" if np.isnan(one["most"]) else f"{one['most']:.0f}"
        ends = f"{one['size ratio']:.2f} | {one['open']:.0f}"
        yield f"| {name} | {one['found']:.1f} | {most} | {one['extra']:.1f} | {covered} | {bias} | {ends} |"


def main(args: Args) -> None:
    """Make the curves, find their changes, print the tables and write the JSON."""
    if args.null:
        of_statistic(args.curves, args.seed)
        return
    start_s = time.process_time()
    smooth_ones, together, stepped = (
        kind(args.curves, args.seed, args.alpha, args.only) for kind in (of_nulls, of_families, of_steps)
    )
    print("\n".join([*null_table(smooth_ones | together), "", *step_table(stepped)]))
    n_made = args.curves * (len(smooth_ones) + N_TOGETHER * len(together) + len(stepped))
    print(f"\n{n_made:,} curves, {1e3 * (time.process_time() - start_s) / max(n_made, 1):.0f} ms of one core each")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"smooth": smooth_ones | together, "steps": stepped}, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Args))
