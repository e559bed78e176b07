"""Where a model holds what it says of repeats: activation patching by layer and position, and by head."""

import numpy as np

from icl_jax.report.chart import Axis, Chart, Heat
from icl_jax.report.figures.figure import RunFigure, head_map
from icl_jax.report.reported_run import ReportedRun, signed

_EFFECT = "change of the loss (nats)"


def _chart(run: ReportedRun) -> list[Chart]:
    resid = run.last("patched_resid_effect")
    n_layers, n_positions = resid.shape
    heat = Heat(x=np.arange(n_positions), y=np.arange(n_layers), z=resid, label=_EFFECT, diverging=True)
    by_position = Chart(
        title="stream entering a layer", x=Axis(label="position"), y=Axis(label="layer", is_count=True), heat=heat
    )
    heads = head_map(run.last("patched_head_effect"), _EFFECT)
    return [by_position, Chart(title="output of a head", x=heads.x, y=heads.y, heat=heads.heat)]


def _ours(run: ReportedRun) -> str:
    effect, error = run.last("patched_head_effect"), run.last("patched_head_effect_sem")
    at = np.unravel_index(np.argmax(effect), effect.shape)
    whole = signed(float(run.last("patched_all_effect")))
    return f"most of one head {signed(effect[at])} ± {error[at]:.2f} nats ({at[0]}.{at[1]}), of {whole} in all"


FIGURE = RunFigure(
    name="activation_patching",
    title="What is lost when an activation is that of other tokens",
    shows="At the end of training, loss of random repeats with one activation as on rows without repeats, less as it "
    "is: the residual stream entering a layer at one position, and the output of one head.",
    look_for="The second half of the row in late layers, where the repeat is being said; heads that carry it.",
    needs=("patched_resid_effect", "patched_head_effect", "patched_all_effect"),
    on_request=True,
    chart=_chart,
    ours=_ours,
)
