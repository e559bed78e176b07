"""Bounds of two models on slices of 4 to 4,096 chips, compiled for each; draws docs/scaling.png. Needs icl-jax[tpu].

Work per chip stays the same, so that the batch grows with the slice.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from icl_jax import process
from icl_jax.cli.arguments import find_config
from icl_jax.config import LaunchConfig

# (title, config, rows per chip, slices with the chips that share one copy of the parameters: sides of the slice)
_MODELS: tuple[tuple[str, str, int, dict[str, int]], ...] = (
    (
        "6 layers with MLPs, pmap, 8 rows a chip", "paper-mlp-6l", 8,
        dict.fromkeys(("v5p:2x2x1", "v5p:2x2x4", "v5p:4x4x4", "v5p:4x8x8", "v5p:8x8x16", "v5p:16x16x16"), 1),
    ),
    (
        "13 billion parameters, fsdp, 1 row a chip", "paper-full-40l", 1,
        {"v5p:2x2x1": 4, "v5p:2x2x4": 8, "v5p:4x4x4": 16, "v5p:4x8x8": 32, "v5p:8x8x16": 16, "v5p:16x16x16": 16},
    ),
)  # fmt: skip


_TERMS = {"arithmetic": "compute_s", "memory": "hbm_s", "interconnect": "interconnect_s"}


@dataclass(frozen=True)
class Args:
    """What to draw."""

    out: Path = Path("runs/bench/scaling.json")
    """Plans, one of each model and slice; those that are there are not compiled again."""
    picture: Path = Path("docs/scaling.png")
    """The picture."""


def _measure(out: Path) -> dict[str, list[dict[str, Any]]]:
    process.compile_for_tpu()
    from icl_jax.plan.compiled import make_plan

    found: dict[str, list[dict[str, Any]]] = json.loads(out.read_text()) if out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    for title, name, n_rows, slices in _MODELS:
        plans = found.setdefault(title, [])
        for topology, fsdp in slices.items():
            if any(plan["topology"] == topology for plan in plans):
                continue
            launch = LaunchConfig(topology=topology)
            _, config = find_config(name)
            train = replace(config.train, batch_size=n_rows * launch.n_chips, fsdp=fsdp)
            plan = make_plan(name, replace(config, train=train, launch=launch))
            plans.append(asdict(plan))
            out.write_text(json.dumps(found))
            print(topology, plan.estimate or "does not fit", flush=True)
    return found


def _draw(found: dict[str, list[dict[str, Any]]], picture: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (speed, *parts) = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for (title, plans), axes, line in zip(found.items(), parts, ("-", "--"), strict=True):
        estimates = [plan["estimate"] for plan in plans if plan["estimate"]]
        chips = [e["n_chips"] for e in estimates]
        for (label, name), colour in zip(_TERMS.items(), ("#0072b2", "#009e73", "#d55e00"), strict=True):
            axes.plot(chips, [e[name] for e in estimates], "o-", color=colour, label=label)
        axes.set(title=title, ylabel="seconds a step, at least", ylim=(0, None))
        tokens = [e["tokens_per_step"] / max(e[name] for name in _TERMS.values()) for e in estimates]
        speed.plot(chips, tokens, "o" + line, color="#333333", label=title.split(",")[0])
    speed.set(title="Slowest resource, all else behind it", ylabel="tokens a second, at most", yscale="log")
    for axes in (speed, *parts):
        axes.set(xscale="log", xlabel="v5p chips")
        axes.set_xticks([4, 16, 64, 256, 1024, 4096], ["4", "16", "64", "256", "1,024", "4,096"])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
        axes.title.set_fontsize("medium")
    figure.savefig(picture, dpi=90)


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    _draw(_measure(args.out), args.picture)


if __name__ == "__main__":
    main()
