"""Pass 19: hand the body of each region to a code generator.

    region body: 40 operators, each a pass over memory    =>    a few C++ loops that keep values in registers

Each body is straight-line code over one block of rows, so it is compiled with a symbolic number of rows, once for all
regions that are the same program. Compiled code is cached on disk by Inductor.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from ..ir import Program
from ..printer import show_graph
from ..runtime.tiles import Region
from ..side_by_side import fill_cache
from .cpp_library import INDUCTOR, OPTIMIZATION, compiled_together, getting_ready

aten = torch.ops.aten

SHORT = 8
"""Terms up to which a product is cheaper written out than called."""


def get_ready() -> None:
    """Start what `lower` would wait for, beside other work."""
    if compiler() is not None:
        getting_ready()


def lower(program: Program, notify: Callable[[int, int], None] | None = None) -> None:
    """Compile the bodies of all regions of `program`, in place.

    Args:
        program: a tiled program.
        notify: called with (bodies done, bodies in all) as compilation goes on.
    """
    if compiler() is None:
        warnings.warn(
            "No C++ compiler was found, so regions run operator by operator (lowering='eager'). "
            "Install g++ for several times the speed.",
            stacklevel=3,
        )
        return
    getting_ready()()
    same: dict[str, list[Region]] = {}
    for region in _regions(program):
        same.setdefault(_key(region), []).append(region)

    def report(done: int) -> None:
        if notify is not None:
            notify(done, len(same))

    importlib.import_module("torch._inductor.compile_fx")  # once, for all child processes
    by_size = sorted(same, key=lambda key: -len(same[key][0].graph_module.graph.nodes))  # the last ones are short
    fill_cache({key: functools.partial(_compile, program, same[key][0]) for key in by_size}, report)
    for regions in same.values():
        compiled = _compile(program, regions[0])
        for region in regions:
            region.compiled = compiled
    report(len(same))


def _regions(program: Program) -> Iterable[Region]:
    assert program.tiled is not None
    return [m for m in program.tiled.children() if isinstance(m, Region)]


def compiler() -> str | None:
    """Where the C++ compiler of this machine is; None if it has none."""
    return next((path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))), None)


def _key(region: Region) -> str:
    """Equal for regions whose bodies are the same program on inputs of the same kinds."""
    inputs = [(n.meta["val"].dtype, str(n.meta["val"].shape)) for n in _tensors(region)]
    what = f"{show_graph(region.graph_module.graph)}{inputs}{region.spec.inputs}"
    return hashlib.sha256(f"{what}{INDUCTOR}{OPTIMIZATION}".encode()).hexdigest()


def _tensors(region: Region) -> list[fx.Node]:
    nodes = [n for n in region.graph_module.graph.nodes if n.op == "placeholder"]
    return [n for n in nodes[1:] if isinstance(n.meta["val"], Tensor)]


def _compile(program: Program, region: Region) -> Callable[..., Sequence[Any]]:
    """The body of a region as compiled code with the same call."""
    from torch._inductor.compile_fx import compile_fx  # takes seconds to import

    examples = _Examples(program, region)
    with torch.no_grad(), compiled_together():
        compiled: Any = compile_fx(_with_short_products_written_out(region.graph_module), examples.inputs)

    def run(rows: int, *args: Any) -> Any:
        return compiled(rows, *[a.contiguous() if isinstance(a, Tensor) else a for a in args])

    return run


def _with_short_products_written_out(body: fx.GraphModule) -> fx.GraphModule:
    """Batched products over a few terms as sums of products, which the generator fuses with what lies around them."""
    graph = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    for node in body.graph.nodes:
        if node.target is aten.bmm.default and (terms := _terms(node)) <= SHORT:
            left, right = (nodes[n] for n in node.args)
            nodes[node] = _sum_of_terms(graph, left, right, terms)
        else:
            nodes[node] = graph.node_copy(node, lambda n: nodes[n])
    return fx.GraphModule(body, graph)


def _terms(product: fx.Node) -> int:
    inner = product.args[0].meta["val"].shape[2]  # type: ignore[union-attr]
    return inner if isinstance(inner, int) else SHORT + 1


def _sum_of_terms(graph: fx.Graph, left: fx.Node, right: fx.Node, terms: int) -> Any:
    """Sum over k of ``left[:, :, k, None] * right[:, None, k, :]``."""
    total: Any = None
    for k in range(terms):
        column = graph.call_function(aten.slice.Tensor, (left, 2, k, k + 1))
        row = graph.call_function(aten.slice.Tensor, (right, 1, k, k + 1))
        term = graph.call_function(aten.mul.Tensor, (column, row))
        total = term if total is None else graph.call_function(aten.add.Tensor, (total, term))
    return total


class _Examples:
    """Fake inputs of a body: symbolic numbers of rows, of the block and of each table."""

    def __init__(self, program: Program, region: Region) -> None:
        self.shape_env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.shape_env)
        self.program = program
        rows = self._symbol("rows", min(region.block, 4096))
        placeholders = [n for n in region.graph_module.graph.nodes if n.op == "placeholder"][1:]
        self.inputs: list[Any] = [rows]
        for i, (node, part) in enumerate(zip(placeholders, region.spec.inputs, strict=True)):
            value = node.meta["val"]
            if not isinstance(value, Tensor):
                self.inputs.append(self._symbol(f"n{i}", 8192) if isinstance(value, torch.SymInt) else value)
                continue
            shape: list[Any] = []
            for dim, size in enumerate(program.shape(node)):
                if part is not None and dim == part.dim:
                    shape.append(rows * part.factor)
                else:
                    shape.append(int(size) if size.is_Integer else self._symbol(f"n{i}_{dim}", 8192 + 16 * i + dim))
            with self.mode:
                self.inputs.append(torch.empty(shape, dtype=value.dtype, device=value.device))

    def _symbol(self, name: str, hint: int) -> Any:
        source = ConstantSource(name)
        symbol: sympy.Expr = self.shape_env.create_symbol(hint, source, dynamic_dim=DimDynamic.DYNAMIC)
        return self.shape_env.create_symintnode(symbol, hint=hint, source=source)
