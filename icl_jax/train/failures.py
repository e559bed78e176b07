"""When a loss is not finite: of one run the end, of one member of many its own."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import xarray as xr

from icl_jax.config import NonFiniteLossError
from icl_jax.maths.icl_score import SAYS_NOTHING
from icl_jax.rundir.record import HEAD_SCORES, ProbeResult
from icl_jax.train.step import StepMetrics

_QUANTILES = (5, 25, 75, 95)


def is_good(metrics: StepMetrics) -> bool:
    """Whether a step of one model went well."""
    return bool(np.isfinite(metrics.loss_T).all() and np.isfinite(metrics.grad_norm))


def describe(metrics: StepMetrics) -> str:
    """What is wrong with a step of one model, in words."""
    bad = np.flatnonzero(~np.isfinite(metrics.loss_T))
    if len(bad) == 0:
        return f"the loss is finite, but the gradient's norm is {float(metrics.grad_norm)}"
    return f"the loss at position {bad[0]} is {float(metrics.loss_T[bad[0]])} ({len(bad)} positions are not finite)"


class Failures:
    """Members whose loss is not finite any more. The others go on; of these, nothing is recorded from that step on.

    The record keeps them: at its first step a failed member has no learning rate, and what it had of loss and norm.
    """

    def __init__(self, n_members: int, tell: Callable[[str], None], record: xr.Dataset) -> None:
        self._tell = tell
        self.n_members = n_members
        self.failed: dict[int, int] = {}
        """The step at which a member failed, for those that did."""
        for k, step in enumerate(np.isfinite(record["lr"].values).sum(axis=0).tolist()):
            if step < record.sizes["step"]:
                self.failed[k] = step

    def judge(self, step: int, metrics: StepMetrics) -> StepMetrics:
        """The metrics of a step as they are recorded. Raises NonFiniteLossError when no member is left."""
        arrays: dict[str, Any] = {name: np.array(x, copy=True) for name, x in metrics._asdict().items()}
        kept = metrics._replace(**arrays)
        out = [k for k, failed_at in self.failed.items() if failed_at <= step]
        are_good = np.isfinite(arrays["loss_T"]).all(axis=1) & np.isfinite(arrays["grad_norm"])
        for k in sorted(set(np.flatnonzero(~are_good).tolist()).difference(out)):
            own = {name: array[k] for name, array in arrays.items()}
            self._note(k, step, describe(metrics._replace(**own)))
            arrays["lr"][k] = np.nan
        for array in arrays.values():
            array[out] = np.nan
        return kept

    def check(self, step: int, is_finite: np.ndarray) -> None:
        """Note whose parameters are not finite before a step. Raises NonFiniteLossError when no member is left."""
        for k in np.flatnonzero(~is_finite).tolist():
            if k not in self.failed:
                self._note(k, step, "the parameters are not finite")

    def judge_probe(self, result: ProbeResult) -> ProbeResult:
        """Live measures as they are recorded: NaN of members that have failed before."""
        values = {f.name: np.array(getattr(result, f.name), copy=True) for f in fields(result) if f.name != "step"}
        for array in values.values():
            array[list(self.failed)] = np.nan
        return ProbeResult(step=result.step, **values)

    def _note(self, k: int, step: int, what: str) -> None:
        self.failed[k] = step
        self._tell(f"member {k} failed at step {step}: {what}; {self.n_members - len(self.failed)} members go on")
        if len(self.failed) == self.n_members:
            raise NonFiniteLossError(step, f"member {k}: {what}; no member is left")


def typical(values: Any) -> float:
    """The median over the members that are left, for who watches; of one run the number itself."""
    return float(np.nanmedian(values)) if np.ndim(values) else float(values)


def spread(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How numbers of the members that are left are distributed: `loss/q05` and so on beside their median, `loss`."""
    left = {name: array[np.isfinite(array)] for name, array in values.items()}
    return {
        f"{name}/q{percent:02}": float(np.quantile(array, percent / 100))
        for name, array in left.items()
        for percent in (_QUANTILES if len(array) else ())
    }


def probe_spread(result: ProbeResult) -> dict[str, float]:
    """The same of live measures; of heads the highest of each member."""
    heads = {f"{name}_max": getattr(result, name) for name in HEAD_SCORES}
    best = {name: score.max(axis=(1, 2)) for name, score in heads.items() if score[0].size}
    medians = {name: typical(values) for name, values in best.items()}
    says = {} if typical(result.icl_score_sem) > SAYS_NOTHING else {"icl_score": result.icl_score}
    return medians | spread(says | {"icl_windowed": result.icl_windowed, **best})


def typical_probe(result: ProbeResult) -> ProbeResult:
    """The same of live measures. A head's number means nothing across members, so there are no heads."""
    no_heads = np.zeros((0, result.prefix_matching.shape[-1]), np.float32)
    return ProbeResult(
        step=result.step,
        icl_score=typical(result.icl_score),
        icl_windowed=typical(result.icl_windowed),
        icl_score_sem=typical(result.icl_score_sem),
        icl_sem=typical(result.icl_sem),
        held_out_loss=np.nanmedian(result.held_out_loss, axis=0),
        prefix_matching=no_heads,
        previous_token=no_heads,
    )
