"""A run's model asked in words: is the answer right, and which heads say it; on prompts of `icl_jax.analysis.prompts`.

Of each behaviour, over its prompts (an answer may be several tokens):

- prob: mean probability of the whole answer, given the text; sem: its standard error over prompts.
- accuracy: share of prompts all of whose answer tokens are the likeliest ones.
- rank: median rank of the answer's first token, 1 the likeliest.
- heads [layer, head]: what each head adds to the answer's tokens' logits by direct attribution
  (`icl_jax.maths.logit_attribution`), mean over the tokens of an answer and over prompts; logit: the same of the whole
  logit less the vocabulary's mean, mlps and embedding: of these.

Source: the behaviours are those of the introductory article and of Olsson et al. 2022, Argument 4.
"""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icl_jax.analysis.prompts import BEHAVIOURS, Prompt, prompts
from icl_jax.analysis.session import load_stacked
from icl_jax.config import ModelConfig, UserError
from icl_jax.data.text.text_ids import encode_text
from icl_jax.data.text.tokenizing import run_tokenizer
from icl_jax.maths.activations import Activations
from icl_jax.maths.frozen_run import embedding
from icl_jax.maths.logit_attribution import attribution
from icl_jax.measures.map_rows import map_rows
from icl_jax.measures.map_snapshots import map_snapshots
from icl_jax.model.execution import resolve
from icl_jax.model.forward import unembedding_DV
from icl_jax.model.loss import token_loss_and_rank
from icl_jax.model.norm import normalise
from icl_jax.model.params import Params
from icl_jax.rundir import RunDir
from icl_jax.rundir.files import replace_text

_ROWS_AT_A_TIME = 8
_LENGTH_STEP = 24  # rows are filled up to a multiple of it, so that few programs are compiled
_N_HEADS_TOLD = 5


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What came of one behaviour's prompts."""

    name: str
    n_prompts: int
    prob: float
    sem: float
    accuracy: float
    rank: float
    logit: float
    embedding: float
    mlps: float
    heads: Float[np.ndarray, "N H"]

    def top_heads(self, n: int = _N_HEADS_TOLD) -> list[tuple[str, float]]:
        """The heads that add most, as layer.head, and what they add."""
        order = np.argsort(-self.heads, axis=None, kind="stable")[:n]
        at = zip(*np.unravel_index(order, self.heads.shape), strict=True)
        return [(f"{layer}.{head}", float(self.heads[layer, head])) for layer, head in at]


