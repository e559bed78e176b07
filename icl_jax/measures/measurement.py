"""What a measurement is: pure functions, the variables that they fill and when it applies."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import jax
import numpy as np
import xarray as xr

from icl_jax.config import Config, ModelConfig
from icl_jax.maths.head_scores import repeated_tokens
from icl_jax.measures.map_snapshots import StackedParams as StackedParams
from icl_jax.measures.map_snapshots import map_snapshots
from icl_jax.measures.snapshot import Snapshot
from icl_jax.model.params import Params

N_SEQUENCES = 10
MAX_PATTERN_CTX = 512
_REPEAT_LEN, _N_REPEATS = 25, 4
_STRIPE_LEN = 50
_N_SAMPLED_TOKENS = 2048
_ABLATION_TOKENS = 2**14
_N_EXAMPLES = 8
_N_LABELLED = 1024
# Floating-point operations of a measurement and snapshot: half an hour on a few cores.
_MOST_WORK = 5e14


@dataclass(frozen=True, slots=True)
class Variable:
    """One array of analysis.zarr. Dims leave out the snapshot axis, which stands in front of all of them."""

    dims: tuple[str, ...]
    units: str
    """nats, attention (a share of attention, [0, 1]) or 1 (a plain number)."""
    text: str
    """One line: what it is, and its range."""
    missing: str = ""
    """Why entries may be NaN; empty: none may."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What training recorded itself. No measurement of a snapshot reads it, what is derived from curves may."""

    schedule: tuple[np.ndarray, np.ndarray]
    """Tokens and learning rate at each step."""
    probe_tokens: np.ndarray
    probe_icl: np.ndarray
    """The windowed ICL score at each live probe, nats."""
    probe_loss: np.ndarray | None = None
    """Mean loss of the held-out tokens at each, nats."""
    probe_heads: dict[str, np.ndarray] = field(default_factory=dict)
    """[probe, layer, head] scores of heads, by name."""


