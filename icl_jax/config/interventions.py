"""``[[intervene]]``: what is done to an activation or a parameter while a model trains.

A kind, its options too, is declared in its file of ``icl_jax/interventions``; config stands below that room, so the
file is imported by name, and only when a config asks for its kind.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from icl_jax.config.axes import ACTIVATION_AXES
from icl_jax.config.checks import check_types, require
from icl_jax.config.errors import UserError
from icl_jax.config.tables import unknown

if TYPE_CHECKING:
    from icl_jax.config.model import ModelConfig
    from icl_jax.config.schema import Config

NAMES = (
    "zero", "mean", "scale", "noise", "freeze", "pattern", "temperature", "embedding", "copy", "from_run",
)  # fmt: skip
"""Files of ``icl_jax/interventions`` that hold an ``INTERVENTION``."""
FIRST_INDUCTION_HEAD = "first_induction_head"
"""The first probe at which a head's prefix matching reaches `HEAD_THRESHOLD`, as the W&B alert has it."""
HEAD_THRESHOLD = 0.4
"""What a head must score to be called by the name of its score. The paper discloses no value; this is ARENA's."""
FORMED = "formed"
"""For ``heads``: those that had reached it at that probe."""
LAST_STEP = 2**31 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Further keys of a kind; one without any has this one."""

    def check(self, one: "Intervention", config: "Config", where: str) -> None:
        """Raise UserError where the rest of the config does not go with them; `where` begins the names of fields."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What an intervention's file declares as ``INTERVENTION``."""

    apply: Callable[..., Any]
    """``apply(value, at)``: what takes the value's place; see `icl_jax.interventions.at.At`."""
    options: type[Options] = Options
    number: str = ""
    """The option that is an argument of the compiled program, so that members may differ in it."""
    taps: tuple[str, ...] = tuple(ACTIVATION_AXES)
    """Activations that it goes with."""
    parameters: bool = True
    """It goes with parameters."""
    stops_updates: bool = False
    """Of a parameter it stops the updates, and leaves the value."""
    reads_pattern: bool = False
    """It reads the layer's pattern."""
    whole_batch: bool = False
    """It reads all rows of a step at once."""


