"""What rows of token ids must be. JAX clamps an index that is out of range without a word."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.process import jax_use

_Args = ParamSpec("_Args")
_Answer = TypeVar("_Answer")


def check_tokens(tokens: Any, config: ModelConfig, *, name: str = "tokens", least: int = 1, most: int = 0) -> None:
    """Raise ValueError unless these are ids [row, position] of the model's vocabulary, one row or more.

    Of `least` to `most` positions; 0: n_ctx. In a compiled function, where values are not known, shapes alone are
    looked at.
    """
    most = most or config.n_ctx
    tokens = tokens if hasattr(tokens, "dtype") else np.asarray(tokens)
    shape = tuple(tokens.shape)
    if len(shape) != 2 or shape[0] < 1 or not least <= shape[1] <= most:
        hint = f"; one row is {name}[None]" if len(shape) == 1 else ""
        allowed = f"must be rows of {least} to {most} tokens, [row, position], model.n_ctx = {config.n_ctx}"
        raise ValueError(f"{name} has the shape {shape}: {allowed}{hint}")
    if np.dtype(tokens.dtype).kind not in "iu":
        raise ValueError(f"{name} is of type {tokens.dtype}: must be whole numbers, the ids of tokens")
    if isinstance(tokens, jax.core.Tracer):
        return
    jax_use.note()
    ids = np.asarray(tokens)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= config.vocab_size:
        allowed = f"must be from 0 to {config.vocab_size - 1}, model.vocab_size = {config.vocab_size}"
        raise ValueError(f"{name} holds ids from {low} to {high}: {allowed}")


def takes_tokens(function: Callable[_Args, _Answer]) -> Callable[_Args, _Answer]:
    """A function of (params, tokens, config, ...) that raises as `check_tokens` does."""
    return _checked(function, "tokens", 1, 0)


def takes_rows(function: Callable[_Args, _Answer]) -> Callable[_Args, _Answer]:
    """A function of (params, rows, config, ...) that predicts all tokens of a row but the first: up to n_ctx + 1."""
    return _checked(function, "rows", 2, 1)


def takes_predicted_tokens(function: Callable[_Args, _Answer]) -> Callable[_Args, _Answer]:
    """The same of a function that calls its rows tokens."""
    return _checked(function, "tokens", 2, 1)


def _checked(function: Callable[_Args, _Answer], name: str, least: int, more: int) -> Callable[_Args, _Answer]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: _Args.args, **kwargs: _Args.kwargs) -> _Answer:
        given = signature.bind(*args, **kwargs).arguments
        config = given["config"]
        check_tokens(given[name], config, name=name, least=least, most=config.n_ctx + more)
        return function(*args, **kwargs)

    return checked
