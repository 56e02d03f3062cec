"""Multiply rows of a table before they are gathered, and sums of rows after they are scattered.

    mm(index_select(x, 0, p), u)               =>  index_select(mm(x, u), 0, p)
    index_add(zeros(n, 3), 0, p, mm(v, u))     =>  mm(index_add(zeros(n, 3), 0, p, v), u)

A layer over edges or angles that is given features of atoms and bonds multiplies the same features many times. A
product with a matrix is linear, so it may come first. It does wherever a table has fewer rows than the pointer into it.
Of features side by side, those that were gathered are multiplied by their rows of the matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ...ir import Normal, replace_graph
from ...ir.graphs import copy_graph
from ...ir.operators import is_zero
from ...ir.writer import Writer

aten = torch.ops.aten

FEWER = 1.5
"""Rows of a pointer for each row of the table, from which on the product comes first: a gather or a scatter of one more
column costs as much as some terms of a product."""


def linear_through_gather(program: Normal) -> Normal:
    """Return `program` with products of gathered rows as gathers of products, where that is less work."""
    module, _ = copy_graph(program.graph)
    for node in list(module.graph.nodes):
        if node.target in (aten.mm.default, aten.addmm.default):
            _before_gathers(program, node)
    slices = [n for n in module.graph.nodes if n.target is aten.slice.Tensor and n.args[1] in (1, -1)]
    scattered = {n.args[0] for n in slices if all(_is_scatter_of(user, n) for user in n.users)}
    for node in slices:
        if node.args[0] in scattered:
            _into_products(node)
    for node in list(module.graph.nodes):
        if node.target is aten.index_add.default:
            _after_scatter(program, node)
    module.graph.eliminate_dead_code()
    return replace_graph(program, module)


def _rows(program: Normal, node: Any) -> int:
    """Rows of a tensor in the example."""
    return program.captured.hint(program.shape(node)[0])


def _is_worthwhile(program: Normal, table: fx.Node, pointer: fx.Node) -> bool:
    return _rows(program, table) * FEWER <= _rows(program, pointer)


def _gathered(program: Normal, part: fx.Node) -> bool:
    """True if a value is rows of a matrix with fewer rows."""
    if part.target is not aten.index_select.default:
        return False
    table, dim, pointer = part.args
    assert isinstance(table, fx.Node) and isinstance(pointer, fx.Node)
    return bool(dim == 0 and table.meta["val"].dim() == 2) and _is_worthwhile(program, table, pointer)


def _before_gathers(program: Normal, node: fx.Node) -> None:
    *bias, left, right = node.args
    if node.kwargs or not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return
    joined = left.target is aten.cat.default and left.args[1:] in ((1,), (-1,))
    parts: Any = left.args[0] if joined else [left]
    widths = [part.meta["val"].shape[1] for part in parts]
    chosen = [_gathered(program, part) for part in parts]
    if not any(chosen) or not all(isinstance(n, int) for n in widths) or _is_product_of_few(parts, right):
        return
    with node.graph.inserting_before(node):
        new = Writer(node.graph, node)
        terms, rest, weights, start = [], [], [], 0
        for part, width, is_gathered in zip(parts, widths, chosen, strict=True):
            rows = new(aten.slice.Tensor, right, 0, start, start + width) if len(parts) > 1 else right
            start += width
            if is_gathered:
                table, _, pointer = part.args
                terms.append(new(aten.index_select.default, new(aten.mm.default, table, rows), 0, pointer))
            else:
                rest.append(part)
                weights.append(rows)
        if rest:
            values = new(aten.cat.default, rest, 1) if len(rest) > 1 else rest[0]
            matrix = new(aten.cat.default, weights, 0) if len(rest) > 1 else weights[0]
            terms.append(new(aten.mm.default, values, matrix))
        total = terms[0]
        for term in (*terms[1:], *bias):
            total = new(aten.add.Tensor, total, term)
    node.replace_all_uses_with(total)


def _is_product_of_few(parts: list[fx.Node], right: fx.Node) -> bool:
    """True if a product has more columns than there are features: a gather of them costs more than it saves."""
    width = right.meta["val"].shape[1]
    return not isinstance(width, int) or width > 4 * max(part.meta["val"].shape[1] for part in parts)


def _into_products(node: fx.Node) -> None:
    """A slice of columns of a sum of products as a sum of products with slices."""
    value, _, *part = node.args
    assert isinstance(value, fx.Node)
    products = _products(value, _is_read_in_parts)
    if products is None:
        return
    with node.graph.inserting_before(node):
        new = Writer(node.graph, node)
        terms = [
            new(aten.mm.default, left, new(aten.slice.Tensor, right, 1, *part), value=node.meta["val"])
            for left, right in products
        ]
        total = terms[0]
        for term in terms[1:]:
            total = new(aten.add.Tensor, total, term, value=node.meta["val"])
    node.replace_all_uses_with(total)


def _products(value: fx.Node, accepts: Callable[[fx.Node], bool]) -> list[tuple[Any, Any]] | None:
    """The factors of the products that a value is the sum of; None if it is anything else, or one is not accepted."""
    if not accepts(value):
        return None
    if value.target is aten.mm.default:
        return [value.args]  # type: ignore[list-item]
    if value.target is not aten.add.Tensor or value.kwargs:
        return None
    found = []
    for operand in value.args:
        is_part = isinstance(operand, fx.Node) and _same_shape(operand, value)
        inner = _products(operand, accepts) if is_part else None  # type: ignore[arg-type]
        if inner is None:
            return None
        found += inner
    return found


def _is_read_in_parts(value: fx.Node) -> bool:
    """True if nothing reads a value, or a sum that it is a part of, as a whole."""
    return all(user.target in (aten.slice.Tensor, aten.add.Tensor) for user in value.users)


def _is_narrow_and_alone(value: fx.Node) -> bool:
    """True if one operator reads a value, and it is no product of many more terms than it has columns."""
    if len(value.users) > 1:
        return False
    if value.target is not aten.mm.default:
        return True
    left, right = value.args
    return bool(left.meta["val"].shape[1] <= 4 * right.meta["val"].shape[1])  # type: ignore[union-attr]


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    return bool(a.meta["val"].dim() == b.meta["val"].dim())


def _is_scatter_of(user: fx.Node, value: fx.Node) -> bool:
    return bool(user.target is aten.index_add.default and user.args[3] is value and user.args[1] == 0)


def _after_scatter(program: Normal, node: fx.Node) -> None:
    base, dim, pointer, source = node.args
    assert isinstance(base, fx.Node) and isinstance(pointer, fx.Node) and isinstance(source, fx.Node)
    if dim != 0 or node.kwargs or not is_zero(base) or not _is_worthwhile(program, base, pointer):
        return
    products = _products(source, _is_narrow_and_alone)
    if products is None:
        return
    with node.graph.inserting_before(node):
        new = Writer(node.graph, node)
        total: fx.Node | None = None
        for left, right in products:
            zeros = _zeros(new, base, left)
            term = new(
                aten.mm.default, new(aten.index_add.default, zeros, 0, pointer, left), right, value=node.meta["val"]
            )
            total = term if total is None else new(aten.add.Tensor, total, term, value=node.meta["val"])
    assert total is not None
    node.replace_all_uses_with(total)


def _zeros(new: Writer, base: fx.Node, left: fx.Node) -> fx.Node:
    """Zeros with as many rows as `base`, and as many columns as `left`."""
    value = base.meta["val"].new_empty((base.meta["val"].shape[0], left.meta["val"].shape[1]))
    options = {"dtype": value.dtype, "device": value.device}
    return new(aten.full.default, [new.size(base, 0), value.shape[1]], 0, value=value, **options)
