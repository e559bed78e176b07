"""What a traced program does, inner loops and custom derivatives included."""

from collections.abc import Callable, Iterator
from typing import Any

import jax


def array_shapes(function: Callable[..., Any], *args: Any) -> set[tuple[int, ...]]:
    """Shapes of everything that any equation of the program produces."""
    return {var.aval.shape for eqn in equations(function, *args) for var in eqn.outvars}


def equations(function: Callable[..., Any], *args: Any) -> list[Any]:
    return list(_equations(jax.make_jaxpr(function)(*args)))


def _equations(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _equations(item)
    elif hasattr(value, "eqns"):
        for eqn in value.eqns:
            yield eqn
            yield from _equations(tuple(eqn.params.values()))
