"""Multiply a small factor into a table before the many rows.

    x = mul(a, b)                  a: [edges, 128, 3, 1]    b: [edges, 1, 1, 5]    x: [edges, 128, 3, 5]
    y = mm(reshape(x), C)          C: [15, 7]               y: [128*edges, 7]
=>  d = mm(b, C)                   [edges, 3*7]             once an edge, not once a channel
    y = bmm(a, d)                  [edges, 128, 7]

A tensor product of features with spherical harmonics is written so, and its gradients are sums over such products.
Both are sums of products of three factors, which may be multiplied in any order; this one is cheaper by the number of
channels, and nothing as large as `x` exists.

    x = mm(g, C)                   g: [atoms, 128]    C: [128, 89*128]    x: [atoms, 89*128]
    y = sum(mul(reshape(x), s), 1)                    s: [atoms, 89, 1]   y: [atoms, 1, 128]
=>  o = mul(g, s)                  [atoms, 128, 89]
    y = mm(reshape(o), reshape(C))

Without channels both orders are as long. But `s` is often a one-hot, and then so is `o`: kernels leave out of a product
what is zero. The features are multiplied with the weights of a species so.

Where the small factor is made of species alone, an embedding perhaps, few of its rows are different, and of its product
with the table, too. So that product comes first (`spaces.once_per_kind` has it for each kind of row), channels or not.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import fx

from ...ir import Normal, replace_graph
from ...ir.graphs import copy_graph
from ...ir.writer import write
from .from_integers import is_from_integers

aten = torch.ops.aten

LOOKUP = 18
"""Terms of a product in the time in which one number is looked up in a table."""


def reassociate(program: Normal) -> Normal:
    """Return `program` with products of three factors in the cheaper order."""
    module, _ = copy_graph(program.graph)
    for node in list(module.graph.nodes):
        new: fx.Node | None = None
        with module.graph.inserting_before(node):
            build = _Build(program, module.graph, node)
            if node.target is aten.mm.default:
                new = _product_with_outer(build, node)
            elif node.target is aten.sum.dim_IntList:
                new = _sum_of_products(build, node)
        if new is not None:
            node.replace_all_uses_with(new)
    module.graph.eliminate_dead_code()
    return replace_graph(program, module)


class _Build:
    """Adds operators to the graph in the place of one that they replace."""

    def __init__(self, program: Normal, graph: fx.Graph, replaced: fx.Node) -> None:
        self.program, self.graph, self._replaced = program, graph, replaced

    def shape(self, node: fx.Node) -> tuple[sympy.Expr, ...]:
        return self.program.shape(node)

    def call(self, target: Any, *args: Any) -> fx.Node:
        return self._at_users_line(write(self.graph, target, args))

    def _at_users_line(self, new: fx.Node) -> fx.Node:
        if "stack_trace" in self._replaced.meta:
            new.meta["stack_trace"] = self._replaced.meta["stack_trace"]
        return new

    def rows(self, node: fx.Node) -> Any:
        """The size of the first dimension."""
        first = self.shape(node)[0]
        return int(first) if first.is_Integer else self.call(aten.sym_size.int, node, 0)

    def times(self, rows: Any, factor: int) -> Any:
        return rows * factor if isinstance(rows, int) else self.call(operator.mul, rows, factor)

    def reshape(self, node: fx.Node, *shape: Any) -> fx.Node:
        sizes = [n.meta["val"] if isinstance(n, fx.Node) else n for n in shape]
        value = node.meta["val"].new_empty(sizes)  # torch's own rule takes ten times as long
        return self._at_users_line(write(self.graph, aten.reshape.default, (node, list(shape)), value=value))

    def table(self, node: fx.Node, shape: Sequence[int], order: Sequence[int], rows: int) -> fx.Node:
        """A table as a matrix of `rows` rows, its dimensions taken apart and put in another order."""
        apart = self.reshape(node, *shape)
        return self.reshape(self.call(aten.permute.default, apart, list(order)), rows, math.prod(shape) // rows)


@dataclasses.dataclass(frozen=True)
class _Dims:
    """The dimensions of ``[rows, channels..., table...]``: those of the table are `wide` in one factor or the other."""

    channels: int
    """Product of the dimensions between the rows and those of the table."""
    table: tuple[int, ...]
    """Sizes of the dimensions of the table."""
    wide: tuple[int, ...]
    """The dimensions of these (0, 1, ...) that the small factor has."""
    others: tuple[int, ...]

    @property
    def n_wide(self) -> int:
        return math.prod(self.table[d] for d in self.wide)

    @property
    def n_others(self) -> int:
        return math.prod(self.table[d] for d in self.others)


def _product_with_outer(build: _Build, node: fx.Node) -> fx.Node | None:
    """``mm(reshape(mul(a, b)), C)``."""
    view, table = node.args
    if not (isinstance(view, fx.Node) and view.target is aten.reshape.default and isinstance(table, fx.Node)):
        return None
    outer: Any = view.args[0]
    factors = _factors(outer)
    inner, width = build.shape(table)
    if not factors or not (inner.is_Integer and width.is_Integer):
        return None
    for small, large in (factors, factors[::-1]):
        dims = _dims(build, outer, small, int(inner))
        if dims is None or not _is_broadcast(build, small, len(dims.table)) or not _fills(build, large, dims):
            continue
        if not _is_cheaper(build, small, dims, int(width)):
            continue
        n, j, k = build.rows(small), int(width), len(dims.table)
        matrix = build.table(table, (*dims.table, j), (*dims.wide, *dims.others, k), dims.n_wide)
        mixed = build.call(aten.mm.default, build.reshape(small, n, dims.n_wide), matrix)
        channels = build.reshape(large, n, dims.channels, dims.n_others)
        product = build.call(aten.bmm.default, channels, build.reshape(mixed, n, dims.n_others, j))
        return build.reshape(product, build.times(n, dims.channels), j)
    return None


def _sum_of_products(build: _Build, node: fx.Node) -> fx.Node | None:
    """``sum(mul(reshape(mm(g, C)), w))``: gradients of the above, summed over the table's dimensions in `w`, or
    channels too."""
    product: Any = node.args[0]
    given: Any = node.args[1]
    factors = _factors(product)
    if not factors or not given:
        return None
    shape = build.shape(product)
    summed = {d % len(shape) for d in given if shape[d % len(shape)] != 1}
    for large, small in (factors, factors[::-1]):
        terms = _terms(large)
        if not terms or build.shape(large) != shape:
            continue
        made = [_gradient(build, node, product, term, small, summed) for term in terms]
        if all(new is not None for new in made):
            total = made[0]
            for new in made[1:]:
                total = build.call(aten.add.Tensor, total, new)
            return total
    return None


def _gradient(
    build: _Build, node: fx.Node, product: fx.Node, term: fx.Node, small: fx.Node, summed: set[int]
) -> fx.Node | None:
    gradient, table = term.args
    assert isinstance(gradient, fx.Node) and isinstance(table, fx.Node)
    j, inner = build.shape(table)
    dims = _dims(build, product, small, int(inner)) if inner.is_Integer and j.is_Integer else None
    if dims is None:
        return None
    shape = build.shape(product)
    first, k = len(shape) - len(dims.table), len(dims.table)
    wide = {first + d for d in dims.wide}
    channels = {d for d in range(1, first) if shape[d] != 1}
    matrix_shape = (int(j), *dims.table)
    order = (*[1 + d for d in dims.wide], 0, *[1 + d for d in dims.others])
    if dims.channels == 1 and not _is_cheaper(build, small, dims, int(j)):
        if summed != wide or int(j) > dims.n_others:
            return None
        n = build.rows(small)
        columns, row = build.reshape(gradient, n, int(j), 1), build.reshape(small, n, 1, dims.n_wide)
        outer = build.reshape(build.call(aten.mul.Tensor, columns, row), n, int(j) * dims.n_wide)
        first_wide = (0, *[1 + d for d in dims.wide], *[1 + d for d in dims.others])
        matrix = build.table(table, matrix_shape, first_wide, int(j) * dims.n_wide)
        result = build.call(aten.mm.default, outer, matrix)
    elif summed == wide and _is_broadcast(build, small, k):
        n = build.rows(small)
        matrix = build.table(table, matrix_shape, order, dims.n_wide)
        mixed = build.call(aten.mm.default, build.reshape(small, n, dims.n_wide), matrix)
        result = build.call(
            aten.bmm.default,
            build.reshape(gradient, n, dims.channels, int(j)),
            build.reshape(mixed, n, int(j), dims.n_others),
        )
    elif summed == wide | channels and build.shape(small)[:first] == shape[:first]:
        n = build.rows(small)
        rows = build.call(aten.transpose.int, build.reshape(small, n, dims.channels, dims.n_wide), 1, 2)
        mixed = build.call(aten.bmm.default, rows, build.reshape(gradient, n, dims.channels, int(j)))
        matrix = build.table(table, matrix_shape, order, dims.n_wide * int(j))
        result = build.call(aten.mm.default, build.reshape(mixed, n, dims.n_wide * int(j)), matrix)
    else:
        return None
    return build.reshape(result, n, *[int(s) for s in build.shape(node)[1:]])


def _factors(node: Any) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors that a node multiplies."""
    if not isinstance(node, fx.Node) or node.target is not aten.mul.Tensor:
        return None
    one, two = node.args
    both = all(isinstance(n, fx.Node) and isinstance(n.meta.get("val"), torch.Tensor) for n in (one, two))
    if not both or one.meta["val"].dtype != two.meta["val"].dtype:  # type: ignore[union-attr]
        return None
    return one, two  # type: ignore[return-value]


