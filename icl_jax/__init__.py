"""icl_jax: watch in-context learning appear in transformers, at every step and every token position."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icl_jax.analysis.opened_run import open_run as open_run
    from icl_jax.config import ModelConfig as ModelConfig
    from icl_jax.model.transformer import Transformer as Transformer

_PUBLIC = {
    "ModelConfig": "icl_jax.config",
    "Transformer": "icl_jax.model.transformer",
    "open_run": "icl_jax.analysis.opened_run",
}

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # JAX, Flax and xarray are imported when something asks for them, not by `import icl_jax`.
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'icl_jax' has no attribute {name!r}")
