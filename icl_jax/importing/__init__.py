"""Checkpoints of others as run directories: what `icl-jax import` does. See docs/import.md."""
