"""distcompile: scale any machine-learned interatomic potential over ranks.

dmodel = distcompile.compile(model, example_graph)     # then dmodel(graph), on any number of ranks
"""

from __future__ import annotations

from . import torch_versions  # noqa: F401  refuses other releases before anything takes what these lack

# isort: split
from .api import compile
from .calculators.calculator import distribute
from .derivatives.hessian import hessian
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
    TrainingError,
    UnsupportedOp,
    ValidationError,
    VersionError,
)
from .model import DistributedModel
from .pieces import load_blocks, save_blocks
from .runtime.division.shard import DividedRows
from .runtime.world import LocalWorld, ProcessGroupWorld, is_first
from .training import TrainingStep, training_step

__version__ = "0.1.0"

__all__ = [
    "CacheError",
    "CaptureError",
    "CheckpointError",
    "DerivativeError",
    "DistcompileError",
    "DistributedModel",
    "DividedRows",
    "GuardError",
    "InputError",
    "LocalWorld",
    "OutOfMemory",
    "ProcessGroupWorld",
    "RankError",
    "SimulationError",
    "TrainingError",
    "TrainingStep",
    "UnsupportedOp",
    "ValidationError",
    "VersionError",
    "compile",
    "distribute",
    "hessian",
    "is_first",
    "load_blocks",
    "save_blocks",
    "training_step",
]