def _terms(node: fx.Node) -> list[fx.Node]:
    """The products ``mm`` whose reshaped results `node` is the sum of; empty if it is no such sum."""
    if node.target is aten.add.Tensor and len(node.args) == 2 and not node.kwargs:
        each = [_terms(n) if isinstance(n, fx.Node) else [] for n in node.args]
        return each[0] + each[1] if all(each) else []
    source: Any = node.args[0] if node.target is aten.reshape.default else None
    return [source] if isinstance(source, fx.Node) and source.target is aten.mm.default else []


def _dims(build: _Build, product: fx.Node, small: fx.Node, inner: int) -> _Dims | None:
    """The division of a product's dimensions, if the last ones make `inner`, the rows of a table; None otherwise."""
    shape, part = build.shape(product), build.shape(small)
    if len(part) != len(shape) or part[0] != shape[0] or not all(s.is_Integer for s in shape[1:]):
        return None
    first = next((f for f in range(len(shape) - 1, 0, -1) if math.prod(map(int, shape[f:])) == inner), None)
    if first is None:
        return None
    channels = math.prod(map(int, shape[1:first]))
    table = tuple(int(s) for s in shape[first:])
    wide = tuple(d for d in range(len(table)) if part[first + d] != 1)
    others = tuple(d for d in range(len(table)) if part[first + d] == 1)
    dims = _Dims(channels, table, wide, others)
    return dims if dims.n_wide > 1 else None


