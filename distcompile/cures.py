"""General cures for Python code that would bake the example's sizes into a captured graph.

- TorchScript (modules and functions) is run as Python: `torchscript.py`.
- ``len(tensor)`` must return a plain int; within the model's modules it is shadowed by one that returns the
  symbolic size.
- ``torch.tensor([tensor, ...])`` reads values; it becomes a stack.
- ``torch.bincount(pointer)`` has a data-dependent length. Where the model compares that length with the size of
  an index space, the length *is* that size: the counts of its last, unreferenced rows are zero.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode

from .torchscript import ScriptedModule, scripted_function


@contextmanager
def cured(model: nn.Module | None, bincounts: Bincounts, leaves: Sequence[Tensor]) -> Iterator[None]:
    """Apply every cure to `model` and its packages for the time of one capture."""
    with ExitStack() as stack:
        if model is not None:
            stack.enter_context(_scripted_modules_as_python(model))
            for module in _modules_of(model):
                stack.enter_context(_python_globals(module))
        stack.enter_context(_Constructors(bincounts, leaves))
        yield


class Bincounts:
    """Which input size each ``torch.bincount`` of the call has, learnt from a first capture."""

    def __init__(self) -> None:
        self._lengths: list[torch.SymInt | int] = []
        self._known: dict[int, tuple[int, int]] = {}  # nth call -> (leaf, dimension)
        self._calls = 0

    def start(self) -> None:
        """Begin to count calls anew."""
        self._calls, self._lengths = 0, []

    def __call__(
        self, leaves: Sequence[Tensor], x: Tensor, weights: Tensor | None = None, minlength: int = 0
    ) -> Tensor:
        nth, self._calls = self._calls, self._calls + 1
        if nth not in self._known:
            counts = torch.bincount(x, weights, minlength)
            self._lengths.append(counts.shape[0])
            return counts
        self._lengths.append(0)
        leaf, dim = self._known[nth]
        ones = torch.ones_like(x, dtype=torch.int64) if weights is None else weights
        return ones.new_zeros(leaves[leaf].shape[dim]).index_add_(0, x, ones)

    def learn(self, shape_env: ShapeEnv, sizes: Sequence[Sequence[sympy.Expr]]) -> bool:
        """Read off the comparisons of a finished capture; True if another capture would profit."""
        places = {size: (i, d) for i, shape in enumerate(sizes) for d, size in enumerate(shape) if size.is_Symbol}
        new = False
        for nth, length in enumerate(self._lengths):
            if not isinstance(length, torch.SymInt):
                continue
            for check in shape_env.deferred_runtime_asserts.get(length.node._expr, []):
                if not isinstance(check.expr, sympy.Eq | sympy.Ne):
                    continue
                for side in check.expr.args:
                    place = places.get(shape_env.replace(side))
                    if place is not None and nth not in self._known:
                        self._known[nth] = place
                        new = True
        return new


class _Constructors(TorchFunctionMode):
    def __init__(self, bincounts: Bincounts, leaves: Sequence[Tensor]) -> None:
        super().__init__()
        bincounts.start()
        self._bincounts, self._leaves = bincounts, leaves

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and args and _holds_tensors(args[0]):
            stacked = _stack(args[0])
            to = {name: kwargs[name] for name in ("dtype", "device") if kwargs.get(name) is not None}
            return stacked.to(**to) if to else stacked
        if func in (torch.bincount, Tensor.bincount):
            return self._bincounts(self._leaves, *args, **kwargs)
        return func(*args, **kwargs)


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(v, Tensor) or _holds_tensors(v) for v in value)


def _stack(value: Any) -> Tensor:
    if isinstance(value, list | tuple):
        return torch.stack([_stack(v) for v in value])
    return value if isinstance(value, Tensor) else torch.tensor(value)


@contextmanager
def _scripted_modules_as_python(model: nn.Module) -> Iterator[None]:
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(model.modules()):
        if isinstance(parent, torch.jit.ScriptModule):
            continue
        for name, child in list(parent._modules.items()):
            if isinstance(child, torch.jit.ScriptModule):
                swapped.append((parent, name, child))
                parent._modules[name] = ScriptedModule(child)
    try:
        yield
    finally:
        for parent, name, child in swapped:
            parent._modules[name] = child


def _modules_of(model: nn.Module) -> list[Any]:
    """Python modules of every package that some part of the model comes from."""
    packages = {type(m).__module__.partition(".")[0] for m in model.modules()} - {
        "torch",
        "builtins",
        "distcompile",
    }
    return [
        module
        for name, module in list(sys.modules.items())
        if module is not None and name.partition(".")[0] in packages and hasattr(module, "__dict__")
    ]


@contextmanager
def _python_globals(module: Any) -> Iterator[None]:
    """Shadow ``len`` and swap TorchScript functions in one module's globals."""
    space = vars(module)
    scripted = {k: v for k, v in list(space.items()) if isinstance(v, torch.jit.ScriptFunction)}
    own_len = space.get("len")
    space.update({name: scripted_function(function) for name, function in scripted.items()})
    space["len"] = own_len or _len
    try:
        yield
    finally:
        space.update(scripted)
        if own_len is None:
            del space["len"]


def _len(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else builtins.len(value)
