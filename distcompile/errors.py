"""Every error that distcompile raises on purpose. Each message names the cause and the cure."""

from __future__ import annotations


class DistcompileError(RuntimeError):
    """Base of all errors below."""


class CaptureError(DistcompileError):
    """The model's call could not be turned into one graph that holds for other sizes."""


class NoIndexSpaceError(CaptureError):
    """Nothing in the model reads rows through a pointer of the graph."""


class UnsupportedOp(DistcompileError):  # noqa: N818  the public name is fixed by the API
    """An operator touches a distributed dimension in a way that no rule covers."""


class InputError(DistcompileError, ValueError):
    """A graph given to a compiled model does not fit it (dtype, shape, pointer range, NaN, species)."""


class GuardError(DistcompileError):
    """A graph takes another branch of the model's Python code than the example did."""


class RankError(DistcompileError):
    """The ranks of a world disagree: different graphs, different programs, or one of them failed."""


class ValidationError(DistcompileError):
    """The compiled program does not reproduce the stock model."""
