"""Builtins and functions of ``math`` that leave sizes symbolic, where the originals would bake the example's in.

    len(x)               =>  x.shape[0]
    int(n), float(n)     =>  n, torch.sym_float(n)       for a size n; in modules that were seen to convert one
    int(x.sum())         =>  x.sum().item()              for a number that may be a size
    ceil(x.max().item()) =>  x.max().ceil().long().item()   of a real number; int, floor and round likewise
    math.sqrt(n)         =>  torch.sym_sqrt(n)
    numpy.sqrt(n)        =>  the same, for NumPy calls the method ``sqrt`` of what it does not know
    cache[n]             =>  a key of its own, unlike every number

Each module is given shadows of its own, for the time of a capture, and only the thread that captures notices: see
`threads.py`. ``int`` and ``float`` are also types, to be used as dtypes or in ``type(x) is int``, and a name cannot
stand for two of them: modules that convert no sizes keep the originals. In those that do, what other threads call does
as ``int`` does.
"""

from __future__ import annotations

import builtins
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import TensorReferenceAnalysis
from torch.utils._sympy.symbol import SymT, symbol_is_type

from ..ir import Comparison
from ..ir.sizes import SMALLEST_SPACE
from .loops import Loops
from .threads import replaced

Namespace = dict[str, Any]
"""The globals of a module, or of code that was compiled at run time."""


def is_backed(value: torch.SymInt | torch.SymFloat) -> bool:
    """True if a symbolic number is made of sizes of inputs, not of values in tensors."""
    return all(symbol_is_type(s, SymT.SIZE) for s in value.node.expr.free_symbols)


def _is_size(args: tuple[Any, ...]) -> bool:
    return len(args) == 1 and isinstance(args[0], torch.SymInt | torch.SymFloat) and is_backed(args[0])


def _is_number(value: Any) -> bool:
    """True if a value is a tensor of one integer that may be the size of an index space, judged by the example."""
    real = getattr(value, "real_tensor", None)
    return (
        isinstance(real, Tensor)
        and real.numel() == 1
        and real.dtype in (torch.int32, torch.int64)
        and real.item() >= SMALLEST_SPACE
    )


def _is_real(value: Any) -> bool:
    """True if a value is a tensor of one real number of the graph whose value in the example is known."""
    real = getattr(value, "real_tensor", None)
    return isinstance(real, Tensor) and real.numel() == 1 and real.is_floating_point()


def size_of(value: Any) -> Any:
    """``len`` that leaves sizes symbolic."""
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else builtins.len(value)


class _Type(type):
    """The type of a stand-in for a builtin type: code that asks for the stand-in's type is given the builtin one."""

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, cls.__base__ or object)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, cls.__base__ or object)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.__base__

    def __hash__(cls) -> int:
        return hash(cls.__base__)


