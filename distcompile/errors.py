"""Every error that distcompile raises on purpose. Each message names the cause and the cure."""

from __future__ import annotations

import traceback
from pathlib import Path


class DistcompileError(RuntimeError):
    """Base of all errors below."""


class VersionError(DistcompileError, ImportError):
    """torch is of a release whose inside is not known."""


class CaptureError(DistcompileError):
    """The model's call could not be turned into one graph that holds for other sizes."""


class NoIndexSpaceError(CaptureError):
    """Nothing in the model reads rows through a pointer of the graph."""


class UnsupportedOp(DistcompileError):  # noqa: N818  the public name is fixed by the API
    """An operator touches a distributed dimension in a way that no rule covers."""


class DerivativeError(DistcompileError):
    """Second derivatives cannot be taken: energy or positions are not clear, or the energy carries no gradient."""


class TrainingError(DistcompileError):
    """A loss cannot be trained by: it is not one number, or no parameter has a part in it."""


class InputError(DistcompileError, ValueError):
    """A graph given to a compiled model does not fit it (dtype, shape, pointer range, NaN, species)."""


class GuardError(DistcompileError):
    """A graph takes another branch of the model's Python code than the example did."""


class RankError(DistcompileError):
    """The ranks of a world disagree: different graphs, different programs, or one of them failed."""


class ValidationError(DistcompileError):
    """The compiled program does not reproduce the stock model."""


class OutOfMemory(DistcompileError, MemoryError):  # noqa: N818  an error of memory, as Python and torch call theirs
    """A rank could not get the memory that its share of a graph needs."""


class SimulationError(DistcompileError):
    """A relaxation or a trajectory left what its model can describe: infinite forces, atoms on top of each other."""


class StructureError(DistcompileError):
    """A file cannot be read as a structure, or holds none that a potential describes: sites filled in part, no cell."""


class CheckpointError(DistcompileError):
    """A checkpoint could not be written or read, or belongs to another run."""


class CacheError(DistcompileError):
    """Generated code cannot be kept, or others could have put code into the folder where it is kept."""


def in_one_line(error: BaseException) -> str:
    """An error of other people's code in one line: ``ValueError: no such atom (model.py, line 12)``."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    said = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}{': ' if said else ''}{said}{where}"
