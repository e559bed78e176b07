"""Algebra of circuits that several measurements share."""
