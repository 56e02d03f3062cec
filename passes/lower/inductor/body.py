"""The body of a region as Inductor takes it, and its compiled code.

    region body: 40 operators, each a pass over memory    =>    a few C++ loops that keep values in registers

A body is straight-line code over one block of rows, so it is compiled with a symbolic number of rows, once for all
regions that are the same program. The code is kept on disk.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from ....ir import Tiled
from ....ir.graphs import copy_node, graph_module
from ....ir.text import show_graph
from ....ir.writer import write
from ....runtime.execution.tiles import Region
from .generate import Code, Examples, generate

aten = torch.ops.aten

SHORT = 8
"""Terms up to which a batched product is cheaper written out than called."""
LONG = 32
"""Terms up to which it is cheaper as a loop: libraries multiply matrices of 9 terms at a tenth of their speed."""


class Body:
    """The body of a region in an order of its own, so that bodies that compute the same are the same.

    Operators come in the order in which results need them, inputs in the order in which operators do.
    """

    def __init__(self, program: Tiled, region: Region, under: str) -> None:
        self.program, self.region, self.settings = program, region, under
        nodes = list(region.graph_module.graph.nodes)
        rows, *given = [n for n in nodes if n.op == "placeholder"]
        needed = _as_needed(nodes[-1])
        places = {n: i for i, n in enumerate(given)}
        self.inputs = list(dict.fromkeys([*(n for n in needed if n in places), *given]))
        self.order = [places[n] for n in self.inputs]
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in [rows, *self.inputs, *(n for n in needed if n.op != "placeholder")]:
            written_out = _short_product_written_out(graph, node, copies)
            copies[node] = written_out or copy_node(graph, node, copies.__getitem__)
        self.graph_module = graph_module(region.graph_module, graph)

    @functools.cached_property
    def key(self) -> str:
        """A text that is equal for bodies that are the same program on inputs of the same kinds."""
        parts = self.region.spec.inputs
        kinds = [(self._kind(n), parts[i]) for n, i in zip(self.inputs, self.order, strict=True)]
        what = f"{show_graph(self.graph_module.graph)}{kinds}{self.settings}"
        return hashlib.sha256(what.encode()).hexdigest()

    def _kind(self, node: fx.Node) -> tuple[Any, ...]:
        """The type of an input, with None for sizes that vary."""
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            return (type(value), value if isinstance(value, int | float) else None)
        return (value.dtype, value.device, [int(n) if n.is_Integer else None for n in self.program.shape(node)])

    def compile(self) -> Code:
        """Compiled code that takes the number of rows and the inputs in the order of their use."""
        return generate(self.key, self.graph_module, self._examples)

    def called(self, compiled: Code) -> Callable[..., Sequence[Any]]:
        """The compiled code as a function that is called like the region's body."""

        order = self.order

        def run(rows: int, *args: Any) -> Sequence[Any]:
            given = (args[i] for i in order)
            return compiled([rows, *(a.contiguous() if isinstance(a, Tensor) else a for a in given)])

        return run

    def _examples(self) -> Examples:
        """Fake inputs with symbolic numbers of rows, of the block and of each table."""
        symbols = _Symbols()
        rows = symbols("rows", min(self.region.block, 4096))
        examples: list[Any] = [rows]
        for i, (node, place) in enumerate(zip(self.inputs, self.order, strict=True)):
            value, part = node.meta["val"], self.region.spec.inputs[place]
            if not isinstance(value, Tensor):
                examples.append(symbols(f"n{i}", 8192) if isinstance(value, torch.SymInt) else value)
                continue
            shape: list[Any] = []
            for dim, size in enumerate(self.program.shape(node)):
                if part is not None and dim == part.dim:
                    shape.append(rows * part.factor)
                else:
                    shape.append(int(size) if size.is_Integer else symbols(f"n{i}_{dim}", 8192 + 16 * i + dim))
            with symbols.mode:
                examples.append(torch.empty(shape, dtype=value.dtype, device=value.device))
        return symbols.mode, examples


def _as_needed(output: fx.Node) -> list[fx.Node]:
    """The nodes that a result is computed from, each after its operands, in the order in which they are needed."""
    found: dict[fx.Node, None] = {}
    pending = [output]
    while pending:
        missing = [n for n in pending[-1].all_input_nodes if n not in found]
        if missing:
            pending += reversed(missing)
        else:
            found[pending.pop()] = None
    return list(found)


def _short_product_written_out(graph: fx.Graph, node: fx.Node, copies: dict[fx.Node, fx.Node]) -> Any:
    """A batched product over a few terms as a sum of products, which the generator fuses with what lies around it."""
    if node.target is not aten.bmm.default or (terms := _terms(node)) > LONG:
        return None
    left, right = (copies[n] for n in node.args)  # type: ignore[index]
    return _sum_of_terms(graph, left, right, terms)


def _terms(product: fx.Node) -> int:
    inner = product.args[0].meta["val"].shape[2]  # type: ignore[union-attr]
    return inner if isinstance(inner, int) else LONG + 1


def _sum_of_terms(graph: fx.Graph, left: fx.Node, right: fx.Node, terms: int) -> Any:
    """Sum over k of ``left[:, :, k, None] * right[:, None, k, :]``."""
    if terms > SHORT:  # as many operators for any number of terms
        column = write(graph, aten.unsqueeze.default, (left, 3), value=None)
        row = write(graph, aten.unsqueeze.default, (right, 1), value=None)
        products = write(graph, aten.mul.Tensor, (column, row), value=None)
        return write(graph, aten.sum.dim_IntList, (products, [2]), value=None)
    total: Any = None
    for k in range(terms):
        column = write(graph, aten.slice.Tensor, (left, 2, k, k + 1), value=None)
        row = write(graph, aten.slice.Tensor, (right, 1, k, k + 1), value=None)
        term = write(graph, aten.mul.Tensor, (column, row), value=None)
        total = term if total is None else write(graph, aten.add.Tensor, (total, term), value=None)
    return total


class _Symbols:
    """Makes symbols for sizes that vary."""

    def __init__(self) -> None:
        self.shape_env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.shape_env)

    def __call__(self, name: str, hint: int) -> Any:
        source = ConstantSource(name)
        symbol: sympy.Expr = self.shape_env.create_symbol(hint, source, dynamic_dim=DimDynamic.DYNAMIC)
        return self.shape_env.create_symintnode(symbol, hint=hint, source=source)
