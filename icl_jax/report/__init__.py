"""From arrays to figures, and to the page that holds them all."""

from icl_jax.report.write import write_report

__all__ = ["write_report"]