def _is_cheaper(build: _Build, small: fx.Node, dims: _Dims, width: int) -> bool:
    """True if the small factor with the table first is half the work, or less."""
    made = dims.n_wide
    if (dims.channels == 1 or made > LOOKUP) and is_from_integers(build.program, small):
        made = LOOKUP  # once for each kind of row
    elif dims.channels == 1:
        return False
    saved = dims.channels * dims.n_others * dims.n_wide * (1 + width)
    return 2 * (dims.n_others * width * (made + dims.channels)) <= saved


def _is_broadcast(build: _Build, small: fx.Node, k: int) -> bool:
    """True if a factor is the same for all channels."""
    shape = build.shape(small)
    return all(s == 1 for s in shape[1 : len(shape) - k])


def _fills(build: _Build, large: fx.Node, dims: _Dims) -> bool:
    """True if a factor has all rows, channels and other dimensions of the table, and none of the wide ones."""
    shape = build.shape(large)
    k = len(dims.table)
    if len(shape) < k + 1 or not all(s.is_Integer for s in shape[1:]):
        return False
    rest = tuple(1 if d in dims.wide else size for d, size in enumerate(dims.table))
    channels, table = shape[1 : len(shape) - k], shape[len(shape) - k :]
    return math.prod(map(int, channels)) == dims.channels and tuple(map(int, table)) == rest
