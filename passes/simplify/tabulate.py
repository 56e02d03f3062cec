"""Look functions of one number a row up in a table, instead of computing them. Off unless an error is allowed.

    w = mm(silu(mm(basis(x), A)), B)          w = radial_lookup(x, table, low, high, 0)
    ...                                  =>   ...
    gx = sum(dbasis * mm(mm(gw, B.T)...))     gx = sum(gw * radial_lookup(x, table, low, high, 1))

A radial network maps the length of an edge to many weights, by far most of a model's operations, and nothing but the
length varies. The gradient by the length is linear in that of the weights. Its factors, whatever the operators are that
compute them, are the slopes of the functions: this is not concluded from a pattern, but found by numbers, in float64.
Slopes are those of the polynomials, so forces are the gradient of the energy that is returned.

Tables are made of weights. If one changes, the next call compiles again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...ir import Normal, replace_graph
from ...ir.constants import attribute
from ...ir.graphs import copy_graph
from ...ir.operators import facts
from ...ir.radial import RadialTable, Tabulated
from ...ir.user_code import user_place
from ...ir.writer import Writer, described
from ...runtime.operators.radial import COEFFICIENTS, radial_lookup
from .evaluate import Evaluation, ancestors, on_example
from .one_scalar import Linear, Stretches
from .radial_tables import BELOW, Function, Span, Table, slopes_of, span, tabulated

aten = torch.ops.aten

WORTHWHILE = 4.0
"""Operations that a table has to save for each that it takes."""
LARGEST = 64 * 2**20
"""Bytes of all tables of a program."""
MANY = 2**13
"""Operations of products, a row, from which on it is said why there is no table."""
SAME = 1e-8
"""How near the factors of a gradient are to slopes, relative to the largest, if they are the same."""


def tabulate(program: Normal, error: float | None = None, leaves: Sequence[Tensor] = ()) -> Normal:
    """Return `program` with functions of one number a row as tables.

    Args:
        program: before index spaces are known.
        error: allowed between nodes, see `radial_tables.tabulated`; None for no tables.
        leaves: the example's tensors, in which the numbers are found that tables are made for.
    """
    if error is None:
        return program
    stretches = Stretches(program)
    roots = [r for r in dict.fromkeys(stretches.root.values()) if stretches.behind_products(r)]
    for root in roots:
        found = _found(program, stretches, root, error, leaves)
        if isinstance(found, str):
            reasons = dict.fromkeys((*program.untabulated, found))
            program = dataclasses.replace(program, untabulated=tuple(reasons))
        elif found is not None:
            return tabulate(_rewritten(program, root, found), error, leaves)  # what is left has other nodes
    return program


@dataclasses.dataclass(frozen=True)
class _Found:
    """Functions of a root that have tables, and gradients that are made of them."""

    where: Span
    tables: dict[fx.Node, Table]
    gradients: dict[Linear, tuple[fx.Node, ...]]
    """For each, the functions whose slopes are the factors of its sources."""
    outer: tuple[fx.Node, ...]
    """All functions that are looked up."""


def _found(
    program: Normal, stretches: Stretches, root: fx.Node, error: float, leaves: Sequence[Tensor]
) -> _Found | str | None:
    """What to look up; a reason why nothing is; or None if nothing is worth it."""
    behind = stretches.behind_products(root)
    evaluation = Evaluation(program, root)
    seen = on_example(program, root, leaves).cpu().double().reshape(-1)
    if not len(seen) or not bool((seen.isfinite() & (seen > 0)).all()):
        return f"{user_place(root)}: the example does not tell which numbers occur"
    probe = seen.min() * BELOW + (seen.max() - seen.min() * BELOW) * torch.linspace(0.03, 0.97, 32, dtype=torch.float64)
    try:
        gradients = _gradients(stretches, root, evaluation, behind, probe)
        outer = tuple(dict.fromkeys(f for used in gradients.values() for f in used))
        if not program.captured.differentiates:
            results = _results(stretches, root, behind)
            outer = tuple(f for f in results if _bends(slopes_of(_together(evaluation, (f,)), probe)))
        if not outer or not _is_worth_it(stretches, root, behind, outer, gradients):
            many = sum(map(stretches.work, behind)) >= MANY
            many = many and any(_bends(slopes_of(_together(evaluation, (f,)), probe)) for f in behind)
            return f"{user_place(root)}: tables for the gradient were not found, or save nothing" if many else None
        if any(value.is_inference() for value in _read(program, outer)):
            return f"{user_place(root)}: weights were made in inference mode, so changes of them would not be noticed"
        where = span(_together(evaluation, outer), seen, functools.partial(evaluation.conditions, outer))
        bytes_each, left = root.meta["val"].element_size(), LARGEST - sum(t.nbytes for t in _tables(program))
        tables: dict[fx.Node, Table] = {}
        for node in outer:
            made = tabulated(_together(evaluation, (node,)), where, error, bytes_each, left)
            if made is None:
                return f"{user_place(node)}: a table with an error of {error:g} is larger than {LARGEST / 2**20:.0f} MB"
            tables[node] = made
            left -= made.coefficients.numel() * bytes_each
    except (RuntimeError, NotImplementedError) as problem:  # torch has no derivative of some operator
        return f"{user_place(root)}: {str(problem).splitlines()[0]}"
    return _Found(where, tables, gradients, outer)


def _bends(slopes: Tensor) -> bool:
    """False for functions that are multiples of the number: these are cheap, and no radial functions."""
    return float((slopes - slopes[:1]).abs().max()) > SAME * float(slopes.abs().max())


def _together(evaluation: Evaluation, nodes: Sequence[fx.Node]) -> Function:
    return functools.partial(evaluation.functions, tuple(nodes))


def _gradients(
    stretches: Stretches, root: fx.Node, evaluation: Evaluation, behind: Sequence[fx.Node], probe: Tensor
) -> dict[Linear, tuple[fx.Node, ...]]:
    """Numbers of a row that are gradients of functions of the root: with the functions, one for each source."""
    slopes: dict[fx.Node, Tensor] = {}

    def same(factors: Tensor) -> fx.Node | None:
        for node in behind:
            if node.meta["val"].shape[1:].numel() == factors.shape[1] and node.meta["val"].is_floating_point():
                if node not in slopes:
                    slopes[node] = slopes_of(_together(evaluation, (node,)), probe)
                alike = float((slopes[node] - factors).abs().max()) <= SAME * float(factors.abs().max())
                if alike and _bends(slopes[node]):
                    return node
        return None

    found: dict[Linear, tuple[fx.Node, ...]] = {}
    done: set[fx.Node] = set()
    for whole in (True, False):
        for linear in stretches.linear(root, whole):
            is_before = stretches.order[linear.result] < stretches.order[root]
            if linear.result in done or is_before or not linear.sources:
                continue
            factors = evaluation.factors(linear, probe)
            used = [same(f) for f in factors] if factors is not None else [None]
            if None not in used:
                found[linear] = tuple(f for f in used if f is not None)
                done |= set(linear.nodes)
    return found


def _results(stretches: Stretches, root: fx.Node, behind: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
    """The functions that others than functions of the root read, before they are cut into parts."""
    found: dict[fx.Node, None] = {}
    for node in behind:
        if any(stretches.root.get(user) is not root for user in node.users):
            while (first := node.all_input_nodes[0]) in behind and (facts(node).view or facts(node).reshape):
                node = first
            found[node] = None
    return tuple(found)


def _is_worth_it(
    stretches: Stretches,
    root: fx.Node,
    behind: Sequence[fx.Node],
    outer: Sequence[fx.Node],
    gradients: dict[Linear, tuple[fx.Node, ...]],
) -> bool:
    """True if tables save products, and no function whose derivative is taken is left without one.

    What is looked up must not be computed as well: then nothing would be saved, and values and slopes would not belong
    together.
    """
    replaced = {linear.result for linear in gradients} | set(outer)
    live: set[fx.Node] = set()
    stack: list[fx.Node] = [n for n in stretches.order if n.op == "output"]
    while stack:
        node = stack.pop()
        if node not in live:
            live.add(node)
            stack += [] if node in replaced else node.all_input_nodes
    inside = {n for linear in gradients for n in linear.nodes} | set(behind)
    saved = sum(stretches.work(n) for n in inside if n not in live or n in replaced)
    looked_up = sum(_width(f) for f in outer) + sum(_width(f) for used in gradients.values() for f in used)
    needed = {n for n in behind if n in live and n not in replaced and stretches.work(n)}
    return not needed and saved >= WORTHWHILE * 2 * COEFFICIENTS * looked_up


def _width(node: fx.Node) -> int:
    return node.meta["val"].shape[1:].numel()  # type: ignore[no-any-return]


def _rewritten(program: Normal, root: fx.Node, found: _Found) -> Normal:
    """The program with lookups."""
    module, new = copy_graph(program.graph)
    given = new[root]
    dtype = root.meta["val"].dtype
    after = given.next if given.op == "call_function" else _first_operator(module.graph)
    with module.graph.inserting_before(after):
        writer = Writer(module.graph, given)
        rows = writer.size(given, 0)
        numbers = writer(aten.reshape.default, given, [rows], value=given.meta["val"].reshape(-1))
        outside = _outside(writer, numbers, found.where)
    constants: dict[fx.Node, fx.Node] = {}
    entries: list[RadialTable] = []
    for i, (node, table) in enumerate(found.tables.items()):
        name = f"radial_table_{len(_tables(program)) + i}"
        coefficients = table.coefficients.to(given.meta["val"].device, dtype)
        module.register_buffer(name, coefficients)
        with module.graph.inserting_before(after):
            fake = given.meta["val"].new_empty(coefficients.shape)
            constants[node] = described(module.graph.get_attr(name), value=fake)
        nbytes = coefficients.numel() * coefficients.element_size()
        entries.append(RadialTable(_width(node), len(coefficients), table.error, nbytes, user_place(node)))

    def looked_up(writer: Writer, node: fx.Node, order: int) -> fx.Node:
        table = found.tables[node]
        return writer(radial_lookup, numbers, constants[node], table.low, table.high, order)

    for node in found.outer:
        at = new[node]
        with module.graph.inserting_before(at):
            writer = Writer(module.graph, at)
            values = _reshaped(writer, looked_up(writer, node, 0), at, rows)
        at.replace_all_uses_with(values)
    for linear, functions in found.gradients.items():
        at = new[linear.result]
        with module.graph.inserting_before(at):
            writer = Writer(module.graph, at)
            total: fx.Node | None = None
            for source, node in zip(linear.sources, functions, strict=True):
                slopes = looked_up(writer, node, 1)
                flat = _reshaped(writer, new[source], slopes, rows)
                part = writer(aten.sum.dim_IntList, writer(aten.mul.Tensor, flat, slopes), [1])
                total = part if total is None else writer(aten.add.Tensor, total, part)
            assert total is not None
            total = _reshaped(writer, total, at, rows)
        at.replace_all_uses_with(total)
    (output,) = [n for n in module.graph.nodes if n.op == "output"]
    results: Any = list(output.args[0])  # type: ignore[arg-type]
    results.insert(len(results) - len(program.captured.conditions), outside)
    output.args = (tuple(results),)
    module.graph.eliminate_dead_code()
    read = _read(program, found.outer)
    weights = tuple(w for w in read if w.requires_grad or isinstance(w, nn.Parameter))
    entry = Tabulated(found.where.low, found.where.high, found.where.ends, user_place(root), tuple(entries), weights)
    compiled_in = (*program.compiled_in, *((value, value._version) for value in read))
    return replace_graph(program, module, tabulated=(*program.tabulated, entry), compiled_in=compiled_in)


def _read(program: Normal, functions: Sequence[fx.Node]) -> list[Tensor]:
    """The weights and buffers that functions are made of."""
    return [attribute(program.graph, str(n.target)) for n in ancestors(functions) if n.op == "get_attr"]


def _outside(writer: Writer, numbers: fx.Node, where: Span) -> fx.Node:
    """How many numbers are outside of the range, and their sum. Shape: [2]."""
    outside = writer(aten.lt.Scalar, numbers, where.low)
    if not where.ends:
        outside = writer(aten.logical_or.default, outside, writer(aten.gt.Scalar, numbers, where.high))
    dtype = numbers.meta["val"].dtype
    count = writer(aten._to_copy.default, outside, dtype=dtype)
    stacked = writer(aten.stack.default, [count, writer(aten.mul.Tensor, numbers, count)], 1)
    return writer(aten.sum.dim_IntList, stacked, [0])


def _reshaped(writer: Writer, node: fx.Node, like: fx.Node, rows: Any) -> fx.Node:
    """A value in the shape of another, which has as many numbers."""
    value = node.meta["val"].new_empty(like.meta["val"].shape)
    if node.meta["val"].dim() == value.dim():
        return node
    return writer(aten.reshape.default, node, [rows, *value.shape[1:]], value=value)


def _first_operator(graph: fx.Graph) -> fx.Node:
    return next(n for n in graph.nodes if n.op != "placeholder")


def _tables(program: Normal) -> list[RadialTable]:
    """The tables so far."""
    return [table for entry in program.tabulated for table in entry.tables]
