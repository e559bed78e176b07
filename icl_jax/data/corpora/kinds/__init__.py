"""Kinds of rows that the ``mixture`` corpus is mixed from."""
