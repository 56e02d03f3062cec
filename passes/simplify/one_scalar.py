"""Find what depends on one number a row: functions of it, and what a backward pass makes of their gradients.

x = norm(vectors)            [edges, 1]        a root: one number a row, made of several
h = silu(mm(basis(x), A))    [edges, 64]       functions of it: nothing else varies from row to row
w = mm(h, B)                 [edges, 1280]
...
gh = mm(gw, B.T)             [edges, 64]       linear in gw, which is no function of x, with factors that are
gx = sum(gh * dh)            [edges, 1]        one number a row again
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from ...ir import Normal
from ...ir.operators import facts

aten = torch.ops.aten

_SHAPES = (
    *(aten.permute.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims),
    *(aten.transpose.int, aten.select.int, aten.slice.Tensor, aten.cat.default, aten.stack.default),
    *(aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.slice_backward.default),
    *(aten.select_backward.default, aten.constant_pad_nd.default, aten.clone.default, aten._to_copy.default),
)
"""They keep rows apart if the first dimension counts rows before and after."""
_REDUCTIONS = (aten.sum.dim_IntList, aten.mean.dim)


@dataclasses.dataclass(frozen=True)
class Linear:
    """A number a row that is linear in values of the row, its factors being functions of a root."""

    result: fx.Node
    sources: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]
    """What is computed on the way, in order; the result is the last one."""


class Stretches:
    """What depends on one number a row, in a program before index spaces are known."""

    def __init__(self, program: Normal) -> None:
        self.program = program
        self.constant: set[fx.Node] = set()
        """What is the same for all rows of any graph: weights, buffers, and what is made of them alone."""
        self.fresh: set[fx.Node] = set()
        """Tensors of rows that are all the same, made of nothing."""
        self.root: dict[fx.Node, fx.Node] = {}
        """The one number a row of which a value is a function. A root is a function of itself."""
        self.order = {n: i for i, n in enumerate(program.graph.graph.nodes)}
        for node in self.order:
            self._look_at(node)

    # ---- Functions of one number.

    def rows(self, node: fx.Node) -> sympy.Symbol | None:
        """The symbolic size of the first dimension; None if it has none, or another size is symbolic, too."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not value.dim() or not isinstance(value.shape[0], torch.SymInt):
            return None
        if not all(isinstance(n, int) for n in value.shape[1:]):
            return None
        size = self.program.size(value.shape[0])
        return size if size.is_Symbol else None

    def _look_at(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if node.op == "get_attr":
            self.constant.add(node)
        elif node.op == "placeholder" and self.is_narrow(node):
            self.root[node] = node
        elif node.op != "call_function" or not isinstance(value, Tensor) or facts(node).random:
            return
        elif self._is_constant(node):
            self.constant.add(node)
        elif self.rows(node) is not None and facts(node).fill is not None:
            self.fresh.add(node)
        else:
            roots = {self.root.get(n) for n in self.varying(node)} if self.is_row_local(node) else {None}
            if len(roots) == 1 and None not in roots:
                (self.root[node],) = roots  # type: ignore[assignment]
            elif roots == set():
                self.fresh.add(node)
            elif self.is_narrow(node):
                self.root[node] = node

    def _is_constant(self, node: fx.Node) -> bool:
        sizes = node.meta["val"].shape
        return all(n in self.constant for n in node.all_input_nodes) and all(isinstance(n, int) for n in sizes)

    def is_narrow(self, node: fx.Node) -> bool:
        """True for one real number a row."""
        value = node.meta.get("val")
        if self.rows(node) is None or not isinstance(value, Tensor):
            return False
        return value.is_floating_point() and math.prod(value.shape[1:]) == 1

    def varying(self, node: fx.Node) -> list[fx.Node]:
        """Operands that differ from row to row."""
        found = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor) or n.op == "placeholder"]
        return [n for n in found if n not in self.constant and n not in self.fresh]

    def is_row_local(self, node: fx.Node) -> bool:
        """True if each row of a result is made of the same row of operands, and of what is the same for all rows."""
        rows = self.rows(node)
        operands = [n for n in node.all_input_nodes if n not in self.constant and isinstance(n.meta.get("val"), Tensor)]
        if rows is None or any(self.rows(n) != rows for n in operands):
            return False
        target, row = node.target, facts(node)
        if target in _SHAPES:
            return True
        if target in _REDUCTIONS:
            ndim = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
            return bool(len(node.args) > 1 and node.args[1]) and all(d % ndim for d in node.args[1])  # type: ignore
        if target is aten.mm.default:
            return node.args[1] in self.constant
        if target is aten.addmm.default:
            return node.args[0] in self.constant and node.args[2] in self.constant
        if target is aten.bmm.default:
            return True  # one matrix a row
        return row.pointwise and all(n.meta["val"].dim() == node.meta["val"].dim() for n in operands)

    def work(self, node: fx.Node) -> int:
        """Operations, a row, of a product with weights; 0 for other operators."""
        if node.target not in (aten.mm.default, aten.addmm.default):
            return 0
        left: Any = node.args[facts(node).product or 0]
        terms, width = left.meta["val"].shape[-1], node.meta["val"].shape[-1]
        return 2 * terms * width if isinstance(terms, int) and isinstance(width, int) and self.is_row_local(node) else 0

    def functions(self, root: fx.Node) -> list[fx.Node]:
        """Functions of a root, in order, and the root first."""
        return [n for n, r in self.root.items() if r is root]

    def behind_products(self, root: fx.Node) -> list[fx.Node]:
        """Functions of a root that take products with weights, in order."""
        found: dict[fx.Node, None] = {}
        for node in self.functions(root):
            if node is not root and (self.work(node) or any(n in found for n in node.all_input_nodes)):
                found[node] = None
        return list(found)

    # ---- What is linear, with factors that are functions of one number.

    def linear_parts(self, root: fx.Node) -> dict[fx.Node, tuple[fx.Node, ...]]:
        """Values that are linear in others of their row, and these others, with functions of a root as factors."""
        found = {}
        rows = self.rows(root)
        for node in self.order:
            if node.op == "call_function" and self.root.get(node) is not root and self.rows(node) == rows:
                others = self._linear_in(node, root)
                if others:
                    found[node] = others
        return found

    def _linear_in(self, node: fx.Node, root: fx.Node) -> tuple[fx.Node, ...]:
        if not isinstance(node.meta.get("val"), Tensor) or not self.is_row_local(node):
            return ()
        others = tuple(n for n in self.varying(node) if self.root.get(n) is not root)
        if not others:
            return ()
        places = [i for i, a in enumerate(node.args) if any(n in others for n in _nodes(a))]
        if is_gradient(node):  # linear in the one that it is made of
            return others if places == [0] else ()
        row = facts(node).linear
        if row is None or not all(i in row.operands for i in places):
            return ()
        if row.together:  # what is added has to be linear, too: a numerical check finds out about the rest
            return (
                others if all(self.root.get(n) is not root for i in row.operands for n in _nodes(node.args[i])) else ()
            )
        return others if len(places) == 1 and len(others) == 1 else ()

    def linear(self, root: fx.Node, whole: bool) -> Iterator[Linear]:
        """Numbers of a row that are linear, by way of products with weights; the last ones first.

        Args:
            root: the number of a row of which factors are functions.
            whole: go back to where the first factor of a row is multiplied with, not to the first product with weights.
        """
        parts = self.linear_parts(root)
        costly: set[fx.Node] = set()
        worth: set[fx.Node] = set()
        for node, others in parts.items():
            scaled = whole and any(self.root.get(n) is root for n in node.all_input_nodes)
            if self.work(node) or any(n in costly for n in others):
                costly.add(node)
            if self.work(node) or scaled or any(n in worth for n in others):
                worth.add(node)
        for node in reversed(parts):
            if node in costly and self.is_narrow(node):
                yield self._stretch(node, parts, worth)

    def _stretch(self, result: fx.Node, parts: Mapping[fx.Node, tuple[fx.Node, ...]], worth: set[fx.Node]) -> Linear:
        inside, sources, stack = set(), set(), [result]
        while stack:
            node = stack.pop()
            if node in worth:
                inside.add(node)
                stack += [n for n in parts[node] if n not in inside]
            else:
                sources.add(node)
        place = self.order.__getitem__
        return Linear(result, tuple(sorted(sources, key=place)), tuple(sorted(inside, key=place)))


def is_gradient(node: fx.Node) -> bool:
    """True for operators of backward passes."""
    return "_backward" in str(node.target)


def _nodes(argument: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(argument, found.append)
    return found
