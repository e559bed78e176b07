"""What a run's model makes of one text: losses, predictions, and which heads said what came next."""

import html
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icl_jax.analysis.checks import text_ids
from icl_jax.analysis.dataset import load_dataset, outdated
from icl_jax.analysis.session import load_stacked
from icl_jax.config import ModelConfig
from icl_jax.data.text.tokenizing import decode_tokens
from icl_jax.maths.logit_attribution import LogitAttribution, direct_logit_attribution
from icl_jax.measures.map_snapshots import map_snapshots
from icl_jax.measures.phase_change import finding_of
from icl_jax.model.forward import forward
from icl_jax.model.params import Params
from icl_jax.rundir import RunDir


class Look(NamedTuple):
    """What one snapshot makes of T tokens; P = T - 1 of them are predicted, entry t being about token t + 1."""

    step: int
    probs: Float[np.ndarray, "T V"]
    """Of the token after each; the last row is about what would come next."""
    attribution: LogitAttribution
    """Terms of the true tokens' logits, one row of them: logit [P], heads [P, N, H], loss_nats [P], ..."""

    def top(self, n: int) -> Int[np.ndarray, "T n"]:
        """Ids of the n most probable next tokens, the most probable first."""
        return np.argsort(-self.probs, axis=-1, kind="stable")[:, :n]


@dataclass(frozen=True, slots=True)
class Probe:
    """A text under one snapshot, or under those before and after the phase change."""

    ids: Int[np.ndarray, " T"]
    """BOS first."""
    vocabulary: tuple[str, ...]
    """How every id shows; safe to print."""
    looks: tuple[Look, ...]
    outdated: str | None = None
    """What the run has become since the analysis that was asked for the phase change; None: nothing, or not asked."""

    @property
    def tokens(self) -> list[str]:
        """How the ids of the text show."""
        return [self.vocabulary[i] for i in self.ids]

    def _repr_html_(self) -> str:
        """A row per token in a notebook: its losses, what is expected next, the head that raised it most."""
        last = self.looks[-1]
        header = ["token", *(f"loss at {look.step}" for look in self.looks), "expected next", "head"]
        rows = []
        for t, token in enumerate(self.tokens):
            losses = [f"{look.attribution.loss_nats[t - 1]:.2f}" if t else "" for look in self.looks]
            expected = self.vocabulary[int(last.top(1)[t, 0])]
            heads = last.attribution.heads[t - 1] if t else np.zeros((0, 0))
            best = ".".join(str(i) for i in np.unravel_index(np.argmax(heads), heads.shape)) if heads.size else ""
            rows.append([token, *losses, expected, best])
        lines = (f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table><tr>{''.join(f'<th>{name}</th>' for name in header)}</tr>{''.join(lines)}</table>"


def probe(run: RunDir, text: str, step: int | None = None) -> Probe:
    """Look at a text with BOS in front, by the run's tokenizer; a corpus without one takes ids such as "5 17 5".

    step: the snapshot to look with. None: those at both ends of the phase change where `icl-jax analyze` has found it,
    else the last. Raises UserError for a text that is empty, unknown to the tokenizer or longer than the model's
    context, for a step without a snapshot and for a run without snapshots or held-out rows.
    """
    model = run.config.model
    tokenizer, found = text_ids(run, text)
    steps, change = _steps(run, step)
    ids = np.array([run.load_held_out().bos_id, *found], np.int32)
    seen = map_snapshots(_look, load_stacked(run, steps), ids[None], config=model)
    looks = tuple(
        Look(at, seen["probs"][i], LogitAttribution(*(seen[name][i] for name in LogitAttribution._fields)))
        for i, at in enumerate(steps)
    )
    every_id = range(model.vocab_size)
    vocabulary = [str(i) for i in every_id] if tokenizer is None else decode_tokens(tokenizer, every_id)
    return Probe(ids, tuple(vocabulary), looks, change)


def _steps(run: RunDir, step: int | None) -> tuple[list[int], str | None]:
    """The snapshots to look with, and what the run has become since the analysis that named them."""
    kept = [entry.step for entry in run.snapshots()]
    if step is not None:
        return [step], None
    analysis, change = run.path / "analysis.zarr", None
    if analysis.exists():
        dataset = load_dataset(analysis)
        change = outdated(run, dataset)
        if "step_before" in dataset and finding_of(dataset).changes:
            ends = [int(dataset["step_before"]), int(dataset["step_after"])]
            # The run may have been cut back and trained anew since it was analyzed.
            if set(ends) <= set(kept):
                return ends, change
    return kept[-1:], change


def _look(params: Params, tokens: Int[Array, "1 T"], config: ModelConfig) -> dict[str, Array]:
    probs = jax.nn.softmax(forward(params, tokens, config), axis=-1)[0]
    attribution = direct_logit_attribution(params, tokens, config)
    return {"probs": probs} | {name: jnp.squeeze(value, 0) for name, value in attribution._asdict().items()}
