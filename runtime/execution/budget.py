"""Refuse tables of rows by rows that the index program would build and the machine cannot hold.

    receiver[:, None] == receiver[None, :]       [edges, edges], on every rank: for 100,000 edges 10 GB

Integers are computed on the whole graph, and some models find pairs of rows by comparing all with all. Linux grants the
memory and kills the process when it is written to, so it is asked for before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from ...errors import InputError
from ...ir import Split
from ...ir.user_code import user_line
from .memory import available

SMALL = 2**20
"""Bytes that are never asked about."""


class Careful(fx.Interpreter):
    """Runs an index program operator by operator; the sizes of its results tell those of later ones."""

    def __init__(self, program: Split, known: Mapping[sympy.Symbol, int]) -> None:
        super().__init__(program.index_program)
        self.extra_traceback = False  # messages are for users
        self._program, self._known = program, dict(known)

    def run_node(self, n: fx.Node) -> Any:
        shape = _shape(self._program, n)
        if len([size for size in shape if not size.is_Integer]) > 1:
            self._check(n, [size.xreplace(self._known) for size in shape])
        result = super().run_node(n)
        if isinstance(result, Tensor):
            for size, rows in zip(shape, result.shape, strict=True):
                if size.is_Symbol:
                    self._known.setdefault(size, rows)
        return result

    def _check(self, node: fx.Node, shape: list[Any]) -> None:
        if not all(isinstance(n, int) or n.is_Integer for n in shape):
            return
        size = node.meta["val"].element_size()
        for n in shape:
            size *= int(n)
        free = available() if size > SMALL else None
        if free is not None and size > free:
            raise InputError(
                f"The model itself builds a table of {' x '.join(map(str, shape))} elements, {size / 1e9:.1f} GB, on "
                f"every rank, and {free / 1e9:.1f} GB are free.\n  {user_line(node)}\n"
                "Pass a smaller graph, or give the model the pairs that it looks for there (a line graph) with the "
                "graph, if it takes them."
            )


def compares_all_with_all(program: Split) -> bool:
    """True if an index program builds tables of rows by rows."""
    shapes = [_shape(program, n) for n in program.index_program.graph.nodes if n.op == "call_function"]
    return any(len([size for size in shape if not size.is_Integer]) > 1 for shape in shapes)


def _shape(program: Split, node: fx.Node) -> tuple[sympy.Expr, ...]:
    return program.shape(node) if isinstance(node.meta.get("val"), torch.Tensor) else ()
