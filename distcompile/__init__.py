"""distcompile: scale any machine-learned interatomic potential over ranks.

dmodel = distcompile.compile(model, example_graph)     # then dmodel(graph), on any number of ranks
"""

from __future__ import annotations

from pathlib import Path

# Installed, passes/ and runtime/ lie inside this package; in a source checkout they lie beside it. A Python started in
# the checkout imports the package from there, whatever is installed.
if not (Path(__file__).parent / "passes").exists():
    __path__.append(str(Path(__file__).parent.parent))

from .api import DistributedModel, compile
from .calculator import distribute
from .errors import (
    CacheError,
    CaptureError,
    CheckpointError,
    DerivativeError,
    DistcompileError,
    GuardError,
    InputError,
    OutOfMemory,
    RankError,
    SimulationError,
    UnsupportedOp,
    ValidationError,
)
from .hessian import hessian
from .runtime.world import LocalWorld, ProcessGroupWorld, is_first

__version__ = "0.1.0"

__all__ = [
    "CacheError",
    "CaptureError",
    "CheckpointError",
    "DerivativeError",
    "DistcompileError",
    "DistributedModel",
    "GuardError",
    "InputError",
    "LocalWorld",
    "OutOfMemory",
    "ProcessGroupWorld",
    "RankError",
    "SimulationError",
    "UnsupportedOp",
    "ValidationError",
    "compile",
    "distribute",
    "hessian",
    "is_first",
]
