"""Two sets of rows for patching, clean and corrupted, and what a model is asked on them.

A row of `clean` and the row of `corrupted` beside it have one length. At the positions that are `asked` the clean row's
next token is the right answer, and `wrong` another one that it is held against. Three metrics, each the mean over a
row's asked positions:

================  =====================================================================
loss              -log p(right), nats, 0 or more
logit_difference  logit of right less logit of wrong, nats up to a constant, any sign
probability       p(right), [0, 1]
================  =====================================================================

Source: Zhang and Nanda 2024, "Towards Best Practices of Activation Patching in Language Models" (metrics; corruption by
other tokens, not by noise).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig, UserError
from icl_jax.measures.measurement import Context, needs_layers
from icl_jax.model.execution import resolve
from icl_jax.model.forward import soft_capped, unembedding_DV
from icl_jax.model.loss import token_loss
from icl_jax.model.norm import normalise
from icl_jax.model.params import Params
from icl_jax.model.precision import einsum
from icl_jax.model.tokens import check_tokens

METRICS = ("loss", "logit_difference", "probability")
UNITS = {"loss": "nats", "logit_difference": "nats", "probability": "1"}


class PairArrays(NamedTuple):
    """Pairs as the compiled functions take them; A positions a row are asked, those of weight 0 fill up."""

    clean: Int[Array, "B T"]
    corrupted: Int[Array, "B T"]
    position: Int[Array, "B A"]
    weight: Float[Array, "B A"]
    right: Int[Array, "B A"]
    wrong: Int[Array, "B A"]


@dataclass(frozen=True, eq=False)
class TokenPairs:
    """Rows of token ids with their next tokens: T + 1 ids give T positions. Raises UserError for sets that do not fit.

    Made by `repeated_pairs` and `labelled_pairs`, read by `load_pairs`, or given.
    """

    clean: np.ndarray
    """int [B, T + 1]"""
    corrupted: np.ndarray
    """int [B, T + 1]; what is seen, the first T, may differ from the clean row at any position."""
    asked: np.ndarray
    """bool [B, T]: where the clean row's next token is asked for; one position a row or more."""
    wrong: np.ndarray | None = None
    """int [B, T]; None: the corrupted row's next tokens."""

    def __post_init__(self) -> None:
        for name in ("clean", "corrupted", "asked", "wrong"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name)))
        shape = self.clean.shape
        for name in ("clean", "corrupted"):
            rows = getattr(self, name)
            if rows.ndim != 2 or rows.shape[1] < 2 or not len(rows) or rows.dtype.kind not in "iu":
                found = f"{name} has the shape {rows.shape} and the type {rows.dtype}"
                raise UserError(f"{found}: must be rows of 2 or more token ids, [row, position + 1]")
        if self.corrupted.shape != shape:
            raise UserError(f"corrupted has the shape {self.corrupted.shape}: must have that of clean, {shape}")
        if self.asked.shape != (shape[0], shape[1] - 1) or self.asked.dtype != bool:
            found = f"asked has the shape {self.asked.shape} and the type {self.asked.dtype}"
            raise UserError(f"{found}: must be bool {(shape[0], shape[1] - 1)}, one less than clean has tokens")
        if (silent := np.flatnonzero(~self.asked.any(axis=1))).size:
            raise UserError(f"asked: row {silent[0]} asks for nothing: each row must have a position that is True")
        if self.wrong is not None and (self.wrong.shape != self.asked.shape or self.wrong.dtype.kind not in "iu"):
            found = f"wrong has the shape {self.wrong.shape} and the type {self.wrong.dtype}"
            raise UserError(f"{found}: must be token ids of the shape of asked, {self.asked.shape}")

    def arrays(self, config: ModelConfig, metric: str = "loss") -> PairArrays:
        """What the compiled functions take. Raises UserError for ids or lengths that the model does not have."""
        if metric not in METRICS:
            raise UserError(f"metric = {metric!r}: must be one of {', '.join(METRICS)}")
        try:
            for name in ("clean", "corrupted"):
                check_tokens(getattr(self, name), config, name=name, least=2, most=config.n_ctx + 1)
            if self.wrong is not None:
                check_tokens(self.wrong, config, name="wrong")
        except ValueError as error:
            raise UserError(str(error)) from None
        n_asked = self.asked.sum(axis=1)
        position = np.argsort(~self.asked, axis=1, kind="stable")[:, : n_asked.max()]
        weight = (np.arange(n_asked.max()) < n_asked[:, None]) / n_asked[:, None]
        right = np.take_along_axis(self.clean[:, 1:], position, axis=1)
        wrong = np.take_along_axis(self.corrupted[:, 1:] if self.wrong is None else self.wrong, position, axis=1)
        if metric == "logit_difference" and np.any((right == wrong) & (weight > 0)):
            row = int(np.argwhere((right == wrong) & (weight > 0))[0][0])
            raise UserError(f"wrong: of row {row} the same token as the right one: metric = {metric!r} needs another")
        ids = {
            "clean": self.clean[:, :-1], "corrupted": self.corrupted[:, :-1], "position": position, "right": right,
            "wrong": wrong,
        }  # fmt: skip
        arrays = {name: jnp.asarray(array.astype(np.int32)) for name, array in ids.items()}
        return PairArrays(weight=jnp.asarray(weight.astype(np.float32)), **arrays)