def kind_of(name: str) -> Kind:
    """The kind of one of the NAMES."""
    kind: Kind = import_module(f"icl_jax.interventions.{name}").INTERVENTION
    return kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervention:
    """One ``[[intervene]]``: where, when, and what. In a file `since` is called ``from``."""

    what: str
    """Name of its kind; in a file it may be left out where a key of that name is there: ``scale = 0.5``."""
    at: str
    """An activation of the forward pass, or a parameter."""
    layers: tuple[int, ...] = ()
    """Empty: all."""
    heads: tuple[int, ...] | str = ()
    """Empty: all; "formed": those that were induction heads when it began."""
    except_heads: tuple[int, ...] = ()
    """All heads but these, in place of `heads`."""
    since: int | str = 0
    """First step, or "first_induction_head"."""
    until: int | str = LAST_STEP
    """Step that it is off again, or "first_induction_head"."""
    options: Options = field(default=Options())

    @property
    def kind(self) -> Kind:
        """What its file declares."""
        return kind_of(self.what)

    @property
    def number(self) -> float:
        """The option that is an argument of the program; 0 for a kind without."""
        return float(getattr(self.options, self.kind.number)) if self.kind.number else 0.0

    @property
    def waits(self) -> bool:
        """Whether the first induction head begins or ends it."""
        return FIRST_INDUCTION_HEAD in (self.since, self.until)

    def is_on(self, step: int, head_step: int | None) -> bool:
        """At a step of training; `head_step`: of the probe that saw the first induction head, None before."""
        since, until = (head_step if isinstance(when, str) else when for when in (self.since, self.until))
        return since is not None and since <= step and (until is None or step < until)

    def with_value(self, name: str, value: int | float) -> "Intervention":
        """The same with one value of a member's. Raises UserError for a field that members cannot differ in."""
        key = _FIELDS.get(name, name)
        if key in ("layers", "heads", "except_heads", "since", "until"):
            changed: dict[str, Any] = {key: int(value) if key in ("since", "until") else (int(value),)}
            return replace(self, **changed)
        known = [*_SHARED[2:], *([self.kind.number] if self.kind.number else [])]
        if key not in known:
            raise unknown(f"intervene.N.{name}", known)
        return replace(self, options=replace(self.options, **{key: float(value)}))

    def check(self, config: "Config", where: str) -> None:
        """Raise UserError where it cannot work in a config; `where` is its name, ``intervene.0``."""
        axes = axes_of(self.at, config.model, where)
        kind = self.kind
        if self.at in ACTIVATION_AXES:
            allowed = f"must be of {', '.join(kind.taps)} with what = {self.what!r}" if kind.taps else _no_tap(self)
            require(self.at in kind.taps, f"{where}.at", self.at, allowed)
        else:
            require(kind.parameters, f"{where}.at", self.at, f"must be an activation with what = {self.what!r}")
        letters = axes.split()
        has_layers = self.at in ACTIVATION_AXES or "N" in letters
        n_layers = config.model.n_layers
        require(n_layers > 0 or not has_layers, f"{where}.at", self.at, "not with model.n_layers = 0")
        require(has_layers or not self.layers, f"{where}.layers", self.layers, f"{self.at} has no layers")
        allowed = f"must be layers from 0 to model.n_layers - 1 = {n_layers - 1}"
        require(all(0 <= n < n_layers for n in self.layers), f"{where}.layers", self.layers, allowed)
        n_heads = heads_on(axes, config.model)
        for name in ("heads", "except_heads"):
            heads = getattr(self, name)
            require(not heads or n_heads > 0, f"{where}.{name}", heads, f"{self.at} has no heads")
            allowed = f"must be heads from 0 to {n_heads - 1}"
            is_there = isinstance(heads, str) or all(0 <= head < n_heads for head in heads)
            require(is_there, f"{where}.{name}", heads, allowed)
        if self.heads == FORMED:
            allowed = f"only with from = {FIRST_INDUCTION_HEAD!r}"
            require(self.since == FIRST_INDUCTION_HEAD, f"{where}.heads", self.heads, allowed)
            allowed = f"must have a head for each of model.n_heads = {config.model.n_heads}"
            require(n_heads == config.model.n_heads, f"{where}.at", self.at, allowed)
        if self.waits:
            name = "from" if self.since == FIRST_INDUCTION_HEAD else "until"
            allowed = "needs probes.n_probes > 0 and model.n_layers > 0"
            has_probes = config.probes.n_probes > 0 and n_layers > 0
            require(has_probes, f"{where}.{name}", FIRST_INDUCTION_HEAD, allowed)
        if isinstance(self.since, int) and isinstance(self.until, int):
            require(self.since < self.until, f"{where}.until", self.until, f"must be more than from = {self.since}")
        require(self.since != self.until, f"{where}.until", self.until, "must not be what it begins with")
        if kind.whole_batch:
            allowed = f"must be 1 with what = {self.what!r}, which reads the whole batch"
            require(config.train.accum_steps == 1, "train.accum_steps", config.train.accum_steps, allowed)
        require(config.train.fsdp == 1, "train.fsdp", config.train.fsdp, "must be 1 with [[intervene]]")
        self.options.check(self, config, where)


_FIELDS = {"from": "since"}
_SHARED = ("what", "at", "layers", "heads", "except_heads", "from", "until")


def _no_tap(one: Intervention) -> str:
    return f"must be a parameter with what = {one.what!r}"


def axes_of(at: str, model: "ModelConfig", where: str = "intervene") -> str:
    """Letters of the axes of an activation or a parameter. Raises UserError where the model has none of that name."""
    if at in ACTIVATION_AXES:
        require(at != "mlp_out" or model.d_mlp > 0, f"{where}.at", at, "only with model.d_mlp > 0")
        return ACTIVATION_AXES[at]
    declarations: Mapping[str, Any] = import_module("icl_jax.model.params").declarations(model)
    if at not in declarations:
        known = [*ACTIVATION_AXES, *declarations]
        close = difflib.get_close_matches(at, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"{where}.at = {at!r}: {hint}must be an activation or a parameter: {', '.join(known)}")
    axes: str = declarations[at].axes
    return axes


def heads_on(axes: str, model: "ModelConfig") -> int:
    """How many heads there are along these axes, 0 for none."""
    letters = axes.split()
    return model.n_heads if "H" in letters else model.key_heads if "G" in letters else 0


def read(values: Any) -> tuple[Intervention, ...]:
    """The interventions of a file's list of tables. Raises UserError."""
    if not isinstance(values, list | tuple) or not all(isinstance(one, dict | Intervention) for one in values):
        raise UserError(f"intervene = {values!r}: must be a list of tables, [[intervene]]")
    return tuple(
        one if isinstance(one, Intervention) else _read_one(one, f"intervene.{i}") for i, one in enumerate(values)
    )


