"""distcompile: scale any machine-learned interatomic potential over ranks.

dmodel = distcompile.compile(model, example_graph)     # then dmodel(graph), on any number of ranks
"""

from __future__ import annotations

from .api import DistributedModel, compile
from .calculator import distribute
from .errors import (
    CaptureError,
    DistcompileError,
    GuardError,
    InputError,
    RankError,
    UnsupportedOp,
    ValidationError,
)
from .runtime.world import LocalWorld, ProcessGroupWorld

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "DistcompileError",
    "DistributedModel",
    "GuardError",
    "InputError",
    "LocalWorld",
    "ProcessGroupWorld",
    "RankError",
    "UnsupportedOp",
    "ValidationError",
    "compile",
    "distribute",
]
