"""Measurements of speed. Each module is one command, `python -m benchmarks.NAME`; none is a test."""