def _read_one(table: dict[str, Any], where: str) -> Intervention:
    named = [name for name in NAMES if name in table]
    what = table.get("what", named[0] if len(named) == 1 else None)
    allowed = f"must be one of {', '.join(map(repr, NAMES))}, or one key of such a name"
    require(isinstance(what, str) and what in NAMES, f"{where}.what", what if not named else ", ".join(named), allowed)
    options = kind_of(str(what)).options
    own = [f.name for f in fields(options)]
    for key in table:
        if key not in (*_SHARED, *own):
            raise unknown(f"{where}.{key}", [*_SHARED, *own])
    require("at" in table, f"{where}.at", None, "is missing: an activation or a parameter")
    require(
        isinstance(table["at"], str), f"{where}.at", table["at"], "must be the name of an activation or a parameter"
    )
    shared: dict[str, Any] = {}
    for name in ("layers", "heads", "except_heads"):
        value = table.get(name, ())
        if name == "heads" and value == FORMED:
            shared[name] = FORMED
            continue
        listed = [value] if type(value) is int else value
        is_list = isinstance(listed, list | tuple) and all(type(n) is int for n in listed)
        more = f", or {FORMED!r}" if name == "heads" else ""
        require(is_list, f"{where}.{name}", value, f"must be a whole number or a list of them{more}")
        shared[name] = tuple(sorted(set(listed)))
    require(
        not (shared["heads"] and shared["except_heads"]),
        f"{where}.except_heads",
        shared["except_heads"],
        "not with heads",
    )
    for name, plain in (("from", 0), ("until", LAST_STEP)):
        value = table.get(name, plain)
        is_step = type(value) is int and 0 <= value <= LAST_STEP
        allowed = f"must be a step from 0, or {FIRST_INDUCTION_HEAD!r}"
        require(is_step or value == FIRST_INDUCTION_HEAD, f"{where}.{name}", value, allowed)
        shared[_FIELDS.get(name, name)] = value
    try:
        chosen = options(**{name: table[name] for name in own if name in table})
        check_types(where, chosen, is_float32=True)
    except TypeError:
        raise UserError(f"{where}: what = {what!r} needs {', '.join(own)}") from None
    return Intervention(what=str(what), at=table["at"], options=chosen, **shared)


def to_table(one: Intervention) -> dict[str, Any]:
    """As a file says it: what is as by default is left out."""
    table: dict[str, Any] = {"what": one.what, "at": one.at}
    table |= {name: getattr(one, name) for name in ("layers", "heads", "except_heads") if getattr(one, name)}
    if one.since != 0:
        table["from"] = one.since
    if one.until != LAST_STEP:
        table["until"] = one.until
    return table | asdict(one.options)


def words(one: Intervention) -> str:
    """One line for people: ``pattern = 'previous' at pattern, layers 0, from step 200``."""
    options = asdict(one.options)
    own = options.get(one.what)
    parts = [one.what if own is None else f"{one.what} {own}", f"at {one.at}"]
    parts += [f"layer {', '.join(map(str, one.layers))}"] if one.layers else []
    if one.heads:
        parts.append("heads that formed" if one.heads == FORMED else f"head {', '.join(map(str, one.heads))}")
    parts += [f"all heads but {', '.join(map(str, one.except_heads))}"] if one.except_heads else []
    parts += [f"from {one.since}"] if one.since != 0 else []
    parts += [f"until {one.until}"] if one.until != LAST_STEP else []
    return " ".join(parts)


def check_all(config: "Config") -> None:
    """Raise UserError where an intervention cannot work, or is undone by the next at the same place."""
    for i, one in enumerate(config.intervene):
        one.check(config, f"intervene.{i}")
        for j, later in enumerate(config.intervene[i + 1 :], i + 1):
            if _hides(later, one):
                allowed = f"does to intervene.{i}'s place what undoes it, at the same steps: leave one out"
                raise UserError(f"intervene.{j}.at = {later.at!r}: {allowed}")


_REPLACING = ("zero", "mean", "pattern", "embedding", "copy", "from_run")
"""Of the value that was there they keep nothing."""


def _hides(later: Intervention, one: Intervention) -> bool:
    def covers(all_of: Any, some: Any) -> bool:
        return not all_of or (bool(some) and not isinstance(some, str) and set(some) <= set(all_of))

    is_same = later.at == one.at and later.what in _REPLACING and not one.kind.stops_updates
    is_whole = not later.except_heads and later.heads != FORMED
    return (
        is_same and is_whole and covers(later.layers, one.layers) and covers(later.heads, one.heads)
        and (later.since, later.until) == (one.since, one.until)
    )  # fmt: skip
