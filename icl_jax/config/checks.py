"""How sections of a config check themselves."""

import math
from typing import Any, get_args, get_origin, get_type_hints

from icl_jax.config.errors import UserError
from icl_jax.telling import is_unicode


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise UserError ``NAME = VALUE: ALLOWED`` unless the condition holds."""
    if not condition:
        raise UserError(f"{name} = {value!r}: {allowed}")


# Smallest number above 0 and largest that float32 holds in full precision; below, processors flush to 0.
_FLOAT32 = (2.0**-126, (2 - 2.0**-23) * 2.0**127)


def check_types(section: str, config: Any, *, is_float32: bool = False) -> None:
    """Check each field against its annotation: bool, int, float, str, a Literal of strings, or a tuple of ints or of a
    Literal, which a list may stand for; others are left.

    is_float32: the step computes with these numbers in float32, where they must be neither 0 nor infinite.
    """
    for name, annotation in get_type_hints(type(config)).items():
        value = getattr(config, name)
        choices = get_args(annotation)
        if get_origin(annotation) is tuple:
            require(isinstance(value, list | tuple), f"{section}.{name}", value, "must be a list")
            allowed = ", ".join(repr(choice) for choice in get_args(choices[0]))
            allowed = f"each must be one of {allowed}" if allowed else "each must be a whole number of at most 64 bits"
            for one in value:
                is_allowed = (
                    _is_whole(one) if choices[0] is int else isinstance(one, str) and one in get_args(choices[0])
                )
                require(is_allowed, f"{section}.{name}", value, allowed)
            object.__setattr__(config, name, tuple(value))
        elif choices:
            allowed = "must be one of " + ", ".join(repr(choice) for choice in choices)
            require(isinstance(value, str) and value in choices, f"{section}.{name}", value, allowed)
        elif annotation is float:
            is_number = isinstance(value, float) or _is_whole(value)
            require(is_number and math.isfinite(value), f"{section}.{name}", value, "must be a finite number")
            object.__setattr__(config, name, float(value))
            if is_float32 and value:
                low, high = _FLOAT32
                allowed = f"must be 0 or from {low:.3g} to {high:.3g} in size: the step computes in float32"
                require(low <= abs(value) <= high, f"{section}.{name}", value, allowed)
        elif annotation is int:
            require(_is_whole(value), f"{section}.{name}", value, _whole_number(value))
        elif annotation is bool:
            require(isinstance(value, bool), f"{section}.{name}", value, "must be true or false")
        elif annotation is str:
            require(_is_text(value), f"{section}.{name}", value, "must be a string of valid Unicode")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _whole_number(value: object) -> str:
    """What is allowed in place of a value that is no whole number, and how to write it where it means one."""
    allowed = "must be a whole number of at most 64 bits"
    meant = whole_number_of(value)
    return allowed if meant is None else f"{allowed}: write {meant}"


def whole_number_of(value: object) -> int | None:
    """The whole number that someone meant by 12.0, 1e3 or their texts; None where it is none, or beyond 64 bits."""
    try:
        number = float(value) if isinstance(value, (str, float)) else math.nan
    except ValueError:
        return None
    return int(number) if number.is_integer() and abs(number) < 2**63 else None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and is_unicode(value)
