"""The vocabulary of the compiler: index spaces, pointers, placements, and the program that passes rewrite."""

from __future__ import annotations

from .captured import Captured, Comparison, Origins, Precision
from .placement import META, WHOLE_RULE, Placement, Reduction, placement
from .program import (
    Access,
    Input,
    InputKind,
    Output,
    Program,
    Range,
    copy_tiled,
    is_random,
    replace_graph,
    replace_tiled,
)
from .spaces import Dim, Factor, Halo, Pointer, Space, all_rows_name, halo_name

__all__ = [
    "META",
    "WHOLE_RULE",
    "Access",
    "Captured",
    "Comparison",
    "Dim",
    "Factor",
    "Halo",
    "Input",
    "InputKind",
    "Origins",
    "Output",
    "Placement",
    "Pointer",
    "Precision",
    "Program",
    "Range",
    "Reduction",
    "Space",
    "all_rows_name",
    "copy_tiled",
    "halo_name",
    "is_random",
    "placement",
    "replace_graph",
    "replace_tiled",
]
