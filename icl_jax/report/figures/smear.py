"""Argument 2: the smearing of each head over training."""

from icl_jax.report.figures.figure import SHARE, head_figure

FIGURE = head_figure(
    "smear_own",
    "σ(α)",
    range=SHARE,
    name="smear",
    title="Smeared keys: share of the own key",
    shows="σ(α) of each head over training: how much of a key is its own token's; the rest is the token before's.",
    look_for="Heads that become induction heads should let go of their own key: low values mean they match the token "
    "before.",
    ours=lambda run: f"{run.last('smear_own').min():.2f} to {run.last('smear_own').max():.2f} at the end",
)
