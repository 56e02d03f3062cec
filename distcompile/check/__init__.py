"""Comparisons: a program against its own invariants, and against the stock model."""
