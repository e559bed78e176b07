"""Is a series of checkpoints what it says that it is? What `icl-jax audit` does. See docs/audit.md."""
