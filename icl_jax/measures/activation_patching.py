"""Activation patching: what the model says when an activation is that of other rows.

The model runs on the clean rows; one activation of one layer, at one position, of one head, is taken from its run on
the corrupted rows, and everything after it is computed anew. What the metric loses is what that activation carried.
The other way round (`into="corrupted"`) clean activations go into the corrupted run: what they suffice to bring back.

    share = (patched - base) / (other - base), of metrics that are means over rows

is 0 where the patch does nothing and 1 where it does as much as other tokens; it may lie outside. Any activation of
`icl_jax.model.forward` can be patched: `resid_pre`, `resid_mid`, `mlp_out`, `resid_post` by position, `q`, `k`, `v`,
`z`, `result` by head and position, `attn_scores` and `pattern` by head and query. Keys and values that heads share are
patched for each of these heads alone; what they are made of, `k_input` and `v_input`, for all that share them, and
`q_input` for each head.

The measurement: on random repeats (`icl_jax.measures.token_pairs.repeated_pairs`), the residual stream entering each
layer at each position, and each head's `z` at all positions. Hand-built model: head 1.0 has a share of 1, and so has
head 0.0, through what 1.0 attends to.

Source: Meng et al. 2022 (causal tracing); Wang et al. 2022; Zhang and Nanda 2024 (metrics). Departure: other tokens in
place of noise.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from icl_jax.config import ModelConfig, UserError
from icl_jax.config.axes import ACTIVATION_AXES
from icl_jax.maths.activations import AnyParams, as_jax
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable
from icl_jax.measures.passes import Passes, by_rows, patches_at_a_time
from icl_jax.measures.snapshot import Snapshot
from icl_jax.measures.token_pairs import (
    UNITS,
    PairArrays,
    TokenPairs,
    metric_fn,
    needs_pairs,
    reads_pairs,
)  # fmt: skip
from icl_jax.model.params import Params

# The axes of heads and of positions (queries) of each activation.
AXES = {
    name: (
        next((i for i, letter in enumerate(letters) if letter in "HG"), None),
        next(i for i, letter in enumerate(letters) if letter in "TQ"),
    )
    for name, letters in ((name, axes.split()) for name, axes in ACTIVATION_AXES.items())
}
# Of a head and layer, of the rows of a pass.
_PATTERN_ENTRIES = 2**18


def check_tap(tap: str, config: ModelConfig) -> None:
    """Raise UserError for an activation that the model does not have."""
    if tap not in AXES:
        raise UserError(f"tap = {tap!r}: must be one of {', '.join(ACTIVATION_AXES)}")
    if not config.n_layers:
        raise UserError("model.n_layers = 0: there is nothing to patch")
    if tap == "mlp_out" and not config.d_mlp:
        raise UserError("tap = 'mlp_out': the model has no MLPs; model.d_mlp = 0")


def n_heads_of(tap: str, config: ModelConfig) -> int:
    """Heads of an activation: of the inputs of keys and values those of keys."""
    return config.key_heads if "G" in ACTIVATION_AXES[tap] else config.n_heads


def check_into(into: str) -> None:
    """Raise UserError for a set of rows that there is not."""
    if into not in ("clean", "corrupted"):
        raise UserError(f"into = {into!r}: must be clean or corrupted")


def patched_metric(
    params: Params, pairs: PairArrays, config: ModelConfig, tap: str, metric: str, into: str,
    layers: tuple[int, ...], positions: tuple[int, ...], heads: tuple[int, ...], by: tuple[str, ...],
) -> dict[str, jax.Array]:  # fmt: skip
    """ "patched" [layer, position, head, row], and the metric of "clean" and "corrupted" rows.

    An axis that is not in `by` has one entry: those positions or heads are patched together.
    """
    n_ctx = pairs.clean.shape[1]
    head_axis, position_axis = AXES[tap]
    sets = {"position": _members(positions, n_ctx), "head": _members(heads, n_heads_of(tap, config))}
    # -1 stands for all of the set together.
    varied = [np.asarray(of if name in by else [-1]) for name, of in (("position", positions), ("head", heads))]
    grid = jnp.asarray(np.stack(np.meshgrid(*varied, indexing="ij"), axis=-1).reshape(-1, 2), jnp.int32)

    def some_rows(pairs: PairArrays) -> dict[str, jax.Array]:
        passes, of_resid = Passes(params, config, n_ctx), metric_fn(params, pairs, config, metric)
        runs = {name: passes.intact(getattr(pairs, name), ("resid_pre",)) for name in ("clean", "corrupted")}
        base, other = runs[into], runs["corrupted" if into == "clean" else "clean"]

        def of_layer(layer: Any) -> jax.Array:
            new = passes.seen_at(other[1]["resid_pre"][layer], layer, (tap,))[tap]

            def one(place: jax.Array) -> jax.Array:
                is_here = _along(sets["position"], place[0], position_axis, new.ndim)
                if head_axis is not None:
                    is_here &= _along(sets["head"], place[1], head_axis, new.ndim)
                put = partial(_replaced, new=new, is_here=is_here)
                resid = passes.layer(
                    base[1]["resid_pre"][layer], layer, lambda _name, _index, value: put(value), (tap,)
                )
                return of_resid(passes.behind(resid, layer + 1))

            return jax.lax.map(one, grid, batch_size=patches_at_a_time(pairs))

        patched = passes.map_layers(of_layer, layers)
        shape = (len(layers), *(len(of) for of in varied), -1)
        return {"patched": patched.reshape(shape)} | {name: of_resid(run[0]) for name, run in runs.items()}

    found: dict[str, jax.Array] = by_rows(some_rows, pairs, row_tokens(tap, n_ctx))
    return found


def row_tokens(tap: str, n_ctx: int) -> int | None:
    """Tokens of a pass, None for the usual number: patterns grow with the square of the row."""
    return _PATTERN_ENTRIES // n_ctx if tap in ("attn_scores", "pattern") else None


def _members(of: tuple[int, ...], n: int) -> np.ndarray:
    return np.isin(np.arange(n), of)


def _along(is_member: np.ndarray, index: jax.Array, axis: int, ndim: int) -> jax.Array:
    """True at `index`, or for -1 at all members, on an axis of an activation."""
    is_here = jnp.where(index < 0, is_member, jnp.arange(len(is_member)) == index)
    return is_here.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _replaced(value: jax.Array, new: jax.Array, is_here: jax.Array) -> jax.Array:
    return jnp.where(is_here, new, value)


_compiled = jax.jit(patched_metric, static_argnums=tuple(range(2, 10)))


def activation_patching(
    params: AnyParams, pairs: TokenPairs, config: ModelConfig, tap: str = "z", *,
    by: Sequence[str] | None = None, layers: Sequence[int] | None = None, positions: Sequence[int] | None = None,
    heads: Sequence[int] | None = None, metric: str = "loss", into: str = "clean",
) -> xr.Dataset:  # fmt: skip
    """The metric with each patch: `patched` [layer, and what is in `by`, row], `clean` and `corrupted` [row], `share`.

    `by`: "head", "position" or both; what is not in it is patched together. Default: by head where the activation has
    heads, else by position. `layers`, `positions`, `heads`: those that are patched; default all. metric: see
    `icl_jax.measures.token_pairs`. `share` is NaN where clean and corrupted rows do not differ. Compiled for each shape
    of pairs; some 4,096 tokens are computed at a time. Raises UserError for what the model or the activation lacks.
    """
    check_tap(tap, config)
    arrays = pairs.arrays(config, metric)
    check_into(into)
    has_heads = AXES[tap][0] is not None
    by = tuple(by) if by is not None else ("head",) if has_heads else ("position",)
    if odd := [name for name in by if name not in ("position", "head")]:
        raise UserError(f"by has {odd[0]!r}: must be of position, head")
    if not has_heads and ("head" in by or heads is not None):
        raise UserError(f"tap = {tap!r}: has no heads: by must be ('position',), and heads None")
    sizes = {"layers": config.n_layers, "positions": arrays.clean.shape[1], "heads": n_heads_of(tap, config)}
    given = {"layers": layers, "positions": positions, "heads": heads}
    chosen = {name: _indexes(name, given[name], n) for name, n in sizes.items()}
    found = _compiled(as_jax(params), arrays, config, tap, metric, into, *chosen.values(), by)
    dims = [name for name in ("position", "head") if name in by]
    drop = tuple(i for i, name in ((1, "position"), (2, "head")) if name not in by)
    patched = np.squeeze(np.asarray(found["patched"]), axis=drop)
    coords = {"layer": list(chosen["layers"])} | {name: list(chosen[f"{name}s"]) for name in dims}
    return as_dataset(patched, ("layer", *dims), coords, found, metric, into, f"{tap} patched")


def as_dataset(
    patched: np.ndarray, dims: tuple[str, ...], coords: dict[str, Any], found: dict[str, Any], metric: str,
    into: str, text: str,
) -> xr.Dataset:  # fmt: skip
    """What patching found, with names and units."""
    clean, corrupted = (np.asarray(found[name]) for name in ("clean", "corrupted"))
    base, other = (clean, corrupted) if into == "clean" else (corrupted, clean)
    attrs = {"units": UNITS[metric]}
    values = {
        "patched": ((*dims, "row"), patched, attrs | {"long_name": f"{metric}, {text}"}),
        "clean": (("row",), clean, attrs | {"long_name": f"{metric} of the clean rows"}),
        "corrupted": (("row",), corrupted, attrs | {"long_name": f"{metric} of the corrupted rows"}),
        "share": (
            dims, shares(patched, base, other),
            {"units": "1", "long_name": "part of the difference between clean and corrupted rows that the patch makes"},
        ),
    }  # fmt: skip
    return xr.Dataset(values, coords=coords, attrs={"metric": metric, "into": into})


def shares(patched: np.ndarray, base: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What a patch does, as a part of what other tokens do; of means over rows, the last axis. NaN for none."""
    moved, whole = (np.mean(x, axis=-1) - np.mean(base, axis=-1) for x in (patched, other))
    return np.divide(moved, whole, out=np.full(np.shape(moved), np.nan, np.float32), where=whole != 0)


