"""Drop noise and share common subexpressions.

    clone(detach(x))                          =>  x
    cat([k + 0])                              =>  k
    view(x, [n, 1, -1])                       =>  reshape(x, [n, 1, 3])
    n = sym_size(index(x, p), 0)              ->  n = sym_size(p, 0)
    a = select(e, 0, 0); b = select(e, 0, 0)  ->  b is a

The graph is functional here, so copies say nothing, nor do detachments: those that the model asked for are operators
of their own. ``view`` asks for strides that a later pass may change (a halo exchange returns a contiguous table);
``reshape`` asks for nothing. A size of -1 cannot be worked out on a rank without rows.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils._sympy.symbol import SymT, symbol_is_type

from ...ir import Normal, is_random, replace_graph
from ...ir.graphs import copy_graph
from ...ir.operators import facts
from ...ir.sizes import size_nodes
from ...ir.writer import write
from ...rules.indexing import makes_a_matrix

aten = torch.ops.aten

_PARTS = {aten.slice.Tensor: 0, aten.slice_scatter.default: 1, aten.slice_backward.default: 0}
"""Operators on a range of a dimension, and the operand that they equal when the range is all of it."""


def clean(program: Normal) -> Normal:
    """Return `program` without identities, with shared common subexpressions and without dead code."""
    module, _ = copy_graph(program.graph)
    _explicit_shapes(program, module.graph)
    _sizes_from_inputs(program, module.graph)
    seen: dict[Any, fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.op not in ("call_function", "get_attr"):
            continue
        if node.op == "call_function":
            same = _simpler(node)
            if same is not None:
                _replace(node, same)
                continue
            if is_random(node):
                continue
        key = (node.op, node.target, _key(node.args), _key(node.kwargs))
        if key in seen:
            program = _with_same_sizes(program, node, seen[key])
            _replace(node, seen[key])
        else:
            seen[key] = node
    module.graph.eliminate_dead_code()
    _unasked_gradients(module.graph)
    return replace_graph(program, module)


def _unasked_gradients(graph: fx.Graph) -> None:
    """Leave out gradients that are not used: those of the weights of a layer norm, which are sums over all rows."""
    for node in graph.nodes:
        if node.target is aten.native_layer_norm_backward.default:
            used = {user.args[1] for user in node.users}
            node.update_arg(7, [i in used for i in range(3)])


def _with_same_sizes(program: Normal, node: fx.Node, first: fx.Node) -> Normal:
    """Merge the sizes of two equal operators, where each has a data-dependent size of its own."""
    one, two = node.meta.get("val"), first.meta.get("val")
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        for pair in zip(one.shape, two.shape, strict=True):
            a, b = map(program.size, pair)  # with what was merged before: two symbols never stand for each other
            if a != b and a.is_Symbol:
                program = dataclasses.replace(program, merged=(*program.merged, (a, b)))
    return program


def _explicit_shapes(program: Normal, graph: fx.Graph) -> None:
    """Make every view a reshape to sizes that are all written down (but for data-dependent ones)."""
    symbols = {size for shape in program.captured.sizes for size in shape}
    for node in list(graph.nodes):
        if node.target in (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims):
            _explicit_squeeze(node)
        if facts(node).reshape:
            node.target = aten.reshape.default
        if node.target is not aten.reshape.default or -1 not in node.args[1]:
            continue
        shape = list(node.args[1])
        dim = shape.index(-1)
        value = node.meta["val"].shape[dim]
        if isinstance(value, torch.SymInt):
            if not program.captured.raw_size(value).free_symbols <= symbols:
                continue
            with graph.inserting_before(node):
                # Written as an expression of input sizes next.
                shape[dim] = write(graph, aten.sym_size.int, (node.args[0], 0), value=value)
        else:
            shape[dim] = int(value)
        node.update_arg(1, shape)


def _explicit_squeeze(node: fx.Node) -> None:
    """Squeeze only dimensions that are one wide in every graph: a rank may own one row, and keeps that dimension."""
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    given: Any = node.args[1] if len(node.args) > 1 else range(len(shape))
    dims = [d % max(len(shape), 1) for d in ([given] if isinstance(given, int) else given)]
    node.target = aten.squeeze.dims
    node.args = (node.args[0], [d for d in dims if isinstance(shape[d], int) and shape[d] == 1])


def _sizes_from_inputs(program: Normal, graph: fx.Graph) -> None:
    """Let every size be computed from the shapes of the inputs, not of tensors on the way.

    A size that depends on values is read off the first tensor that has it: the result of the operator that decided it.
    """
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    places = {
        size: (node, dim)
        for node, shape in zip(placeholders, program.captured.sizes, strict=True)
        for dim, size in enumerate(shape)
        if size.is_Symbol
    }
    first = placeholders[-1].next
    made: dict[sympy.Symbol, fx.Node] = {}

    def leaf(symbol: sympy.Symbol) -> fx.Node | None:
        if symbol not in made and symbol in places:
            node, dim = places[symbol]
            with graph.inserting_before(first if node.op == "placeholder" else node.next):
                size = node.meta["val"].shape[dim]
                made[symbol] = write(graph, aten.sym_size.int, (node, dim), value=size)
        return made.get(symbol)

    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, torch.Tensor):
            for dim, n in enumerate(value.shape):
                size = program.captured.raw_size(n)
                if size.is_Symbol and symbol_is_type(size, SymT.UNBACKED_INT):
                    places.setdefault(size, (node, dim))
        if node.target is aten._local_scalar_dense.default and isinstance(value, torch.SymInt):
            number = program.captured.raw_size(value)
            if number.is_Symbol and number not in places:
                made.setdefault(number, node)
        if node.op != "call_function" or not isinstance(value, torch.SymInt) or node in made.values():
            continue
        with graph.inserting_before(node):
            new = size_nodes(graph, program.captured.raw_size(value), leaf)
        if new is None:  # data-dependent
            continue
        if isinstance(new, fx.Node):
            new.meta.setdefault("val", value)
        node.replace_all_uses_with(new)


def _replace(node: fx.Node, by: Any) -> None:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def _simpler(node: fx.Node) -> fx.Node | None:
    """An earlier node that holds the same value."""
    args: Any = node.args
    target = node.target
    if facts(node).identity or _is_no_cast(node) or _is_plus_zero(node) or _is_same_view(node) or _is_times_one(node):
        return args[0]  # type: ignore[no-any-return]
    if target is aten.reshape.default and args[0].target is aten.reshape.default and not makes_a_matrix(args[0]):
        node.update_arg(0, args[0].args[0])
        return _simpler(node)
    if target in _PARTS and _same_shape(node, args[_PARTS[target]]):
        return args[_PARTS[target]]  # type: ignore[no-any-return]
    if target is aten.copy.default and _same_shape(args[0], args[1]) and _dtype(args[0]) == _dtype(args[1]):
        return args[1]  # type: ignore[no-any-return]
    if target is aten.cat.default and len(args[0]) == 1:
        return args[0][0]  # type: ignore[no-any-return]
    if target is aten.select.int and args[0].target is aten.select_scatter.default:
        base, part, dim, index = args[0].args
        if dim == args[1]:  # one column of a tensor that was filled column by column
            return part if index == args[2] else _selected(node, base)
    return None


def _selected(node: fx.Node, base: fx.Node) -> fx.Node:
    with node.graph.inserting_before(node):
        new = write(node.graph, aten.select.int, (base, *node.args[1:]), like=node)
    return _simpler(new) or new


def _is_plus_zero(node: fx.Node) -> bool:
    """True for the addition of a zero offset, as batching code does for the first graph; exact for integers."""
    if node.target is not aten.add.Tensor or node.args[1] != 0 or isinstance(node.args[1], fx.Node):
        return False
    before, after = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    return before.dtype == after.dtype and not after.dtype.is_floating_point


def _is_same_view(node: fx.Node) -> bool:
    """True if a view shows its operand as it is."""
    args: Any = node.args
    if node.target is aten.permute.default:
        return [d % len(args[1]) for d in args[1]] == list(range(len(args[1])))
    if node.target in (aten.reshape.default, aten.expand.default):
        return _same_shape(node, args[0])
    return node.target is aten.squeeze.dims and not args[1]


def _is_times_one(node: fx.Node) -> bool:
    if node.target not in (aten.mul.Tensor, aten.mul.Scalar) or isinstance(node.args[1], fx.Node | bool):
        return False
    return bool(node.args[1] == 1) and _dtype(node) == _dtype(node.args[0])  # type: ignore[arg-type]


def _dtype(node: fx.Node) -> torch.dtype:
    return node.meta["val"].dtype  # type: ignore[no-any-return]


def _same_shape(one: fx.Node, two: fx.Node) -> bool:
    shapes = [n.meta["val"].shape for n in (one, two)]
    return len(shapes[0]) == len(shapes[1]) and all(_same(a, b) for a, b in zip(*shapes, strict=True))


def _same(a: Any, b: Any) -> bool:
    expr = [n.node.expr if isinstance(n, torch.SymInt) else n for n in (a, b)]
    return bool(expr[0] == expr[1])


def _is_no_cast(node: fx.Node) -> bool:
    if node.target is not aten._to_copy.default:
        return False
    before, after = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    return before.dtype == after.dtype and before.device == after.device


def _key(value: Any) -> Any:
    """A hashable stand-in for a node's arguments that keeps 1, 1.0 and True apart."""
    if isinstance(value, list | tuple):
        return tuple(_key(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _key(v)) for k, v in sorted(value.items()))
    if isinstance(value, slice):
        return ("slice", _key(value.start), _key(value.stop), _key(value.step))
    return value if isinstance(value, fx.Node) else (type(value), value)