def metric_fn(
    params: Params, pairs: PairArrays, config: ModelConfig, metric: str
) -> Callable[[Float[Array, "B T D"]], Float[Array, " B"]]:
    """The metric of each row, of the residual stream after the last layer, before the final norm."""
    W_U, b_U, cap = unembedding_DV(params), params.get("b_U"), config.logit_soft_cap

    def of_resid(resid_BTD: jax.Array) -> jax.Array:
        asked_BAD = jnp.take_along_axis(resid_BTD, pairs.position[:, :, None], axis=1)
        x_BAD = normalise(asked_BAD, params.get("ln_final_w"), config)
        if metric == "logit_difference":
            right, wrong = (_logit(x_BAD, W_U, b_U, of, cap) for of in (pairs.right, pairs.wrong))
            value_BA = right - wrong
        else:
            value_BA = token_loss(x_BAD, W_U.astype(x_BAD.dtype), pairs.right, resolve(config).loss_chunk, b_U, cap)
            value_BA = jnp.exp(-value_BA) if metric == "probability" else value_BA
        return jnp.sum(value_BA * pairs.weight, axis=1)

    return of_resid


def _logit(x_BAD: jax.Array, W_U: jax.Array, b_U: jax.Array | None, ids_BA: jax.Array, cap: float) -> jax.Array:
    direction_BAD = jnp.moveaxis(W_U[:, ids_BA], 0, -1).astype(x_BAD.dtype)
    logit_BA = einsum("BAD,BAD->BA", x_BAD, direction_BAD, preferred_element_type=jnp.float32)
    return soft_capped(logit_BA if b_U is None else logit_BA + b_U[ids_BA], cap)


