"""General cures for Python code that would bake the example's sizes into a captured graph.

- TorchScript (modules and functions) is run as Python: `torchscript.py`.
- ``len(tensor)``, ``int(x.shape[0])``, ``float(x.shape[0])`` and ``math.sqrt(x.shape[0])`` would give plain numbers;
  within the model's modules they are shadowed by functions that leave sizes symbolic: `shadows.py`.
- ``torch.tensor([tensor, ...])`` reads values, ``pad`` and ``masked_select`` bake sizes in: `functions.py`.
- What ``torch.compile`` made of the model, or of a function that it calls, is run as the Python that it was made of.
- ``einsum`` of three operands and more chooses the order of its products by their sizes; it takes them in turn.
- Transformed functions of fixed batches (``jacrev`` of an energy) are written out: `transforms.py`.
- Tensors that the model keeps in its attributes are taken out again: `kept.py`.
- A function that asks tensors for NumPy arrays or lists is one step: `leaving_torch.py`. So is a function that builds
  indices by a loop over rows: `loops.py`.
- ``torch.bincount(pointer)`` has a data-dependent length. Where the model compares that length with the size of
  an index space, the length *is* that size: the counts of its last, unreferenced rows are zero.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from types import BuiltinFunctionType
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode

from ..ir import Comparison
from ..runtime.operators.halo import stop_gradient
from .functions import attention, substitute
from .kept import nothing_kept
from .leaving_torch import LeftTorch, Place, as_host_function, leaves_torch, places_of
from .shadows import Conversions, Namespace, compared, mathematics, size_of, symbolic_mathematics
from .threads import for_this_thread, replaced
from .torchscript import scripts_as_python
from .transforms import Written

TRIED = 8
"""The number of functions around a failure that are tried as single steps. Each try takes a capture up to there."""


class LearntEnough(BaseException):
    """Ends a capture whose rest would be thrown away. No model's code catches it."""


class Cures:
    """The facts that one capture learns about the model for the next.

    Captures are repeated until nothing new is learnt. Gradients are most of a capture, so it is looked at what was
    learnt before they are taken, too.
    """

    def __init__(self) -> None:
        self.bincounts = Bincounts()
        self.conversions = Conversions()
        self.differentiates = False
        self.keeps_all_values = False
        """True if wide values of the example are kept too, because a branch depends on them."""
        self.comparisons: list[Comparison] = []
        """The comparisons of sizes with numbers of at most 2 in the last capture."""
        self._written = Written()
        self._host: list[Place] = []
        self._failure: Exception | None = None
        self._failing: Place | None = None
        """A function that tracing fails in, or that loops over rows, tried as a single step."""
        self._around: Iterator[Place] = iter(())
        """The functions around it, to be tried after it."""

    @contextmanager
    def applied(self, model: nn.Module | None, leaves: Sequence[Tensor]) -> Iterator[None]:
        """Apply every cure to `model` and to all Python code that uses torch, for the time of one capture."""
        with ExitStack() as stack:
            stack.enter_context(nothing_kept(model))
            stack.enter_context(scripts_as_python())
            instead, builtin = mathematics(), {"len": for_this_thread(size_of, len)}
            for module in _modules_with_torch():
                stack.enter_context(_python_globals(vars(module), builtin, instead))
            for space in self.conversions.namespaces():
                stack.enter_context(_python_globals(space, builtin | self.conversions.shadows(), {}))
            stack.enter_context(symbolic_mathematics(instead))
            stack.enter_context(self.conversions.watched())
            self.comparisons.clear()
            stack.enter_context(compared(self.comparisons))
            stack.enter_context(replaced(type(torch.backends.opt_einsum), "enabled", False))
            stack.enter_context(replaced(nn.functional, "scaled_dot_product_attention", attention))
            for place in self._host:
                stack.enter_context(as_host_function(place, only_indices=place is self._failing))
            constructors = _Constructors(self.bincounts, self.conversions, leaves)
            stack.enter_context(self._written.out())
            stack.enter_context(self._gradients_noted(constructors, leaves))
            stack.enter_context(constructors)
            yield

    @contextmanager
    def _gradients_noted(self, constructors: _Constructors, leaves: Sequence[Tensor]) -> Iterator[None]:
        autograd: Any = torch.autograd  # where autograd.grad and Tensor.backward look it up
        original = autograd._engine_run_backward

        def noted(outputs: Any, gradients: Any, keep: Any, *args: Any, **kwargs: Any) -> Any:
            self.differentiates = True
            if self._learn_at_once(leaves):
                raise LearntEnough
            with constructors.in_backward():
                return original(outputs, gradients, keep or self._written.keeps_graph, *args, **kwargs)

        with replaced(autograd, "_engine_run_backward", noted):
            yield

    @property
    def over_rows(self) -> tuple[str, ...]:
        """Lines that map a function over rows."""
        return tuple(self._written.over_rows)

    def learn_from(self, error: LeftTorch) -> bool:
        """Remember the function that left torch; False if there is none to replace, or it was replaced already."""
        place = next(places_of(error), None)
        if place is None or place[1] in [name for _, name in self._host]:
            return False
        self._host.append(place)
        return True

    def search_around(self, failure: Exception) -> None:
        """Try the innermost function around a failure of tracing as a single step; without one, raise the failure."""
        self._search(places_of(failure), failure)

    def _search(self, places: Iterable[Place], failure: Exception | None) -> None:
        known = [name for _, name in self._host]
        self._around = itertools.islice((place for place in places if place[1] not in known), TRIED)
        self._failure, self._failing = failure, None  # the step that was tried before helped, and stays
        self.search_on()

    def search_on(self) -> None:
        """Try the next function around the failure, or around a loop. After the last one, a loop stays as it is."""
        if self._failing is not None:
            self._host.remove(self._failing)
        self._failing = next(self._around, None)
        if self._failing is not None:
            self._host.append(self._failing)
        elif self._failure is not None:
            raise self._failure from None

    def learn(self, shape_env: ShapeEnv, sizes: Sequence[Sequence[sympy.Expr]], rows: Set[sympy.Symbol]) -> bool:
        """Look back on a capture. True if another one would gain from what was learnt.

        Args:
            shape_env: the shapes of the capture.
            sizes: the sizes of its inputs.
            rows: the sizes that may be numbers of rows, before the example fixed any.
        """
        if self._learn(shape_env, sizes):
            return True
        if places := self.conversions.loops.learn(rows):
            self._search(places, None)
            return True
        return False

    def _learn(self, shape_env: ShapeEnv, sizes: Sequence[Sequence[sympy.Expr]]) -> bool:
        """What shows as soon as it has happened."""
        return any([self.bincounts.learn(shape_env, sizes), self.conversions.learn()])

    def _learn_at_once(self, leaves: Sequence[Tensor]) -> bool:
        """Look back on a capture that is under way."""
        shape_env = next((leaf.fake_mode.shape_env for leaf in leaves if isinstance(leaf, FakeTensor)), None)
        return shape_env is not None and self._learn(shape_env, shapes_of(shape_env, leaves))


