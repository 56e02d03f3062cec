"""What each operator computes, element by element."""

from . import moves, pointwise, products, radial, rows
from .registry import HANDLERS

__all__ = ["HANDLERS", "moves", "pointwise", "products", "radial", "rows"]
