"""The methods of a module through which a calculator enters its model: they run as compiled programs.

    module(graph), module.forward(graph)      compiled at the first call
    module.energy(graph)                      compiled if it computes with the module's weights
    module.predict(atoms)                     as it is: what it calls in turn is compiled
    wrapper(structure) -> module(graph)       the module within, if the wrapper cannot be captured

Which method computes is found out by watching it, once: where a weight meets another tensor outside of a compiled
program, the outermost method that was given tensors is compiled. If that cannot be captured, those that it calls are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from ..api import compile
from ..capture.threads import is_inside
from ..errors import CaptureError, DistcompileError, NoIndexSpaceError, UnsupportedOp, ValidationError
from ..ir.tree import flatten
from ..model import DistributedModel
from ..passes import Lowering
from ..runtime.world import World, default_world


@dataclasses.dataclass(frozen=True)
class Options:
    """The options by which models are compiled."""

    world: World | None
    """None for the world that exists when the method is called, perhaps in another process."""
    memory: int | None
    lowering: Lowering
    radial_error: float | None = None
    learns: bool = True
    """True if graph objects are made without the package once it was learned what they are made of."""


class _State(threading.local):
    """The state of one thread."""

    stock = 0
    """The number of stock methods that run on purpose; all that they call is stock."""
    looking: bool = False
    """True while a method is watched to find out if it computes."""
    only_receives = False
    record: list[tuple[DistributedModel, tuple[Any, ...], Any]] | None = None
    """Calls of compiled models, with what they returned, while someone wants to know them."""


_state = _State()
_order = itertools.count(1)


class Entry:
    """Takes the place of a method of a module; one compiled model for each set of keyword options.

    A copy, or one that was pickled, compiles anew.
    """

    def __init__(self, module: nn.Module, name: str, options: Options) -> None:
        self.__setstate__((module, name, options, vars(module).get(name)))

    def __getstate__(self) -> Any:
        return self.module, self.name, self._options, self._own

    def __setstate__(self, state: Any) -> None:
        self.module, self.name, self._options, self._own = state
        self._models: dict[str, DistributedModel] = {}
        self._lock = threading.RLock()
        self._computes: bool | None = None
        """True if the method is compiled; None if that is not known yet."""
        self._refused = ""
        """The reason that it cannot be compiled though it computes."""
        self._too_small = 0
        """Elements of the largest tensor in calls in which nothing could be divided."""
        self.within: nn.Module | None = None
        """The module that is compiled instead of this one, which only makes its graphs."""
        self.last: tuple[int, DistributedModel, tuple[Any, ...]] | None = None
        """The number of its last call in the order of all calls, with the model and the arguments of what ran."""

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The stock method."""
        if self._own is not None:
            return self._own  # type: ignore[no-any-return]
        return getattr(type(self.module), self.name).__get__(self.module)  # type: ignore[no-any-return]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _state.stock or is_inside():
            return self.__wrapped__(*args, **kwargs)
        if self.within is not None:
            return self.__wrapped__(*args, **kwargs)
        if self.name == "forward":
            return self._compiled_somewhere(args, kwargs)
        if self._computes:
            return self._compiled(args, kwargs)
        if self._computes is None and _state.looking:
            return self.__wrapped__(*args, **kwargs)  # the method that called this one is compiled, if anything is
        return self._watched(args, kwargs)

    def _compiled_somewhere(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run as a compiled program: this module, or the one that it is a wrapper of."""
        try:
            return self._compiled(args, kwargs)
        except (CaptureError, UnsupportedOp, ValidationError) as error:
            inner = _wrapped(self.module)
            if self._models or inner is None or _state.only_receives:
                raise
            found, start = enter(inner, self._options), now()
            with contextlib.suppress(DistcompileError):
                result = self.__wrapped__(*args, **kwargs)
                if any(e.last is not None and e.last[0] > start and e.last[1].captures for e in found):
                    self.within = inner
                    warnings.warn(
                        f"{type(self.module).__name__} cannot be captured ({_first_line(error)}), so the "
                        f"{type(inner).__name__} that it calls is distributed.",
                        stacklevel=4,
                    )
                    return result
            for entry in found:
                entry.leave()
            raise

    def leave(self) -> None:
        """Put the stock method back."""
        delattr(self.module, self.name)
        if self._own is not None:
            setattr(self.module, self.name, self._own)

    def _watched(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the stock method until it is seen to compute, then a compiled one instead.

        If it cannot be compiled, the stock method runs, with a warning of what computes.
        """
        largest = max((leaf.tensor.numel() for leaf in flatten((args, kwargs))[0]), default=0)
        if self._computes is None and largest > self._too_small:
            try:
                with _looking(), watching(Watch([self.module], _interrupt)):
                    return self.__wrapped__(*args, **kwargs)
            except _Computes:
                pass
            try:
                result = self._compiled(args, kwargs)
            except NoIndexSpaceError as error:
                self._too_small, self._refused = largest, _first_line(error)
            except (CaptureError, UnsupportedOp, ValidationError) as error:
                self._computes, self._refused = False, _first_line(error)
            else:
                self._computes = True
                return result
        where = f"{type(self.module).__name__}.{self.name}"
        because = f" ({self._refused})" if self._refused else ""
        with watching(Watch([self.module], lambda names: warn_undistributed(where + because, names))):
            return self.__wrapped__(*args, **kwargs)

    def _compiled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with_tensors = {name: value for name, value in kwargs.items() if flatten(value)[0]}
        options = {name: value for name, value in kwargs.items() if name not in with_tensors}
        graph = (*args, with_tensors) if with_tensors else args
        with unwatched():
            model = self._model(graph, options, bool(with_tensors))
            if _state.only_receives:
                raise Received(model, graph)
            self.last = next(_order), model, graph
            result = model(*graph)
            if _state.record is not None:
                _state.record.append((model, graph, result))
            return result

    def _model(self, graph: tuple[Any, ...], options: dict[str, Any], with_tensors: bool) -> DistributedModel:
        key = repr((sorted(options.items()), with_tensors))
        with self._lock:
            if key not in self._models:
                o = self._options
                how: dict[str, Any] = {"memory": o.memory, "lowering": o.lowering, "radial_error": o.radial_error}
                how["world"] = o.world or default_world()
                model = compile(_Stock(self, with_tensors), graph, model_kwargs=options, **how)
                if self.name != "forward" and not model.captures:  # what computes may be what calls this method
                    raise NoIndexSpaceError(model.explain().splitlines()[1])
                model.trains = False  # a calculator differentiates hardly ever what its model differentiates
                self._models[key] = model
            return self._models[key]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


class _Stock:
    """Calls a stock method; the last positional argument may hold the keyword arguments that are tensors."""

    def __init__(self, entry: Entry, with_tensors: bool) -> None:
        self._entry, self._with_tensors = entry, with_tensors
        self.__self__ = entry.module
        self.__wrapped__ = entry.__wrapped__

    def __call__(self, *args: Any, **options: Any) -> Any:
        *positional, keywords = args if self._with_tensors else (*args, {})
        with as_stock():
            return self._entry.__wrapped__(*positional, **keywords, **options)


@contextmanager
def as_stock() -> Iterator[None]:
    """Let entries run the stock methods, in this thread."""
    _state.stock += 1
    try:
        yield
    finally:
        _state.stock -= 1


class Received(BaseException):
    """Carries the arguments of a calculator's call of its model past the calculator's own handling of exceptions."""

    def __init__(self, model: DistributedModel, graph: tuple[Any, ...]) -> None:
        super().__init__()
        self.model, self.graph = model, graph


@contextmanager
def only_receiving() -> Iterator[None]:
    """Let entries raise `Received` instead of evaluating, in this thread."""
    _state.only_receives = True
    try:
        yield
    finally:
        _state.only_receives = False


@contextmanager
def recording() -> Iterator[list[tuple[DistributedModel, tuple[Any, ...], Any]]]:
    """Note the calls of compiled models, in this thread: model, arguments, result."""
    before, _state.record = _state.record, []
    try:
        yield _state.record
    finally:
        _state.record = before


def is_receiving() -> bool:
    """True if entries raise `Received` in this thread."""
    return _state.only_receives


def now() -> int:
    """A number below that of every later call of an entry."""
    return next(_order)


def enter(module: nn.Module, options: Options) -> list[Entry]:
    """Put entries in place of a module's methods; entries that are there already stay."""
    for name in ("forward", *_methods(module)):
        if not isinstance(getattr(module, name), Entry):
            setattr(module, name, Entry(module, name, options))
    return entries(module)


def entries(module: nn.Module) -> list[Entry]:
    """The entries of a module, and of those that are compiled instead of it."""
    found = [value for value in vars(module).values() if isinstance(value, Entry)]
    return found + [entry for e in found if e.within is not None for entry in entries(e.within)]


def _wrapped(module: nn.Module) -> nn.Module | None:
    """The module of which another one is a wrapper: it has all of the other's weights."""
    inner = [child for child in module.children() if next(child.parameters(), None) is not None]
    return inner[0] if len(inner) == 1 and not [*module.parameters(recurse=False)] else None


def _methods(module: nn.Module) -> list[str]:
    """Public methods that a model's own classes define, from the package that defines its forward."""
    classes = [c for c in type(module).__mro__ if not c.__module__.startswith("torch.")]
    package = next((c.__module__.partition(".")[0] for c in classes if "forward" in vars(c)), "")
    found: dict[str, None] = {}
    for one in classes:
        if one.__module__.partition(".")[0] in (package, type(module).__module__.partition(".")[0]):
            found |= {name: None for name, value in vars(one).items() if isinstance(value, FunctionType)}
    return [name for name in found if not name.startswith("_") and name != "forward" and not hasattr(nn.Module, name)]


class _Computes(BaseException):
    """Ends a stock method that computes, past the method's own handling of exceptions."""


def _interrupt(_: set[str]) -> None:
    raise _Computes


@contextmanager
def _looking() -> Iterator[None]:
    _state.looking = True
    try:
        yield
    finally:
        _state.looking = False


class Watch(TorchFunctionMode):
    """Looks in each call of torch, in one thread, for weights that meet other tensors."""

    def __init__(self, modules: list[nn.Module], found: Callable[[set[str]], None]) -> None:
        """`found` is called with the names of the weights."""
        super().__init__()
        self._found = found
        self._weights: dict[int, tuple[str, Tensor]] = {}
        for module in modules:
            named: list[tuple[str, Any]] = [*module.named_parameters()] or [*module.named_buffers()]
            self._weights |= {id(x): (f"{type(module).__name__}.{name}", x) for name, x in named}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor) or not (result.is_floating_point() or result.is_complex()):
            return result
        given = [one for a in (*args, *(kwargs or {}).values()) for one in (a if isinstance(a, list | tuple) else (a,))]
        tensors = [one for one in given if isinstance(one, Tensor)]
        names = {self._weights[id(x)][0] for x in tensors if id(x) in self._weights}
        if names and all(id(x) in self._weights for x in tensors):
            self._weights[id(result)] = min(names), result  # another form of a weight
        elif names:
            self._found(names)
        return result


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Watch the calls of torch inside, and let no other watch look at them."""
    with unwatched(), watch:
        yield


@contextmanager
def unwatched() -> Iterator[None]:
    """Hide the calls of torch inside from all watches."""
    modes = _get_current_function_mode_stack()
    others = [mode for mode in modes if not isinstance(mode, Watch)]
    if len(others) == len(modes):
        yield
        return
    _exchange(modes, others)
    try:
        yield
    finally:
        _exchange(others, modes)


def _exchange(modes: list[TorchFunctionMode], others: list[TorchFunctionMode]) -> None:
    for _ in modes:
        _pop_mode()
    for mode in others:
        _push_mode(mode)


def warn_undistributed(where: str, names: set[str]) -> None:
    """Say that something computed with weights outside of every compiled program."""
    warnings.warn(
        f"{where} computes with {', '.join(sorted(names))} outside of what distcompile distributes: this part runs "
        "whole on every rank. Let it call the model, or a method of the model that takes and returns tensors.",
        stacklevel=2,
    )
