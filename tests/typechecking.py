"""The type checker of jaxtyping's import hook: beartype, asked once for what is defined again at every call."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_CONF = BeartypeConf(is_pep484_tower=True)  # a whole number is a float, as it is to mypy
_made: dict[Any, Callable[..., Any]] = {}


def checked(signature: Callable[..., Any]) -> Any:
    """What jaxtyping calls to have arguments checked: its `signature` is a function that does nothing else.

    A function within another is decorated whenever the outer one runs, which took longer than to trace it.
    """
    if "<locals>" not in signature.__qualname__:
        return beartype(signature, conf=_CONF)
    code = signature.__code__
    arguments = code.co_varnames, code.co_posonlyargcount, code.co_argcount, code.co_kwonlyargcount, code.co_flags
    key = signature.__module__, signature.__qualname__, *arguments, *signature.__annotations__.items()
    try:
        return _made.get(key) or _made.setdefault(key, beartype(signature, conf=_CONF))
    except TypeError:  # a type that cannot be hashed
        return beartype(signature, conf=_CONF)
