"""Interventions as a tap of the forward pass, as other parameters, and as updates that are not made.

Which are on is fixed when a program is compiled; on which heads, how strong, of which seed, and what another run has
are arguments: members share a program, and heads may be chosen while it trains.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.config import Config, ModelConfig
from icl_jax.config.axes import ACTIVATION_AXES
from icl_jax.config.interventions import Intervention
from icl_jax.interventions.at import At
from icl_jax.interventions.donors import Donor, open_donor
from icl_jax.model.forward import TapFn, embedded, positions_TD
from icl_jax.model.params import Params, declarations

Given = Mapping[str, Mapping[str, Any]]
"""By an intervention's number, as text: `mask` bool [layer, head], `number`, `seed`, and `donor`, parameters."""


@dataclass(frozen=True)
class Intervened:
    """The interventions that are on in one program, with its arguments."""

    config: ModelConfig
    on: Mapping[int, Intervention]
    """By their numbers, in their order."""
    layers: Mapping[int, frozenset[int]]
    """Those that an intervention may be on in."""
    donors: Mapping[int, Donor]
    given: Given
    step: Any = 0
    axes: tuple[str, ...] = ()
    """Mapped axes that the rows of a step are shared out over."""

    def params(self, params: Params) -> Params:
        """The parameters that the forward pass takes."""
        changed = dict(params)
        for i, one in self.on.items():
            if one.at in changed and not one.kind.stops_updates:
                before = changed[one.at]
                at = self._at(i, None, params, jnp.zeros((0, self.config.n_ctx), jnp.int32), None, {})
                changed[one.at] = jnp.where(self.mask_of(i), one.kind.apply(before, at).astype(before.dtype), before)
        return changed

    def frozen(self) -> dict[str, list[jax.Array]]:
        """Of parameters that are not updated, where: masks of their shape."""
        found: dict[str, list[jax.Array]] = {}
        for i, one in self.on.items():
            if one.kind.stops_updates and one.at not in ACTIVATION_AXES:
                found.setdefault(one.at, []).append(self.mask_of(i))
        return found

    def mask_of(self, i: int) -> jax.Array:
        """Where an intervention at a parameter is on, broadcast to its axes."""
        declared = declarations(self.config)[self.on[i].at]
        letters, mask_NH = declared.axes.split(), self.given[str(i)]["mask"]
        if "H" not in letters and "G" not in letters:
            mask = jnp.any(mask_NH, axis=1) if "N" in letters else jnp.any(mask_NH)
            return jnp.broadcast_to(jnp.expand_dims(mask, range(mask.ndim, len(letters))), declared.shape)
        mask = mask_NH[:, : declared.shape[1]]
        return jnp.broadcast_to(jnp.expand_dims(mask, range(2, len(letters))), declared.shape)

    @property
    def seen(self) -> dict[int, frozenset[str]]:
        """Of each layer the activations that the tap is to be called for."""
        names: dict[int, set[str]] = {}
        for i, one in self.on.items():
            if one.at in ACTIVATION_AXES:
                for layer in self.layers[i]:
                    names.setdefault(layer, set()).update({one.at} | ({"pattern"} if one.kind.reads_pattern else set()))
        return {layer: frozenset(found) for layer, found in names.items()}

    @property
    def reads_whole_batch(self) -> bool:
        """Whether one needs all of a device's rows at once."""
        return any(one.kind.whole_batch for one in self.on.values())

    def tap(self, params: Params, tokens: jax.Array, rows: jax.Array | None = None) -> TapFn | None:
        """The tap; None where all are at parameters. `rows`: their numbers in the step, from 0 unless given."""
        if not self.seen:
            return None
        rows = jnp.arange(tokens.shape[0]) if rows is None else rows
        # Before the layers: what is made in one of several that are scanned must not be kept.
        theirs = {
            i: donor.activations(self.given[str(i)]["donor"], tokens, self.on[i].at)
            for i, donor in self.donors.items()
            if i in self.on and self.on[i].at in ACTIVATION_AXES
        }
        pattern: dict[str, jax.Array] = {}

        def tap(name: str, layer: Any, value: jax.Array) -> jax.Array:
            for i, one in self.on.items():
                if one.at == name and (not isinstance(layer, int) or layer in self.layers[i]):
                    at = self._at(i, layer, params, tokens, rows, theirs)._replace(pattern=pattern.get("pattern"))
                    value = _changed(value, at, one, jnp.asarray(self.given[str(i)]["mask"])[layer])
            if name == "pattern":
                pattern["pattern"] = value
            return value

        return tap

    def _at(
        self, i: int, layer: Any, params: Params, tokens: jax.Array, rows: jax.Array | None, theirs: Mapping[int, Any]
    ) -> At:
        one, given = self.on[i], self.given[str(i)]
        rng = jax.random.key(jnp.asarray(given["seed"], jnp.uint32))
        for part in (self.step, i, 0 if layer is None else layer):
            rng = jax.random.fold_in(rng, jnp.asarray(part, jnp.uint32))

        def random(shape: tuple[int, ...]) -> jax.Array:
            if rows is None:
                return jax.random.normal(rng, shape, jnp.float32)
            draw = jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(rng, row), shape[1:], jnp.float32))
            return draw(jnp.asarray(rows, jnp.uint32))

        def mean(value: jax.Array) -> jax.Array:
            own = jnp.mean(value, axis=0, keepdims=True)
            return jax.lax.pmean(own, self.axes) if self.axes else own

        def embedding() -> jax.Array:
            W_pos = params.get("W_pos")
            return embedded(params, tokens, positions_TD(W_pos, tokens.shape[1], self.config), self.config)

        def donor() -> jax.Array:
            if layer is None:
                return self.donors[i].parameter(given["donor"], one.at, declarations(self.config)[one.at].shape)
            return self.donors[i].of_layer(theirs[i], layer, one.at, self.config)

        return At(
            one.at, layer, one.options, jnp.asarray(given["number"], jnp.float32), self.config, params, tokens, None,
            embedding, donor, mean, random,
        )  # fmt: skip


