"""The vocabulary of the compiler: index spaces, pointers, placements, and the program that passes rewrite."""

from __future__ import annotations

from .captured import Captured, Comparison, Origins, Precision
from .operators import is_random
from .placements import META, WHOLE_RULE, Placement, Reduction, placement
from .program import (
    Access,
    Distributed,
    Input,
    InputKind,
    Normal,
    Output,
    Placed,
    Range,
    Runnable,
    Split,
    Tiled,
    copy_tiled,
    grown,
    owner_pointers,
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
    "Distributed",
    "Factor",
    "Halo",
    "Input",
    "InputKind",
    "Normal",
    "Origins",
    "Output",
    "Placed",
    "Placement",
    "Pointer",
    "Precision",
    "Range",
    "Reduction",
    "Runnable",
    "Space",
    "Split",
    "Tiled",
    "all_rows_name",
    "copy_tiled",
    "grown",
    "halo_name",
    "is_random",
    "owner_pointers",
    "placement",
    "replace_graph",
    "replace_tiled",
]