def _indexes(name: str, given: Sequence[int] | None, n: int) -> tuple[int, ...]:
    if given is None:
        return tuple(range(n))
    chosen = tuple(int(i) for i in given)
    if not chosen:
        raise UserError(f"{name} = []: must name one or more")
    if odd := [i for i in chosen if not 0 <= i < n]:
        raise UserError(f"{name} has {odd[0]}: must be from 0 to {n - 1}")
    return chosen


def look(at: Snapshot, *arrays: jax.Array) -> dict[str, jax.Array]:
    pairs, model = PairArrays(*arrays), at.config
    every = tuple(range(model.n_layers)), tuple(range(pairs.clean.shape[1])), tuple(range(model.n_heads))
    resid = patched_metric(at.params, pairs, model, "resid_pre", "loss", "clean", *every, ("position",))
    heads = patched_metric(at.params, pairs, model, "z", "loss", "clean", *every, ("head",))
    clean = resid["clean"]
    return {
        "resid": jnp.mean(resid["patched"][:, :, 0] - clean[None, None], axis=-1),
        "heads": heads["patched"][:, 0] - clean[None, None],
        "all": jnp.mean(resid["corrupted"] - clean),
    }


def finish(_context: Context, _params: StackedParams, seen: Arrays) -> Arrays:
    mean, error = mean_and_sem(seen["heads"])
    return {
        "patched_resid_effect": seen["resid"], "patched_head_effect": mean, "patched_head_effect_sem": error,
        "patched_all_effect": seen["all"],
    }  # fmt: skip


def mean_and_sem(by_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the last axis, its mean and standard error."""
    return by_row.mean(axis=-1), by_row.std(axis=-1, ddof=1) / np.sqrt(by_row.shape[-1])


MEASUREMENT = Measurement(
    name="activation_patching",
    source="Meng et al. 2022; Wang et al. 2022; Zhang and Nanda 2024",
    variables={
        "patched_resid_effect": Variable(
            ("layer", "pair_position"), "nats", "loss of repeats with the stream entering a layer at a position that "
            "of rows without repeats, less as they are",
        ),
        "patched_head_effect": Variable(
            ("layer", "head"), "nats", "the same of a head's output at all positions"
        ),
        "patched_head_effect_sem": Variable(("layer", "head"), "nats", "its standard error over rows"),
        "patched_all_effect": Variable((), "nats", "the same of the tokens themselves: loss without repeats less with"),
    },
    look=look,
    finish=finish,
    reads=reads_pairs,
    why_not=needs_pairs,
    on_few=True,
    on_request=True,
)  # fmt: skip
