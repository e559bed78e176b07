"""icl_jax: watch in-context learning appear in transformers, at every step and every token position."""

__version__ = "0.1.0"
