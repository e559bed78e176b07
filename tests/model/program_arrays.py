"""Which arrays a traced program makes, inner loops and custom derivatives included."""

from collections.abc import Callable, Iterator
from typing import Any

import jax


def array_shapes(function: Callable[..., Any], *args: Any) -> set[tuple[int, ...]]:
    """Shapes of everything that any equation of the program produces."""
    return set(_shapes(jax.make_jaxpr(function)(*args)))


def _shapes(value: Any) -> Iterator[tuple[int, ...]]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _shapes(item)
    elif hasattr(value, "eqns"):
        for eqn in value.eqns:
            for var in eqn.outvars:
                yield var.aval.shape
            yield from _shapes(tuple(eqn.params.values()))