class _IntType(_Type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if not _is_size(args):
            return builtins.int(*args, **kwargs)
        return math.trunc(args[0]) if isinstance(args[0], torch.SymFloat) else args[0]


class _NumberType(_IntType):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and _is_number(args[0]):
            return args[0].item()
        if len(args) == 1 and (_is_real(args[0]) or isinstance(args[0], torch.SymFloat)):
            number = args[0].item() if isinstance(args[0], Tensor) else args[0]
            return math.trunc(number)
        return super().__call__(*args, **kwargs)


class _FloatType(_Type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return torch.sym_float(args[0]) if _is_size(args) else builtins.float(*args, **kwargs)


class _RealType(_FloatType):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return args[0].item() if len(args) == 1 and _is_real(args[0]) else super().__call__(*args, **kwargs)


class _Int(builtins.int, metaclass=_IntType):
    """``int`` that leaves sizes symbolic."""


class _Number(builtins.int, metaclass=_NumberType):
    """``int`` that leaves sizes symbolic, and integers of tensors, too."""


class _Float(builtins.float, metaclass=_FloatType):
    """``float`` that leaves sizes symbolic."""


class _Real(builtins.float, metaclass=_RealType):
    """``float`` that leaves sizes symbolic, and real numbers of tensors, too."""


@contextmanager
def compared(found: list[Comparison]) -> Iterator[None]:
    """Note where Python code outside torch compares a size with a number of at most 2, which may leave no guard."""

    def noting(name: str) -> Callable[..., Any]:
        original = getattr(torch.SymInt, name)

        def method(size: torch.SymInt, other: Any = 0) -> Any:
            if type(other) is int and other <= 2 and _is_users(sys._getframe(1)) and is_backed(size):
                comparison = "__ne__" if name == "__bool__" else name
                outcome = bool(getattr(int(size.node.hint), comparison)(other))
                found.append(Comparison(size.node.expr, comparison, other, outcome))
            return original(size) if name == "__bool__" else original(size, other)

        return method

    with ExitStack() as stack:
        for name in ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__bool__"):
            stack.enter_context(replaced(torch.SymInt, name, noting(name)))
        yield


def _is_users(frame: FrameType) -> bool:
    """True if code is of a model, or of a package that it uses."""
    return frame.f_globals.get("__name__", "").partition(".")[0] not in ("torch", "sympy", "distcompile")


class Conversions:
    """The modules that convert sizes to plain numbers.

    They get shadows of ``int`` and ``float`` at the next capture.
    """

    def __init__(self) -> None:
        self.loops = Loops()
        self._seen: dict[int, Namespace] = {}
        self._shadowed: set[int] = set()
        self._converts_tensors = False
        self._follows_tensors = True
        self._reals: dict[sympy.Expr, Tensor] = {}
        """The tensors that the real numbers of the last capture are from."""

    def learn(self) -> bool:
        """Keep what was seen for the next capture. True if another capture would gain from it."""
        new = self._seen.keys() - self._shadowed
        self._shadowed |= new
        return bool(new)

    def namespaces(self) -> list[Namespace]:
        """The namespaces that need shadows of ``int``, ``float`` and ``len``: they may not use torch by name."""
        return [self._seen[key] for key in self._shadowed]

    def shadows(self) -> dict[str, Any]:
        """The shadows that these namespaces are given."""
        return {"int": _Number, "float": _Real} if self._follows_tensors else {"int": _Int, "float": _Float}

    def fix_numbers(self) -> bool:
        """After a capture that failed, take integers of tensors for those of the example. True if that may mend it."""
        mends, self._follows_tensors = self._follows_tensors and self._converts_tensors, False
        return mends

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note every size, or integer of a tensor, that Python code outside torch turns into a plain number."""
        self.loops.start()
        self._reals.clear()
        with ExitStack() as stack:
            if self._follows_tensors:
                watching = self._watching(Tensor.__int__, lambda number: _is_number(number) or _is_real(number))
                stack.enter_context(replaced(Tensor, "__int__", watching))
                stack.enter_context(replaced(Tensor, "__float__", self._watching(Tensor.__float__, _is_real)))
                for name in ("ceil", "floor", "trunc", "round"):
                    method = self._counting(name, getattr(torch.SymFloat, f"__{name}__", None))
                    stack.enter_context(replaced(torch.SymFloat, f"__{name}__", method))
            for kind, names in ((torch.SymInt, ("__int__", "__index__")), (torch.SymFloat, ("__int__", "__float__"))):
                for name in names:
                    matters = self._is_known if name == "__int__" else _is_any
                    stack.enter_context(replaced(kind, name, self._watching(getattr(kind, name), matters)))
            yield

    def note_real(self, number: Any, tensor: Tensor) -> None:
        """Remember the tensor that a real number is from."""
        if isinstance(number, torch.SymFloat) and self._follows_tensors:
            self._reals[number.node.expr] = tensor

    def _is_known(self, number: torch.SymInt | torch.SymFloat) -> bool:
        """True if a number is made of sizes, or of real numbers of tensors."""
        return is_backed(number) or number.node.expr.free_symbols <= self._reals.keys()

    def _counting(self, name: str, original: Callable[..., Any] | None) -> Callable[..., Any]:
        """A ``ceil`` (or the like) of a real number.

        The result may be the length of a list, as an integer of a tensor may.
        """

        def method(number: torch.SymFloat, *digits: Any) -> Any:
            expr = number.node.expr
            if not digits and expr.free_symbols <= self._reals.keys():
                self._converts_tensors = True
                real: Any = sympy_interp(TensorReferenceAnalysis, self._reals, expr)
                whole = getattr(real.detach(), name)().to(torch.int64)
                if _is_number(whole):
                    return whole.item()
            return original(number, *digits) if original is not None else getattr(math, name)(builtins.float(number))

        return method

    def _watching(self, original: Callable[[Any], Any], matters: Callable[[Any], bool]) -> Callable[[Any], Any]:
        def watched(number: Any) -> Any:
            frame = sys._getframe(1)
            space = frame.f_globals
            if _is_users(frame) and matters(number):
                self._seen[id(space)] = space
                if original.__name__ == "__index__" and is_backed(number):
                    self.loops.note(number, frame)
                self._converts_tensors |= isinstance(number, Tensor)
            return original(number)

        return watched


def _is_any(number: torch.SymInt | torch.SymFloat) -> bool:
    """True of every number: ``len`` of a tensor whose length depends on values turns it into a plain one, too."""
    return True


def _log(value: Any) -> Any:
    return torch._sym_log2(value) * math.log(2.0)  # type: ignore[attr-defined]


_FUNCTIONS = {
    "sqrt": torch.sym_sqrt,
    "log2": torch._sym_log2,  # type: ignore[attr-defined]
    "log": _log,
}
"""Functions of ``math`` that torch has for symbolic numbers."""


def _symbolic(original: Callable[..., Any], symbolic: Callable[[Any], Any]) -> Callable[..., Any]:
    def function(*args: Any) -> Any:
        return symbolic(args[0]) if _is_size(args) else original(*args)

    return function


def mathematics() -> dict[Any, Any]:
    """Functions of ``math``, each with its replacement in modules that imported it by name."""
    return {getattr(math, name): _symbolic(getattr(math, name), f) for name, f in _FUNCTIONS.items()}


def _hash(value: torch.SymInt) -> int:
    """A hash that is equal for sizes that are equal in the example, so that a dict or a set compares them."""
    return hash((id(value.node.shape_env), value.node.hint if is_backed(value) else value.node.expr))


@contextmanager
def symbolic_mathematics(instead: dict[Any, Any]) -> Iterator[None]:
    """Let ``math`` and NumPy take sizes, and dicts, too."""
    with ExitStack() as stack:
        stack.enter_context(replaced(torch.SymInt, "__hash__", _hash))
        for name, function in _FUNCTIONS.items():
            stack.enter_context(replaced(math, name, instead[getattr(math, name)]))
            for kind in (torch.SymInt, torch.SymFloat):
                stack.enter_context(replaced(kind, name, function))
        yield
