"""How sections of a config check themselves."""

import math
from typing import Any, get_args, get_type_hints

from icl_jax.config.errors import UserError
from icl_jax.telling import is_unicode


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise UserError ``NAME = VALUE: ALLOWED`` unless the condition holds."""
    if not condition:
        raise UserError(f"{name} = {value!r}: {allowed}")


def check_types(section: str, config: Any) -> None:
    """Check each field against its annotation: bool, int, float, str or a Literal of strings; others are left."""
    for name, annotation in get_type_hints(type(config)).items():
        value = getattr(config, name)
        choices = get_args(annotation)
        if choices:
            allowed = "must be one of " + ", ".join(repr(choice) for choice in choices)
            require(isinstance(value, str) and value in choices, f"{section}.{name}", value, allowed)
        elif annotation is float:
            is_number = isinstance(value, float) or _is_whole(value)
            require(is_number and math.isfinite(value), f"{section}.{name}", value, "must be a finite number")
            object.__setattr__(config, name, float(value))
        elif annotation is int:
            require(_is_whole(value), f"{section}.{name}", value, "must be a whole number of at most 64 bits")
        elif annotation is bool:
            require(isinstance(value, bool), f"{section}.{name}", value, "must be true or false")
        elif annotation is str:
            require(_is_text(value), f"{section}.{name}", value, "must be a string of valid Unicode")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_text(value: object) -> bool:
    return isinstance(value, str) and is_unicode(value)