@dataclass(frozen=True)
class Context:
    """What the measurements of a run share besides its parameters: fixed rows, the same for all snapshots."""

    config: Config
    held_out: np.ndarray
    """int32 [row, position + 1]; rows that were never trained on, BOS first."""
    candidates: np.ndarray
    """Token ids for random sequences: neither the most nor the least common."""
    bos_id: int
    seed: int
    bigram_counts: np.ndarray | None = None
    """[token, next token] counts of the first training rows; None for a large vocabulary."""
    label_names: tuple[str, ...] = ()
    """What single held-out tokens show; empty for a corpus without labels."""
    labels: np.ndarray | None = None
    """uint8 [row, position + 1]: i for the i-th label name from 1, 0 for no label; None without label names."""
    chains: np.ndarray | None = None
    """[row, last states, next state]: the transitions that each held-out row of the `markov` corpus was drawn from."""
    recorded: Recorded | None = None
    """None for a run whose record has no steps yet."""

    def of_member(self, config: Config, recorded: Recorded | None) -> "Context":
        """That of another member of the run, whose rows are the same."""
        other = replace(self, config=config, recorded=recorded)
        if (config.model, config.data) == (self.config.model, self.config.data):
            other.__dict__["fingerprint"] = self.fingerprint  # hashed once
        return other

    @cached_property
    def repeated(self) -> np.ndarray:
        """int32 [sequence, position]: BOS and a block of distinct random tokens four times (10 sequences of 101)."""
        return self._random_sequences(_REPEAT_LEN, _N_REPEATS)

    @cached_property
    def repeated_once(self) -> np.ndarray:
        """int32 [sequence, position]: BOS and a block of distinct random tokens twice (10 sequences of 101)."""
        return self._random_sequences(_STRIPE_LEN, 2)

    def _random_sequences(self, repeat_len: int, n_repeats: int) -> np.ndarray:
        return repeated_tokens(
            self.candidates, self.bos_id, self.config.model.n_ctx, n_sequences=N_SEQUENCES, repeat_len=repeat_len,
            n_repeats=n_repeats, seed=self.seed,
        )  # fmt: skip

    @cached_property
    def natural(self) -> np.ndarray:
        """int32 [sequence, position]: up to 10 held-out rows, cut at 512 tokens."""
        return self.held_out[:N_SEQUENCES, : min(self.config.model.n_ctx, MAX_PATTERN_CTX)]

    @cached_property
    def sampled(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and position of the tokens whose losses are kept one by one, [token] each.

        At fixed random positions, equally many in each row: the paper takes one in each of its 10,000 examples; a run
        directory holds fewer rows, so there are several, until there are about 2,000.
        """
        n_rows, n_ctx = len(self.held_out), self.config.model.n_ctx
        n_each = max(1, min(n_ctx, _N_SAMPLED_TOKENS // n_rows))
        rng = np.random.default_rng([self.seed, 1])
        positions = [np.sort(rng.choice(n_ctx, n_each, replace=False)) for _ in range(n_rows)]
        return np.repeat(np.arange(n_rows), n_each), np.concatenate(positions)

    @cached_property
    def labelled(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and position of the labelled tokens kept one by one, [labelled] each: the first 1,024 of each label."""
        if self.labels is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        labels_BT = self.labels[:, 1:]
        found = [np.argwhere(labels_BT == i + 1)[:_N_LABELLED] for i in range(len(self.label_names))]
        rows, positions = np.concatenate(found).T
        return rows, positions

    @property
    def n_examples(self) -> int:
        """The losses of the first so many held-out rows are kept whole, to look at."""
        return min(_N_EXAMPLES, len(self.held_out))

    @cached_property
    def n_ablation_rows(self) -> int:
        """The first so many held-out rows are those of the ablations: about 16,000 tokens, a pass for every head."""
        n_rows = len(self.held_out)
        return max(1, min(n_rows, max(8, _ABLATION_TOKENS // self.config.model.n_ctx)))

    @cached_property
    def n_ablation_tokens(self) -> int:
        """The first so many of the sampled tokens lie in the rows of the ablations."""
        return int(np.sum(self.sampled[0] < self.n_ablation_rows))

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a `Snapshot` reads: held_out, natural, repeated, repeated_once, and labels where there are any."""
        rows = {"held_out": self.held_out, "natural": self.natural, "repeated": self.repeated,
                "repeated_once": self.repeated_once}  # fmt: skip
        return rows if self.labels is None else rows | {"labels": self.labels.astype(np.int32)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that a measurement may read besides the parameters and its own constants."""
        said = (self.config.model, self.config.data, self.bos_id, self.seed, self.label_names, self.n_examples,
                self.n_ablation_rows)  # fmt: skip
        digest = hashlib.sha256(repr(said).encode())
        arrays = (self.candidates, self.bigram_counts, self.labels, self.chains, *self.sampled, *self.labelled)
        for array in (*self.arrays.values(), *arrays):
            digest.update(
                b"none" if array is None else f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes()
            )
        return digest.hexdigest()


Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Measurement:
    """Taken from each snapshot on its own: by `look`, by `finish` or by one after the other."""

    name: str
    source: str
    """Paper and section."""
    variables: dict[str, Variable]
    finish: Callable[[Context, StackedParams, Arrays], Arrays] = lambda _context, _params, seen: seen
    """NumPy, of several snapshots: their weights and what `look` saw of them -> the variables. Every array has the
    snapshot axis in front. Must not depend on which snapshots share a call."""
    look: Callable[..., dict[str, jax.Array]] | None = None
    """JAX, of one snapshot, and of the arrays that `reads` gives. All looks at a snapshot are one program."""
    reads: Callable[[Context], tuple[np.ndarray, ...]] = lambda _context: ()
    why_not: Callable[[Context], str | None] = lambda _context: None
    """The reason why the measurement is undefined for a run, or None where it applies."""
    live: tuple[str, ...] = ()
    """Which of its variables, scores of heads that `look` gives, training records at its probes under the same name."""
    on_few: bool = False
    """Costly: taken at about 20 snapshots, the ends of the phase change among them; their axis is `selected`."""
    on_request: bool = False
    """Taken only where it is asked for by its name."""
    work: Callable[[Context], float] = lambda _context: 0.0
    """Floating-point operations of a snapshot, roughly, where they may be too many to be taken unasked."""
    version: int = 1
    """Goes up when the numbers change, so that what an older program measured is measured again."""

    def too_much(self, context: Context) -> str | None:
        """Why it is taken only where it is asked for by its name, or None."""
        if self.on_request:
            return f"taken only where it is asked for: icl-jax analyze RUN --only {self.name}"
        work = self.work(context)
        if work <= _MOST_WORK:
            return None
        return (
            f"{work / 1e15:.1f}e15 operations a snapshot are made only where they are asked for: "
            f"icl-jax analyze RUN --only {self.name} (--rows: of fewer rows)"
        )

    @property
    def snapshot_dim(self) -> str:
        """The axis in front of its variables."""
        return "selected" if self.on_few else "snapshot"

    @property
    def constants(self) -> dict[str, object]:
        """The plain constants of its module: with another one the numbers are others."""
        module = (self.look or self.finish).__globals__
        return {name: value for name, value in module.items()
                if name.isupper() and isinstance(value, int | float | str | tuple)}  # fmt: skip

    def measure(self, context: Context, params: StackedParams) -> Arrays:
        """Its variables for several snapshots."""
        return next(measure_all((self,), context, params))[1]


def measure_all(
    measurements: tuple[Measurement, ...], context: Context, params: StackedParams
) -> Iterator[tuple[Measurement, Arrays]]:
    """Each measurement with its variables for several snapshots; all of them look at a snapshot in one program."""
    looking = tuple(m for m in measurements if m.look is not None)
    seen: dict[str, Arrays] = {}
    if looking:
        reads = {m.name: m.reads(context) for m in looking}
        seen = map_snapshots(_looks(looking), params, context.arrays, reads, config=context.config.model)
    for measurement in measurements:
        yield measurement, measurement.finish(context, params, seen.get(measurement.name, {}))


@lru_cache(maxsize=64)
def _looks(measurements: tuple[Measurement, ...]) -> Callable[..., dict[str, dict[str, jax.Array]]]:
    def look(
        params: Params, rows: dict[str, jax.Array], reads: dict[str, tuple[jax.Array, ...]], config: ModelConfig
    ) -> dict[str, dict[str, jax.Array]]:
        snapshot = Snapshot(params, rows, config)
        return {m.name: m.look(snapshot, *reads[m.name]) for m in measurements if m.look is not None}

    return look


class UndefinedError(Exception):
    """Raised by `Derived.derive` where what was measured does not define it; the text is the reason, for `absent`."""


@dataclass(frozen=True)
class Derived:
    """Computed from the variables of other measurements over all snapshots."""

    name: str
    source: str
    needs: tuple[str, ...]
    """Variables that must be there."""
    variables: dict[str, Variable]
    """Here dims are complete: the snapshot axis is named where there is one."""
    derive: Callable[[Context, xr.Dataset], dict[str, np.ndarray]]
    """Raises UndefinedError where the snapshots are too few."""
    why_not: Callable[[Context], str | None] = lambda _context: None
    version: int = 1


def needs_layers(context: Context) -> str | None:
    """A `why_not` for measurements of heads."""
    return None if context.config.model.n_layers else "the model has no layers, so it has no heads"


def attention_only(context: Context, max_layers: int | None = None) -> str | None:
    """A `why_not` for expansions into paths."""
    model = context.config.model
    if model.n_layers == 0:
        return "the model has no layers, so its logits are one term"
    if model.d_mlp:
        return f"an MLP is not linear, so its paths do not add up; model.d_mlp = {model.d_mlp}"
    added = [name for name in ("b_V", "b_O", "b_U") if name in model.biases]
    if added:
        return f"biases are terms that no path holds; model.biases has {', '.join(added)}"
    if model.norm_position != "pre":
        return f"a norm of what a layer writes has no share in a path; model.norm_position = {model.norm_position!r}"
    if model.logit_soft_cap:
        return f"logits with a cap are no sum of paths; model.logit_soft_cap = {model.logit_soft_cap}"
    if max_layers is not None and model.n_layers > max_layers:
        return f"paths are expanded for up to {max_layers} layers, their number grows fast; {model.n_layers = }"
    return None


def needs_plain_keys(context: Context) -> str | None:
    """A `why_not` for measurements that read attention scores off W_Q and W_K."""
    model = context.config.model
    if model.qk_norm != "none":
        return f"queries and keys are normalised, so W_Q and W_K do not say scores; model.qk_norm = {model.qk_norm!r}"
    return None
