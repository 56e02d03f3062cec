"""The check that `compile` makes before it returns: results and gradients against those of the stock model."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..default_device import as_the_user_has_it
from ..errors import GuardError, InputError, UnsupportedOp, ValidationError
from ..ir.tree import Leaf, Tree, flatten
from ..runtime.execution.executor import Executor
from .validate import CHECKED, compare, gradients, smaller_graph, warn_unchecked


@dataclasses.dataclass(frozen=True)
class _Stock:
    """The stock model."""

    call: Callable[..., Any]
    module: nn.Module | None


def check(
    call: Callable[..., Any], module: nn.Module | None, executor: Executor, leaves: list[Leaf], tree: Tree
) -> None:
    """Compare a program with the stock model: on the example, and on a smaller graph cut out of it.

    Args:
        call: the stock model's call.
        module: the module behind it.
        executor: of the program.
        leaves: the example's tensors.
        tree: puts them together as `call` takes them.

    Raises:
        ValidationError: results differ, or gradients that a caller takes of them.
    """
    stock = _Stock(call, module)
    prepared = executor.prepare(leaves)
    if prepared.sizes[executor.program.spaces[0].name] <= 2 * CHECKED:
        _check(stock, executor, leaves, tree, "on the example")
    cut = smaller_graph(executor.program, leaves, prepared.values)
    if cut is None:
        warn_unchecked("the example is too small, or its row numbers are computed rather than given")
        return
    reduced = [Leaf(leaf.path, tensor) for leaf, tensor in zip(leaves, cut, strict=True)]
    try:
        executor.prepare(reduced)
    except (GuardError, InputError) as error:  # such as offsets that do not fit so few rows
        warn_unchecked(str(error))
        return
    _check(stock, executor, reduced, tree, "on a smaller graph cut out of the example")


def _check(stock: _Stock, executor: Executor, leaves: list[Leaf], tree: Tree, where: str) -> None:
    found = executor(leaves)
    with torch.enable_grad():
        # For a model that takes its gradients itself these would be second derivatives. Where the model is not smooth
        # (straight angles), they depend on the last bit.
        outside = not executor.program.captured.differentiates
        given = _differentiable(leaves, outside)
        asked = _Asked()
        try:
            with asked, as_the_user_has_it():
                expected, _ = flatten(stock.call(*tree.unflatten([leaf.tensor.clone() for leaf in given])))
        except Exception as error:
            raise ValidationError(
                f"The stock model fails {where}, where the captured program does not: {type(error).__name__}: {error}. "
                "Does it keep tensors from an earlier call (caches), of the sizes of that call?"
            ) from error
        compare(
            [Leaf(e.path, f) for e, f in zip(expected, found, strict=True)], expected, where, leaves, _allowed(executor)
        )
        if outside and not any(bool(e.tensor.isnan().any()) for e in expected):
            _check_gradients(stock, executor, given, expected, where, asked.whether_required)


def _allowed(executor: Executor) -> float:
    """The largest error of the tables of a program."""
    return max((t.error for entry in executor.program.tabulated for t in entry.tables), default=0.0)


class _Asked(TorchFunctionMode):
    """Notes if a model asks whether a tensor requires gradients. One that then detaches it is compared without."""

    whether_required = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.whether_required |= func == Tensor.requires_grad.__get__  # type: ignore[attr-defined]
        return func(*args, **(kwargs or {}))


def _check_gradients(
    model: _Stock, executor: Executor, given: list[Leaf], expected: list[Leaf], where: str, asked: bool
) -> None:
    """Compare what a caller gets who differentiates the results, by the graph and by weights, with the stock model.

    A model that has `asked` whether its inputs require gradients may have detached those for that: its example's did
    not, and the program has the gradient that there is.
    """
    named = model.module.named_parameters() if model.module is not None else ()
    weights = [Leaf(f"weight {name}", p) for name, p in named if p.requires_grad]
    try:
        stock = gradients(expected, [*given, *weights])
    except RuntimeError:
        return  # a caller cannot differentiate them either: the model freed its graph
    if not stock:
        return
    mine = _differentiable(given, False)
    results = executor(mine, True)
    try:
        found = gradients([Leaf(e.path, r) for e, r in zip(expected, results, strict=True)], [*mine, *weights])
    except UnsupportedOp as error:
        warnings.warn(f"Results cannot be differentiated from outside: {error}", stacklevel=6)
        return
    inputs = len(stock) - len(weights)  # which come first
    compared = [i for i, s in enumerate(stock) if not asked or i >= inputs or bool(s.tensor.any())]
    compare([found[i] for i in compared], [stock[i] for i in compared], where, given, _allowed(executor))


def _differentiable(leaves: Sequence[Leaf], every: bool) -> list[Leaf]:
    """Copies of a graph object's tensors.

    They require gradients where the originals do; all real ones do if `every`.
    """
    wanted = [leaf.tensor.requires_grad or (every and leaf.tensor.is_floating_point()) for leaf in leaves]
    copies = (leaf.tensor.detach().clone() for leaf in leaves)
    return [Leaf(leaf.path, x.requires_grad_(w)) for leaf, x, w in zip(leaves, copies, wanted, strict=True)]