def _changed(value: jax.Array, at: At, one: Intervention, mask_H: jax.Array) -> jax.Array:
    """The value with what is put in its place where the mask is; what attention must not see it does not see after."""
    letters = ACTIVATION_AXES[at.name].split()
    if "H" in letters or "G" in letters:
        axis = next(i for i, letter in enumerate(letters) if letter in "HG")
        mask = jnp.expand_dims(mask_H[: value.shape[axis]], [i for i in range(value.ndim) if i != axis])
    else:
        mask = jnp.any(mask_H)
    if at.name == "attn_scores":  # of hidden keys minus infinity, of which no gradient must be taken
        is_hidden = jnp.isneginf(value)
        new = jnp.where(is_hidden, -jnp.inf, one.kind.apply(jnp.where(is_hidden, 0.0, value), at).astype(value.dtype))
    else:
        new = one.kind.apply(value, at).astype(value.dtype)
    if at.name == "pattern":
        new = jnp.where(jnp.tril(jnp.ones(value.shape[-2:], bool))[None, None], new, 0)
    return jnp.where(mask, new, value)


def layers_of(config: Config, i: int) -> frozenset[int]:
    """Layers that an intervention is on in, in any member."""
    every = range(config.model.n_layers)
    members = [config.member(k) for k in range(len(config.members))] or [config]
    return frozenset(layer for member in members for layer in (member.intervene[i].layers or every))


def heads_mask(one: Intervention, model: ModelConfig, formed: np.ndarray | None = None) -> np.ndarray:
    """bool [layer, head]: where it is on; `formed`: the induction heads, [layer, head], when the first was there.

    One layer at least and one head, for what has none.
    """
    n_heads = model.n_heads
    mask = np.zeros((max(model.n_layers, 1), n_heads), bool)
    heads: Any = list(one.heads) if one.heads and not isinstance(one.heads, str) else list(range(n_heads))
    heads = [head for head in heads if head not in one.except_heads]
    mask[np.ix_(list(one.layers) or list(range(len(mask))), heads)] = True
    if one.heads == "formed":
        mask &= np.zeros_like(mask) if formed is None else formed
    return mask


def open_donors(interventions: Sequence[Intervention], config: Config) -> dict[int, Donor]:
    """The other runs that interventions take from, by their numbers. Raises UserError."""
    ones = enumerate(interventions)
    return {i: open_donor(one, config, f"intervene.{i}") for i, one in ones if one.what == "from_run"}


def given_of(
    one: Intervention, model: ModelConfig, *, seed: int = 0, donor: Donor | None = None,
    formed: np.ndarray | None = None, is_on: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """The arguments of a program for one intervention, as NumPy arrays."""
    mask = heads_mask(one, model, formed) & is_on
    given: dict[str, Any] = {"mask": mask, "number": np.float32(one.number), "seed": np.uint32(seed)}
    return given | ({} if donor is None else {"donor": donor.params})


def intervened(
    interventions: Sequence[Intervention], config: Config, *, step: int = 0, formed: np.ndarray | None = None
) -> Intervened:
    """Interventions, all on, for functions of (params, tokens): `with_interventions` calls one.

    Raises UserError where one cannot work on such a model.
    """
    for i, one in enumerate(interventions):
        one.check(config, f"intervene.{i}")
    donors = open_donors(interventions, config)
    every = frozenset(range(config.model.n_layers))
    return Intervened(
        config.model, dict(enumerate(interventions)),
        {i: frozenset(one.layers) or every for i, one in enumerate(interventions)}, donors,
        {
            str(i): given_of(one, config.model, seed=config.train.seed, donor=donors.get(i), formed=formed)
            for i, one in enumerate(interventions)
        },
        step,
    )  # fmt: skip


def with_interventions(
    function: Callable[..., Any], params: Params, tokens: jax.Array, config: Config,
    interventions: Sequence[Intervention], **options: Any,
) -> Any:  # fmt: skip
    """``function(params, tokens, config.model, tap=, seen=)``, such as `forward` or `losses`, under interventions.

    Of rows whose last token is only predicted, as `losses` takes them, the tap is told all but it.
    """
    on = intervened(interventions, config)
    changed, is_rows = on.params(params), "rows" in function.__annotations__
    tap = on.tap(changed, tokens[:, :-1] if is_rows else tokens)
    return function(changed, tokens, config.model, **options, **({} if tap is None else {"tap": tap, "seen": on.seen}))
