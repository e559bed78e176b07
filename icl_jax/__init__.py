"""icl_jax: watch in-context learning appear in transformers, at every step and every token position."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icl_jax.analysis.opened_run import open_run as open_run

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # JAX and xarray are imported when a run is opened, not by `import icl_jax`.
    if name == "open_run":
        from icl_jax.analysis.opened_run import open_run

        return open_run
    raise AttributeError(f"module 'icl_jax' has no attribute {name!r}")
