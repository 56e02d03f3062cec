"""Lists that are the elements of a matrix, one row after another.

    j = where(mask, nlist, 0).reshape(n*K): input [n*K]    =>    j: input [n, K]; j.reshape(n*K)

A rank is given rows of the matrix: of the list nobody knows what its elements belong to.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

import sympy
import torch
from torch import Tensor, fx

from ...ir import Normal
from ...ir.lengths import Grid
from ...ir.operators import facts
from ...ir.writer import write

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The sources of the numbers of rows and of columns."""

    node: fx.Node
    dim: int
    """The dimension of its rows; that of its columns comes next."""


def matrices(program: Normal, nodes: Iterable[fx.Node]) -> dict[sympy.Expr, Matrix]:
    """For the length of a list, the matrix whose elements such a list has; not for lengths of lists that are joined.

    Args:
        program: a program.
        nodes: of its graph, those that the index program has.
    """
    found: dict[sympy.Expr, Matrix] = {}
    joined: set[sympy.Expr] = set()
    for node in nodes:
        if node.target is aten.cat.default:
            joined |= set(program.shape(node))
        if not facts(node).reshape:
            continue
        source: fx.Node = node.args[0]  # type: ignore[assignment]
        shape = program.shape(source)
        for dim, (rows, columns) in enumerate(itertools.pairwise(shape)):
            places = Grid(rows, columns)
            if places.is_of_rows and places.length in program.shape(node):
                found.setdefault(places.length, Matrix(source, dim))
    return {length: matrix for length, matrix in found.items() if length not in joined}


def as_matrix(program: Normal, node: fx.Node, found: dict[sympy.Expr, Matrix]) -> fx.Node | None:
    """A list of integers as the matrix that it shows, written into its graph; None for other lists."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dtype.is_floating_point:
        return None
    shape = program.shape(node)
    at = next((dim for dim, size in enumerate(shape) if size in found), None)
    if at is None:
        return None
    matrix = found[shape[at]]
    of = [(node, d) for d in range(value.dim())]
    of[at : at + 1] = [(matrix.node, matrix.dim), (matrix.node, matrix.dim + 1)]
    given = [n.meta["val"].shape[d] for n, d in of]
    (output,) = [n for n in node.graph.nodes if n.op == "output"]
    sizes: list[int | fx.Node] = []
    with node.graph.inserting_before(output):
        for (source, dim), n in zip(of, given, strict=True):
            known = isinstance(n, int)
            sizes.append(n if known else write(node.graph, aten.sym_size.int, (source, dim), value=n))
        with value.fake_mode:  # type: ignore[attr-defined]
            shown = value.new_empty(given)
        return write(node.graph, aten.reshape.default, (node, sizes), like=node, value=shown)