def shapes_of(shape_env: ShapeEnv, leaves: Sequence[Tensor]) -> tuple[tuple[sympy.Expr, ...], ...]:
    """The shape of each input of a capture. Symbols that a guard made equal are one symbol."""

    def size(n: torch.SymInt | int) -> sympy.Expr:
        return shape_env.replace(n.node.expr) if isinstance(n, torch.SymInt) else sympy.Integer(n)

    return tuple(tuple(size(n) for n in leaf.shape) for leaf in leaves)


class Bincounts:
    """The input size that each ``torch.bincount`` of the call has, learnt from a first capture."""

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
        """Read off the comparisons of a finished capture. True if another capture would gain from them."""
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
    def __init__(self, bincounts: Bincounts, conversions: Conversions, leaves: Sequence[Tensor]) -> None:
        super().__init__()
        bincounts.start()
        self._bincounts, self._conversions, self._leaves = bincounts, conversions, leaves
        self._in_backward = False

    @contextmanager
    def in_backward(self) -> Iterator[None]:
        """Follow the backward of a model's own functions, too: a mode is off while it handles autograd.grad."""
        before, self._in_backward = self._in_backward, True
        try:
            with self:
                yield
        finally:
            self._in_backward = before

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        instead = substitute(func, args, kwargs)
        if instead is not None:
            return instead()
        if func in (torch.bincount, Tensor.bincount):
            return self._bincounts(self._leaves, *args, **kwargs)
        if leaves_torch(func, args):
            raise LeftTorch
        result = func(*args, **kwargs)
        if func is Tensor.item:
            self._conversions.note_real(result, args[0])
        if self._in_backward or not isinstance(result, Tensor):
            return result
        stops = func in _STOPS or _is_outside_of_gradients(func, args, result)
        return stop_gradient(result) if stops and not _is_in_a_function() else result


def _is_in_a_function() -> bool:
    """True within a function of the model that has a backward of its own: torch switches gradients off in its forward.

    Its results carry gradients nevertheless. The callers are asked, since models keep ``apply = Function.apply``, which
    nothing can replace.
    """
    classes: list[type] = [torch.autograd.Function]
    for each in classes:
        classes += each.__subclasses__()
    forwards = {getattr(getattr(each, "forward", None), "__code__", None) for each in classes}
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code not in forwards:
        frame = frame.f_back
    return frame.f_code in forwards


def _is_outside_of_gradients(func: Any, args: tuple[Any, ...], result: Tensor) -> bool:
    """True if a value was made under ``torch.no_grad()`` from one that carries gradients."""
    if torch.is_grad_enabled() or not result.is_floating_point() or getattr(func, "__name__", "_").endswith("_"):
        return False
    return any(isinstance(a, Tensor) and a.requires_grad for a in args)


_STOPS = (Tensor.detach, Tensor.data.__get__)  # type: ignore[attr-defined]


def _modules_with_torch() -> list[Any]:
    """Python modules, other than torch's and ours, that compute with torch: the model's, its graph's, any helper's.

    There are thousands with a hundred values each, so values are compared by loops of C.
    """
    values, kinds = {id(torch), id(Tensor)}, {torch.jit.ScriptFunction}

    def has_torch(module: Any) -> bool:
        held = list(getattr(module, "__dict__", {}).values())
        return not (values.isdisjoint(map(id, held)) and kinds.isdisjoint(map(type, held)))

    return [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] not in ("torch", "functorch", "distcompile") and has_torch(module)
    ]


@contextmanager
def _python_globals(space: Namespace, shadows: dict[str, Any], instead: dict[Any, Any]) -> Iterator[None]:
    """Shadow builtins, and swap functions that `instead` names, in one module's globals."""
    known = {k: v for k, v in list(space.items()) if isinstance(v, BuiltinFunctionType) and v in instead}
    swapped = {name: for_this_thread(instead[function], function) for name, function in known.items()}
    added = {name: shadow for name, shadow in shadows.items() if name not in space}
    space.update(swapped | added)
    try:
        yield
    finally:
        space.update(known)
        for name in added:
            del space[name]