@dataclass(frozen=True)
class Asked:
    """All behaviours of one snapshot, and those that this model cannot be asked for, with the reason."""

    step: int
    sha256: str
    seed: int
    found: tuple[Behaviour, ...]
    refused: dict[str, str]

    def save(self, run: RunDir) -> None:
        """RUN/behaviours.json, all of it, and RUN/behaviours.csv, a line for each behaviour."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [name for name in Behaviour.__dataclass_fields__ if name != "heads"]
        writer.writerow([*names, "heads"])
        for behaviour in self.found:
            heads = " ".join(f"{name}:{value:.4g}" for name, value in behaviour.top_heads())
            writer.writerow([*(_cell(getattr(behaviour, name)) for name in names), heads])
        replace_text(run.path / "behaviours.csv", text.getvalue())
        whole = {
            "step": self.step, "snapshot_sha256": self.sha256, "seed": self.seed, "refused": self.refused,
            "behaviours": [asdict(behaviour) | {"heads": behaviour.heads.tolist()} for behaviour in self.found],
        }  # fmt: skip
        replace_text(run.path / "behaviours.json", json.dumps(whole, indent=1) + "\n")


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class _Row(NamedTuple):
    """A prompt and its answer as tokens, BOS first."""

    ids: list[int]
    n_answer: int


def _rows_of(run: RunDir, tokenizer: Any, bos_id: int, asked: list[Prompt]) -> list[_Row]:
    """Raises UserError where the tokenizer cannot say one of them, or it is too long for the model."""
    model, rows = run.config.model, []
    for prompt in asked:
        whole = prompt.text + prompt.answer
        ids = encode_text(whole, tokenizer, model.vocab_size)
        offsets = tokenizer.encode(whole, add_special_tokens=False).offsets
        # The first token with a character of the answer behind its space begins the answer.
        n_before = next(i for i, (_, end) in enumerate(offsets) if end > len(prompt.text) + 1)
        if offsets[n_before][0] < len(prompt.text):
            raise UserError(
                f"{whole!r}: a token of the run's tokenizer holds the text's end and the answer's beginning"
            )
        if len(ids) > model.n_ctx:
            allowed = f"must be at most model.n_ctx = {model.n_ctx}, BOS among them"
            raise UserError(f"{1 + len(ids)} tokens of a prompt and its answer: {allowed}")
        rows.append(_Row([bos_id, *ids], len(ids) - n_before))
    return rows


def ask(
    run: RunDir,
    only: tuple[str, ...] = (),
    n_prompts: int = 512,
    step: int | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _told: None,
) -> Asked:
    """Put the prompts to a snapshot of a run, the last where `step` is None.

    Raises UserError for a behaviour that there is none of, for a run whose corpus has no tokenizer, for a step without
    a snapshot, and where not one behaviour can be asked for; the reason is that of the first.
    """
    check_asked(run, only, n_prompts)
    entry = run.snapshots()[-1] if step is None else run.snapshot(step)
    tokenizer = run_tokenizer(run.read_tokenizer(), run.root / "tokenizer.json")
    bos_id = run.load_held_out().bos_id
    rows: dict[str, list[_Row]] = {}
    refused: dict[str, str] = {}
    for name in only or BEHAVIOURS:
        try:
            rows[name] = _rows_of(run, tokenizer, bos_id, prompts(name, n_prompts, seed))
        except UserError as error:
            refused[name] = str(error)
    if not rows:
        raise UserError(f"{run.path}: cannot be asked in words: {next(iter(refused.values()))}")
    params = load_stacked(run, [entry.step])
    every = [(name, row) for name, of_name in rows.items() for row in of_name]
    seen: list[dict[str, Any] | None] = [None] * len(every)
    lengths = [-(-(len(row.ids) - 1) // _LENGTH_STEP) * _LENGTH_STEP for _, row in every]
    for length in sorted(set(lengths)):
        here = [i for i, one in enumerate(lengths) if one == length]
        length = min(length, run.config.model.n_ctx)
        progress(f"{len(here)} prompts of up to {length} tokens")
        tokens = np.full((len(here), length + 1), bos_id, np.int32)
        weights = np.zeros((len(here), length), np.float32)
        for at, i in enumerate(here):
            row = every[i][1]
            tokens[at, : len(row.ids)] = row.ids
            weights[at, len(row.ids) - 1 - row.n_answer : len(row.ids) - 1] = 1 / row.n_answer
        found = map_snapshots(_look, params, tokens, weights, config=run.config.model)
        for at, i in enumerate(here):
            seen[i] = {name: values[0, at] for name, values in found.items()}
    behaviours = [
        _behaviour(name, [one for (of, _), one in zip(every, seen, strict=True) if of == name and one is not None])
        for name in rows
    ]
    return Asked(entry.step, entry.sha256, seed, tuple(behaviours), refused)


def check_asked(run: RunDir, only: tuple[str, ...], n_prompts: int) -> None:
    """Raise UserError for what can be refused before JAX is there."""
    for name in only:
        if name not in BEHAVIOURS:
            raise UserError(f"--only = {name!r}: no such behaviour; there are {', '.join(BEHAVIOURS)}")
    if n_prompts < 2:
        raise UserError(f"--prompts = {n_prompts}: must be 2 or more")
    if run.read_tokenizer() is None:
        raise UserError(f"{run.path}: cannot be asked in words: its corpus has no tokenizer")


def _behaviour(name: str, seen: list[dict[str, Any]]) -> Behaviour:
    together = {key: np.stack([one[key] for one in seen]).astype(np.float64) for key in seen[0]}
    prob = np.exp(-together["loss"])
    means = {key: float(together[key].mean()) for key in ("logit", "embedding", "mlps")}
    return Behaviour(
        name=name, n_prompts=len(seen), prob=float(prob.mean()), sem=float(prob.std(ddof=1) / np.sqrt(len(seen))),
        accuracy=float(together["all_first"].mean()), rank=float(np.median(together["rank"])),
        heads=together["heads"].mean(axis=0), **means,
    )  # fmt: skip


def _look(
    params: Params, tokens: Int[Array, "B T"], weights: Float[Array, "B P"], config: ModelConfig
) -> dict[str, Array]:
    """Of each row, over the tokens with a weight: summed loss, whether all rank first, the first one's rank, terms."""
    chunk = resolve(config).loss_chunk

    def some_rows(tokens: Array, weights: Array) -> dict[str, Array]:
        targets = tokens[:, 1:]
        seen = Activations(params, tokens[:, :-1], config, ("result", "mlp_out", "resid_post"))
        terms = attribution(seen, targets)
        is_answer = weights > 0
        first = jnp.argmax(is_answer, axis=1)
        last = seen.last_resid if config.n_layers else embedding(params, seen.tokens, config)
        x_BTD = normalise(last, params.get("ln_final_w"), config)
        W_U = unembedding_DV(params).astype(x_BTD.dtype)
        loss, rank = token_loss_and_rank(x_BTD, W_U, targets, chunk, params.get("b_U"), config.logit_soft_cap)
        return {
            "loss": jnp.sum(jnp.where(is_answer, loss, 0.0), axis=1),
            "all_first": jnp.all((rank == 1) | ~is_answer, axis=1),
            "rank": jnp.take_along_axis(rank, first[:, None], axis=1)[:, 0],
            "logit": jnp.sum(terms.logit * weights, axis=1),
            "embedding": jnp.sum(terms.embedding * weights, axis=1),
            "mlps": jnp.einsum("BPN,BP->B", terms.mlps, weights),
            "heads": jnp.einsum("BPNH,BP->BNH", terms.heads, weights),
        }

    return dict(map_rows(some_rows, tokens, weights, n_at_a_time=_ROWS_AT_A_TIME))
