"""Products, reductions and operators that work on the last dimensions of each row.

[atoms, 64] @ [64, 32]          -> [atoms, 32]
[3, atoms]  @ [atoms, 3]        -> [3, 3] partial       each rank sums over its own rows
sum of [atoms, 1] over atoms    -> [1]    partial
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..ir import Dim, Placement
from ..ir.operators import facts, operators
from ..runtime.operators.radial import radial_lookup
from ..runtime.operators.sparse import sparse_mm
from .base import Context, Refused, argument, arguments, rank, rule, wrap

aten = torch.ops.aten


def contract(ctx: Context, a: Dim, b: Dim) -> bool:
    """True if a contraction of two dimensions runs over rows, so that its result is partial."""
    if a != b:
        raise Refused("a product that sums over rows on one side only")
    return bool(a)


@rule(aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default)
def product(ctx: Context, node: fx.Node) -> Placement:
    """Matrix products; batch dimensions must agree, the contracted dimension may be rows."""
    a, b = (list(ctx.dims(x)) for x in arguments(node))
    batch: list[Dim] = []
    if node.target is aten.bmm.default:
        one, two = a.pop(0), b.pop(0)
        if one != two:
            raise Refused("a batched product whose batches differ")
        batch = [one]
    partial = contract(ctx, a.pop(-1), b.pop(0))
    dims = [*batch, *a, *b]
    if sum(bool(d) for d in dims) > 1:
        raise Refused("a product of every row with every row")
    return Placement(tuple(dims), partial)


@rule(sparse_mm)
def sparse_product(ctx: Context, node: fx.Node) -> Placement:
    """A product with a constant: each row by itself."""
    rows, inner = ctx.dims(arguments(node)[0])
    if inner:
        raise Refused("a product that sums over rows")
    return Placement((rows, ()))


@rule(radial_lookup)
def looked_up(ctx: Context, node: fx.Node) -> Placement:
    """Functions of one number a row, from a table that every rank has."""
    (rows,) = ctx.dims(arguments(node)[0])
    return Placement((rows, ()))


@rule(aten.addmm.default, aten.baddbmm.default)
def add_product(ctx: Context, node: fx.Node) -> Placement:
    """A product plus a bias."""
    bias, a, b = arguments(node)[:3]
    dims_a, dims_b = ctx.dims(a), ctx.dims(b)
    if contract(ctx, dims_a[-1], dims_b[-2]):
        raise Refused("a bias added to a product that sums over rows")
    dims = (*dims_a[:-1], dims_b[-1])
    for mine, theirs in zip(reversed(ctx.dims(bias)), reversed(dims), strict=False):
        if mine and mine != theirs:
            raise Refused("a bias over other rows than the product")
    return Placement(dims)


def _reduced(node: fx.Node, position: int = 1) -> tuple[set[int], bool]:
    source: Any = arguments(node)[0]
    dims = arguments(node)[position] if len(arguments(node)) > position else None
    if dims is None or dims == []:
        dims = range(rank(source))
    chosen = {wrap(d, source) for d in ([dims] if isinstance(dims, int) else dims)}
    return chosen, bool(argument(node, position + 1, "keepdim", False))


def _after(dims: tuple[Dim, ...], chosen: set[int], keep: bool) -> tuple[Dim, ...]:
    if keep:
        return tuple(() if i in chosen else d for i, d in enumerate(dims))
    return tuple(d for i, d in enumerate(dims) if i not in chosen)


@rule(*operators(lambda f: f.reduces == "sum"))
def sum_(ctx: Context, node: fx.Node) -> Placement:
    """A sum over rows is partial."""
    dims = ctx.dims(arguments(node)[0])
    chosen, keep = _reduced(node)
    return Placement(_after(dims, chosen, keep), any(dims[i] for i in chosen))


@rule(
    aten.mean.dim,
    aten.prod.dim_int,
    aten.any.dim,
    aten.all.dim,
    aten.argmax.default,
    aten.argmin.default,
    aten.var.correction,
    aten.std.correction,
    aten.logsumexp.default,
)
def reduce_whole(ctx: Context, node: fx.Node) -> Placement:
    """Reductions within each row."""
    dims = ctx.dims(arguments(node)[0])
    chosen, keep = _reduced(node)
    if any(dims[i] for i in chosen):
        raise Refused("a reduction over rows that is not a sum")
    return Placement(_after(dims, chosen, keep))


@rule(*operators(lambda f: f.finds_extremes))
def extreme(ctx: Context, node: fx.Node) -> Placement:
    """The largest or smallest value; over rows, every rank has the one of its own rows."""
    dims = ctx.dims(arguments(node)[0])
    chosen, keep = _reduced(node)
    how = facts(node).reduces
    assert how is not None
    return Placement(_after(dims, chosen, keep), any(dims[i] for i in chosen), reduction=how)


@rule(aten.linalg_vector_norm.default)
def vector_norm(ctx: Context, node: fx.Node) -> Placement:
    dims = ctx.dims(arguments(node)[0])
    chosen, keep = _reduced(node, 2)
    if any(dims[i] for i in chosen):
        raise Refused("a norm over rows")
    return Placement(_after(dims, chosen, keep))


_LARGEST = (aten.max.dim, aten.min.dim)


@rule(*_LARGEST, aten.median.dim, aten.kthvalue.default, aten.sort.default, aten.topk.default)
def values_and_indices(ctx: Context, node: fx.Node) -> Any:
    """Operators within each row that also say where they found their values."""
    source: Any = arguments(node)[0]
    dims = ctx.dims(source)
    sorts, selects = node.target is aten.sort.default, node.target is aten.topk.default
    at = 2 if selects or node.target is aten.kthvalue.default else 1
    dim = wrap(argument(node, at, "dim", -1), source)
    if dims[dim]:
        instead = "; amax and amin, which do not say which row it was, can be" if node.target in _LARGEST else ""
        raise Refused(f"rows compared with each other{instead}")
    keep = sorts or selects or bool(argument(node, at + 1, "keepdim", False))
    found = Placement(_after(dims, {dim}, keep))
    return found, found


@rule(
    aten._softmax.default,
    aten._log_softmax.default,
    aten._softmax_backward_data.default,
    aten._log_softmax_backward_data.default,
    aten.cumsum.default,
    aten.cumprod.default,
)
def along(ctx: Context, node: fx.Node) -> Placement:
    """Operators that run along one dimension, which must be whole."""
    source: Any = arguments(node)[0]
    dims = ctx.dims(source)
    position = 2 if "backward" in str(node.target) else 1
    if dims[wrap(arguments(node)[position], source)]:
        raise Refused("an operator that runs along rows")
    return Placement(dims)


@rule(aten.native_layer_norm.default)
def layer_norm(ctx: Context, node: fx.Node) -> Any:
    source, normalized = arguments(node)[:2]
    dims = ctx.dims(source)
    lead = len(dims) - len(normalized)
    if any(dims[lead:]):
        raise Refused("a normalisation over rows")
    statistics = Placement((*dims[:lead], *((),) * len(normalized)))
    return Placement(dims), statistics, statistics


@rule(aten.native_layer_norm_backward.default)
def layer_norm_backward(ctx: Context, node: fx.Node) -> Any:
    source, normalized = arguments(node)[1:3]
    dims = ctx.dims(source)
    lead = len(dims) - len(normalized)
    if any(dims[lead:]) or any(ctx.dims(n)[:lead] != dims[:lead] for n in (arguments(node)[0], *arguments(node)[3:5])):
        raise Refused("the gradient of a normalisation over rows")
    rows = any(dims[:lead])
    weight = Placement(((),) * len(normalized), partial=rows)
    return Placement(dims), weight, weight


def _columns_of_rows(ctx: Context, node: fx.Node, operands: list[fx.Node]) -> fx.Node | None:
    """The right-hand sides of equations of one matrix, if their columns are rows: ``solve(cell.T, x.T)``; else None."""
    at = facts(node).right_hand_side
    if at is None or not node.kwargs.get("left", True):
        return None
    sides: Any = node.args[at]
    *others, columns = ctx.dims(sides)
    apart = bool(columns) and not any(others) and not any(any(ctx.dims(n)) for n in operands if n is not sides)
    return sides if apart else None


@rule(
    aten._linalg_det.default,
    aten._linalg_slogdet.default,
    aten.linalg_inv_ex.default,
    aten._linalg_eigh.default,
    aten._linalg_svd.default,
    aten.linalg_cholesky_ex.default,
    aten.linalg_qr.default,
    aten.linalg_lu_factor_ex.default,
    aten.linalg_lu.default,
    aten.linalg_matrix_exp.default,
    aten._linalg_solve_ex.default,
    aten.linalg_lu_solve.default,
    aten.linalg_solve_triangular.default,
    aten.triangular_solve.default,
)
def per_matrix(ctx: Context, node: fx.Node) -> Any:
    """Linear algebra on the last two dimensions of each row, or on the last one of the right-hand sides."""
    operands = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    matrices = next(ctx.dims(n) for n in operands if rank(n) == max(map(rank, operands)))
    batch = matrices[:-2]
    values = node.meta["val"]
    columns = _columns_of_rows(ctx, node, operands)
    if columns is not None:
        solved = Placement(ctx.dims(columns))
        if not isinstance(values, list | tuple):
            return solved
        return (solved, *(Placement(((),) * len(v.shape)) for v in values[1:]))
    for operand in operands:  # pivots and vectors have a dimension less than matrices
        dims = ctx.dims(operand)
        if dims[: len(batch)] != batch or any(dims[len(batch) :]):
            raise Refused("linear algebra over rows, or with matrices and vectors of different rows")
    found = [
        Placement((*batch, *((),) * (len(v.shape) - len(batch))))
        for v in (values if isinstance(values, list | tuple) else [values])
    ]
    return tuple(found) if isinstance(values, list | tuple) else found[0]
