"""Find functions of a model that leave torch while they are traced, and capture them as single steps.

    pairs = build_triplets(edge_index, n)        calls edge_index.numpy(), loops over atoms
                                            =>   distcompile.host([edge_index], [n], "build_triplets/0")

The tracer cannot follow a tensor into NumPy. Where it is asked to, the innermost function of the model around the
request is replaced for the next capture by an operator that calls it as it is. So is, where tracing fails otherwise,
the innermost function around the failure that builds indices: a neighbour search may do what the tracer cannot follow.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..ir.tree import flatten
from ..runtime.operators.python_calls import HostCall, host, is_result, on_example, register
from .threads import for_this_thread


class LeftTorch(Exception):  # noqa: N818  caught by the capture, never seen by a user
    """A traced tensor was asked for its values by code outside torch."""


class BuildsNoIndices(Exception):  # noqa: N818  caught by the capture, never seen by a user
    """A function that was tried as a single step, because tracing it fails, is more than a search for indices."""


Place = tuple[Any, str]
"""A module or class, and the name in it of a function that leaves torch."""


def places_of(error: Exception) -> Iterator[Place]:
    """The functions around a failure that can be replaced, innermost first: of modules, or methods except forward."""
    frames: list[types.FrameType] = []
    step = error.__traceback__
    while step is not None:
        frames.append(step.tb_frame)
        step = step.tb_next
    return places_in(frames)


def places_in(frames: Sequence[types.FrameType]) -> Iterator[Place]:
    """The functions of nested frames that can be replaced."""
    for frame in reversed(frames):
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] in ("torch", "numpy", "distcompile"):
            continue
        name = frame.f_code.co_name
        if _code_of(frame.f_globals.get(name)) is frame.f_code:
            yield _Globals(frame.f_globals), name
        owner = type(frame.f_locals.get("self"))
        for base in owner.__mro__:
            if name != "forward" and _code_of(base.__dict__.get(name)) is frame.f_code:
                yield base, name


def _code_of(function: Any) -> types.CodeType | None:
    """The code of a function, which may be inside decorators."""
    return getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None


class _Globals:
    """Attribute access to a module's globals. A name is set in every module that imported the old value."""

    def __init__(self, space: dict[str, Any]) -> None:
        object.__setattr__(self, "_space", space)

    def __getattr__(self, name: str) -> Any:
        return self._space[name]

    def __setattr__(self, name: str, value: Any) -> None:
        before = self._space[name]
        for space in [self._space, *(getattr(module, "__dict__", {}) for module in list(sys.modules.values()))]:
            if space.get(name) is before:
                space[name] = value


@contextmanager
def as_host_function(place: Place, only_indices: bool) -> Iterator[None]:
    """Replace a function by one that is captured as a single step; with `only_indices`, only if it builds indices."""
    owner, name = place
    original = getattr(owner, name)
    setattr(owner, name, for_this_thread(_captured(original, only_indices), original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def _captured(function: Callable[..., Any], only_indices: bool) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = flatten((args, kwargs))
        values = [leaf.tensor for leaf in leaves]
        tensors = [v for v in values if isinstance(v, Tensor)]
        sizes = [v for v in values if not isinstance(v, Tensor)]
        order = [isinstance(v, Tensor) for v in values]

        def arguments(given: Any) -> Any:
            rows, numbers = iter(given[: len(tensors)]), iter(given[len(tensors) :])
            return tree.unflatten([next(rows if is_tensor else numbers) for is_tensor in order])

        made = HostCall(function, arguments)
        try:
            found, kept, spec = on_example(made, tensors, sizes)
        except Exception as error:
            if only_indices:
                raise BuildsNoIndices from error
            raise
        if only_indices and not any(t.dtype == torch.int64 and t.dim() for t in found):
            raise BuildsNoIndices
        results = iter(host([t.detach() for t in tensors], sizes, register(made)))
        flat = [next(results) if v is Tensor else next(results).item() if is_result(v) else v for v in kept]
        return pytree.tree_unflatten(flat, spec)

    return call


ASKS_FOR_VALUES = (Tensor.numpy, Tensor.__array__, Tensor.tolist)


def leaves_torch(function: Any, args: tuple[Any, ...]) -> bool:
    """True if a call asks a traced tensor for its values."""
    return function in ASKS_FOR_VALUES and isinstance(args[0], torch._subclasses.FakeTensor)
