"""Changes to what Python code sees during a capture, for its thread alone. There is one capture at a time.

    capturing thread    len  =>  size_of        math.sqrt  =>  torch.sym_sqrt       SymInt.__eq__  =>  noting
    any other thread    len      as it was      math.sqrt      as it was            SymInt.__eq__      as it was

Modules and classes belong to all threads. So what is put in place looks at the thread that comes along.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import torch._dynamo.config as dynamo_config
import torch.fx._symbolic_trace as symbolic_trace
from torch.fx.experimental.proxy_tensor import PythonKeyTracer

_MISSING = object()
_LOCK = threading.RLock()
_state = threading.local()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait until no other thread follows or rewrites a program; the same thread may enter again.

    torch's tracers have globals of their own. Two captures at a time would each put back the globals of the other.
    """
    with _LOCK:
        before, _state.inside = is_inside(), True
        try:
            yield
        finally:
            _state.inside = before


def is_inside() -> bool:
    """True if this thread follows or rewrites a program."""
    return getattr(_state, "inside", False)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute for a while: of a module or class for this thread alone, of another object as it is.

    A string of a module has no stand-in, and changes for all threads: replace only strings that other threads do not
    read.
    """
    before = vars(owner).get(name, _MISSING)
    if isinstance(owner, type):
        value = _Attribute(value, inspect.getattr_static(owner, name, _MISSING), name)
    elif isinstance(owner, ModuleType) and not isinstance(value, str):
        value = for_this_thread(value, before)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def for_this_thread(value: Any, elsewhere: Any) -> Any:
    """A stand-in that acts as `value` in this thread and as `elsewhere` in any other."""
    mine = threading.get_ident()
    if not callable(elsewhere):
        return _Object(lambda: value if threading.get_ident() == mine else elsewhere)

    @functools.wraps(elsewhere)
    def function(*args: Any, **kwargs: Any) -> Any:
        return (value if threading.get_ident() == mine else elsewhere)(*args, **kwargs)

    return function


class _Object:
    """A value of a module that is not a function: a flag, a tuple, an object with attributes."""

    def __init__(self, current: Callable[[], Any]) -> None:
        self._current = current

    def __bool__(self) -> bool:
        return bool(self._current())

    def __contains__(self, value: Any) -> bool:
        return value in self._current()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._current(), name)


class _Attribute:
    """An attribute of a class that has another value in the thread that made it, whatever an instance has there."""

    def __init__(self, value: Any, elsewhere: Any, name: str) -> None:
        self._value, self._elsewhere, self._name = value, elsewhere, name
        self._thread = threading.get_ident()

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        found = self._value
        if threading.get_ident() != self._thread:
            own = getattr(instance, "__dict__", {})
            if self._name in own:
                return own[self._name]
            found = self._elsewhere
        if found is _MISSING:
            raise AttributeError(self._name)
        bind = getattr(type(found), "__get__", None)
        return bind(found, instance, owner) if bind is not None else found

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self._name] = value


@contextmanager
def traced_apart() -> Iterator[None]:
    """Keep torch's tracer from changing ``nn.Module`` and its own globals, which calls in every thread would look at.

    The changes to ``nn.Module``, and to functions that are to be steps of a graph, ask about stand-ins for tensors.
    These are not used here: operators are noted where torch dispatches them.
    """
    stock: Any = inspect.unwrap(symbolic_trace.Tracer.trace)  # Dynamo wraps it when it is first used
    own = vars(symbolic_trace).copy()
    trace = FunctionType(stock.__code__, own, stock.__name__, stock.__defaults__, stock.__closure__)
    with replaced(symbolic_trace, "_Patcher", _PatchesNothing), replaced(PythonKeyTracer, "trace", trace):
        yield


class _PatchesNothing(symbolic_trace._Patcher):
    def patch(self, *_: Any, **__: Any) -> None:
        """Leave a function as it is."""

    def patch_method(self, *_: Any, **__: Any) -> None:
        """Leave a method as it is."""


@contextmanager
def compiled_code_as_python() -> Iterator[None]:
    """Let modules and functions that ``torch.compile`` made run as the Python that they are, in this thread."""
    as_python = dynamo_config.patch(error_on_nested_fx_trace=False)
    with replaced(symbolic_trace, "_is_fx_tracing_flag", True), as_python:
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torch in this thread while it takes the example's side of a branch: the capture checks that itself.

    Python keeps one list of warning filters for all threads, so this filter asks which thread warns.
    """
    mine = threading.get_ident()
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or record.thread != mine

    ignored: Any = ("ignore", _Anything(mine), Warning, None, 0)
    logger.addFilter(passes)
    warnings.filters.insert(0, ignored)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        logger.removeFilter(passes)
        if ignored in warnings.filters:  # another thread may have put back the list that it found
            warnings.filters.remove(ignored)  # type: ignore[attr-defined]


class _Anything:
    """Takes the place of a pattern: matches all warnings of one thread."""

    def __init__(self, thread: int) -> None:
        self._thread = thread

    def match(self, text: str) -> bool:
        """True if a warning is of the thread."""
        return threading.get_ident() == self._thread
