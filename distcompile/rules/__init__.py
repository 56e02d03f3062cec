"""Placement rules, by family of operators. `RULES` maps an operator to its rule."""

from __future__ import annotations

from . import algebra, indexing, pointwise, shape
from .base import RULES, Context, Refused, rule

__all__ = ["RULES", "Context", "Refused", "algebra", "indexing", "pointwise", "rule", "shape"]