def repeated_pairs(
    candidates: Int[np.ndarray, " V"], bos_id: int, n_ctx: int, *, n_rows: int = 10, block_len: int = 25, seed: int = 0
) -> TokenPairs:
    """BOS and a block of random tokens said twice; corrupted: first another block, of none of these tokens.

    What follows in the second block is asked for from its second token on; wrong: what stands at the same place of the
    other block. Nothing is repeated in a corrupted row, so that there is nothing to copy. The block is cut down to what
    n_ctx and the number of candidates allow. Raises UserError where that is less than two tokens.
    """
    block_len = min(block_len, n_ctx // 2, len(candidates) // 2)
    if block_len < 2:
        raise UserError(
            f"n_ctx = {n_ctx} and {len(candidates)} candidates: too few for BOS and a block of two tokens twice"
        )
    rng = np.random.default_rng(seed)
    blocks = np.stack([rng.choice(candidates, 2 * block_len, replace=False) for _ in range(n_rows)])
    said, other = blocks[:, :block_len], blocks[:, block_len:]
    bos = np.full((n_rows, 1), bos_id)
    clean, corrupted = (np.concatenate([bos, first, said], axis=1).astype(np.int32) for first in (said, other))
    asked = np.zeros((n_rows, 2 * block_len), bool)
    asked[:, block_len + 1 :] = True
    wrong = np.concatenate([other, other], axis=1).astype(np.int32)
    return TokenPairs(clean, corrupted, asked, wrong)


def labelled_pairs(
    rows: Int[np.ndarray, "B tokens"], labels: Int[np.ndarray, "B tokens"], label: int, *,
    replace: str = "both", seed: int = 0,
) -> TokenPairs:  # fmt: skip
    """Rows of a corpus that labels its tokens; corrupted: without what stood there before to copy from.

    Asked is the last token of each row that carries the label (counted from 1, as `Corpus.held_out_labels` has it) and
    whose bigram, the token before it and itself, stood earlier in the row; rows without one are left out. There the
    answer, the token before it, or both are replaced by those that carry the label in other rows, and by the tokens
    before them. wrong is what replaces the answer. Raises UserError where no row has such a token, or no other answer.
    """
    if replace not in ("both", "prefix", "answer"):
        raise UserError(f"replace = {replace!r}: must be one of both, prefix, answer")
    before, after = rows[:, :-1], rows[:, 1:]
    found: list[tuple[int, int, np.ndarray]] = []
    for row in range(len(rows)):
        for t in np.flatnonzero(labels[row, 1:] == label)[::-1]:
            is_same = (before[row, :t] == before[row, t]) & (after[row, :t] == after[row, t])
            earlier = np.flatnonzero(is_same)
            # What is replaced must not be what is seen last.
            if (earlier := earlier[earlier + 1 < t]).size:
                found.append((row, int(t), earlier))
                break
    pool = {(int(before[row, t]), int(after[row, t])) for row, t, _ in found}
    rng = np.random.default_rng(seed)
    kept, corrupted, asked, wrong = [], [], [], []
    for row, t, earlier in found:
        prefix, answer = int(before[row, t]), int(after[row, t])
        others = sorted(pair for pair in pool if pair[0] != prefix and pair[1] != answer)
        if not others:
            continue
        other_prefix, other_answer = others[rng.integers(len(others))]
        changed = rows[row].copy()
        if replace != "prefix":
            changed[earlier + 1] = other_answer
        if replace != "answer":
            changed[earlier] = other_prefix
        kept.append(rows[row])
        corrupted.append(changed)
        asked.append(np.arange(rows.shape[1] - 1) == t)
        wrong.append(np.full(rows.shape[1] - 1, other_answer))
    if not kept:
        raise UserError(
            f"label = {label}: no row has a token of it whose bigram stood before in the row, and another's"
        )
    clean, corrupted_rows, wrongs = (np.stack(part).astype(np.int32) for part in (kept, corrupted, wrong))
    return TokenPairs(clean, corrupted_rows, np.stack(asked), wrongs)


def pairs_of(run: Any, label: str = "", *, n_rows: int = 32, seed: int = 0, **options: Any) -> TokenPairs:
    """Pairs of an opened run: random repeats, or with a label of its corpus held-out rows, such as "phrase_again".

    `options`: those of `repeated_pairs` or `labelled_pairs`. Raises UserError for a label that the corpus lacks.
    """
    held_out = run.held_out
    if not label:
        n_ctx = run.config.model.n_ctx
        return repeated_pairs(held_out.candidates, held_out.bos_id, n_ctx, n_rows=n_rows, seed=seed, **options)
    if label not in held_out.label_names:
        allowed = f"must be one of {', '.join(held_out.label_names)}" if held_out.label_names else "it has no labels"
        raise UserError(f"label = {label!r}: the corpus of {run.path} does not have it: {allowed}")
    number = held_out.label_names.index(label) + 1
    made = labelled_pairs(held_out.rows, held_out.labels, number, seed=seed, **options)
    wrong = None if made.wrong is None else made.wrong[:n_rows]
    return TokenPairs(made.clean[:n_rows], made.corrupted[:n_rows], made.asked[:n_rows], wrong)


def load_pairs(path: str | Path) -> TokenPairs:
    """Pairs from a NumPy file (.npz) with the arrays clean, corrupted, asked and, if given, wrong. Raises UserError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a NumPy file of several arrays (.npz): {error}") from None
    if lacking := [name for name in ("clean", "corrupted", "asked") if name not in arrays]:
        raise UserError(f"{path}: has no array {lacking[0]}: must hold clean, corrupted and asked (and may hold wrong)")
    try:
        return TokenPairs(arrays["clean"], arrays["corrupted"], arrays["asked"], arrays.get("wrong"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def measured_pairs(context: Context) -> TokenPairs:
    """Those of the measurements: 10 random repeats of up to 25 tokens, of the run's candidates. Raises UserError."""
    n_ctx = context.config.model.n_ctx
    return repeated_pairs(context.candidates, context.bos_id, n_ctx, seed=context.seed)


def reads_pairs(context: Context) -> tuple[np.ndarray, ...]:
    """What a measurement on them reads: the fields of `PairArrays`."""
    return tuple(np.asarray(array) for array in measured_pairs(context).arrays(context.config.model))


def needs_pairs(context: Context) -> str | None:
    """A `why_not` for measurements on them."""
    if (why := needs_layers(context)) is not None:
        return why
    try:
        measured_pairs(context)
    except UserError as error:
        return str(error)
    return None
