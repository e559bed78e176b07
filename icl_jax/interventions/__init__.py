"""Interventions in training, one file a kind; the table of all is `NAMES` in `icl_jax.config.interventions`.

A kind's file imports JAX where it computes, not where it declares: a config that names it is read anywhere.
"""
