"""One pass over the checkpoints of a series: how far each tensor went, and which are equal."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.model.params import declarations

Tensors = Mapping[str, np.ndarray]
_SAMPLED = 4096
_TYPES = ((ml_dtypes.bfloat16, 2.0**-8), (np.float16, 2.0**-11))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """Of S checkpoints in the order of their steps, each of the same U tensors. Lengths are Euclidean."""

    steps: Int[np.ndarray, " S"]
    names: list[str]
    sizes: Int[np.ndarray, " U"]
    """Numbers in a tensor."""
    is_matrix: Bool[np.ndarray, " U"]
    norms: Float[np.ndarray, "S U"]
    from_start: Float[np.ndarray, "S U"]
    """Distance from the first checkpoint."""
    from_last: Float[np.ndarray, "S U"]
    """Distance from the checkpoint before; NaN for the first."""
    from_last_but_one: Float[np.ndarray, "S U"]
    """NaN for the first two."""
    dot_last: Float[np.ndarray, "S U"]
    """Inner product with the checkpoint before; NaN for the first."""
    is_constant: Bool[np.ndarray, "S U"]
    """All numbers of the tensor are one."""
    spacing: Float[np.ndarray, "S U"]
    """Between neighbours of the type that the tensor is kept in, at its median size: less is lost in rounding."""
    hashes: list[list[bytes]]
    """[S][U]: equal where all bits are."""
    unlike: dict[int, str]
    """Step to the first tensor that it has and others lack, lacks and others have, or has in another shape."""


def layers_apart(params: Tensors, model: ModelConfig) -> dict[str, np.ndarray]:
    """The parameters of a run, those that are stacked over layers one by one: W_Q of layer 3 is W_Q.3."""
    stacked = {name for name, declared in declarations(model).items() if declared.is_stacked}
    found: dict[str, np.ndarray] = {}
    for name, array in params.items():
        found |= {f"{name}.{i}": one for i, one in enumerate(array)} if name in stacked else {name: array}
    return found


def follow(checkpoints: Iterable[tuple[int, Tensors]]) -> Trajectory | None:
    """Take the measure of each checkpoint as it comes; four are held at a time. None where there is none.

    A checkpoint whose tensors are not those of most is left out.
    """
    rows = list(_measured(checkpoints))
    if not rows:
        return None
    kinds = Counter(tuple(row[1].items()) for row in rows)
    shapes = dict(kinds.most_common(1)[0][0])
    unlike = {row[0]: min(name for name, _ in row[1].items() ^ shapes.items()) for row in rows if row[1] != shapes}
    rows = [row for row in rows if row[0] not in unlike]
    names = list(shapes)
    sizes = np.array([int(np.prod(shapes[name], dtype=int)) for name in names])
    numbers = np.array([[row[2][name] for name in names] for row in rows], np.float64).reshape(len(rows), -1, 7)
    return Trajectory(
        steps=np.array([row[0] for row in rows]), names=names, sizes=sizes,
        is_matrix=np.array([len(shapes[name]) > 1 for name in names], bool),
        norms=numbers[..., 0], from_start=numbers[..., 1], from_last=numbers[..., 2], from_last_but_one=numbers[..., 3],
        dot_last=numbers[..., 4], is_constant=numbers[..., 5] > 0, spacing=numbers[..., 6],
        hashes=[[row[3][name] for name in names] for row in rows],
        unlike=unlike,
    )  # fmt: skip


_Row = tuple[int, dict[str, tuple[int, ...]], dict[str, tuple[float, ...]], dict[str, bytes]]


def _measured(checkpoints: Iterable[tuple[int, Tensors]]) -> Iterator[_Row]:
    held: list[dict[str, np.ndarray]] = []  # the first, the last but one, the last
    for step, tensors in checkpoints:
        now = {name: np.asarray(tensors[name], np.float32).ravel() for name in sorted(tensors) if tensors[name].size}
        others = [held[0], held[-1], held[-2]] if len(held) > 1 else [held[0], held[0]] if held else []
        numbers: dict[str, tuple[float, ...]] = {}
        hashes: dict[str, bytes] = {}
        for name, array in now.items():
            nan = float("nan")
            there = [other[name] for other in others if name in other and other[name].shape == array.shape]
            start, last, last_but_one = [*there, None, None, None][:3] if len(there) == len(others) else [None] * 3
            numbers[name] = (
                _length(array),
                0.0 if not held else nan if start is None else _length(array - start),
                nan if last is None else _length(array - last),
                nan if last_but_one is None else _length(array - last_but_one),
                nan if last is None else float(np.dot(array, last)),
                float((array == array[0]).all()),
                _spacing(array),
            )
            hashes[name] = hashlib.sha256(array.tobytes()).digest()
        yield step, {name: tensors[name].shape for name in now}, numbers, hashes
        is_like = not held or {n: a.shape for n, a in now.items()} == {n: a.shape for n, a in held[0].items()}
        held = [*held[:1], *held[1:][-1:], now] if is_like else held


def _length(array: np.ndarray) -> float:
    return float(np.sqrt(np.dot(array, array)))


def _spacing(array: np.ndarray) -> float:
    some = array[:: max(1, len(array) // _SAMPLED)]
    with np.errstate(over="ignore"):
        fitting = [step for kind, step in _TYPES if np.array_equal(some.astype(kind).astype(np.float32), some)]
    return float(np.median(np.abs(some))) * (fitting[0] if fitting else 2.0**-24)
