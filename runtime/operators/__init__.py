"""Operators that a rewritten graph calls beside those of torch."""
