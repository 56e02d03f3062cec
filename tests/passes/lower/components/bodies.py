"""Bodies of regions made of a function of rows, and run as component code and as torch runs them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from distcompile.ir.graphs import writes
from distcompile.ir.operators import facts
from distcompile.passes.lower.components import library
from distcompile.passes.lower.components.cpp import Output, Program, written
from distcompile.passes.lower.components.follow import Followed, follow
from distcompile.passes.lower.components.gpu.emulated import emulated
from distcompile.passes.lower.components.kernel import Body
from distcompile.passes.lower.components.target import PROCESSOR, Processor, Target
from distcompile.passes.lower.components.values import Given
from distcompile.runtime.execution.kernels import Kernel, Value
from distcompile.runtime.execution.launches import Launched
from distcompile.runtime.execution.tiles import WORTH_A_THREAD, Region, RegionSpec, Result, Slice
from distcompile.torch_versions import composites_in_python

aten = torch.ops.aten

emulation = functools.partial(Launched, device="cpu")

Run = Callable[[Any], Sequence[Tensor]]
"""A function of named tensors: its argument has an attribute for each, and `n`, the number of rows."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """A tensor with a slice for each row of a body."""

    tensor: Tensor
    dim: int = 0


@dataclasses.dataclass(frozen=True)
class Weight:
    """A tensor that is the same for all rows."""

    tensor: Tensor


@dataclasses.dataclass(frozen=True)
class Constant:
    """A tensor that is the same for all rows, and never changes."""

    tensor: Tensor


@dataclasses.dataclass(frozen=True)
class Table:
    """A tensor of which rows are read by pointers, along a dimension whose length varies."""

    tensor: Tensor
    dim: int = 0


Input = Rows | Weight | Constant | Table
Inputs = Mapping[str, Input]


def traced(run: Run, inputs: Inputs) -> fx.GraphModule:
    """The body of a region that computes what a function does; its inputs are the number of rows, and these."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes = []
    for given in inputs.values():
        dim = getattr(given, "dim", None)
        kinds = [DimDynamic.DUCK if d == dim else DimDynamic.STATIC for d in range(given.tensor.dim())]
        fakes.append(mode.from_tensor(given.tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=kinds)))
    rows = next(f.shape[g.dim] for f, g in zip(fakes, inputs.values(), strict=True) if isinstance(g, Rows))

    def flat(n: Any, *tensors: Tensor) -> list[Tensor]:
        return list(run(SimpleNamespace(n=n, **dict(zip(inputs, tensors, strict=True)))))

    with mode, composites_in_python():
        module = make_fx(flat, tracing_mode="real", _allow_non_fake_inputs=True)(rows, *fakes)
        if any(n.op == "call_function" and writes(n.target) for n in module.graph.nodes):
            functional = torch.func.functionalize(fx.Interpreter(module).run, remove="mutations")
            module = make_fx(functional, tracing_mode="real", _allow_non_fake_inputs=True)(rows, *fakes)
    first = next(iter(module.graph.nodes))
    for node in list(module.graph.nodes):
        if node.target is aten.sym_size.int and str(node.meta["val"]) == str(rows):
            node.replace_all_uses_with(first)
            module.graph.erase_node(node)
        elif facts(node).reshape:  # earlier passes write views as reshapes, and say what they squeeze
            node.target = aten.reshape.default
        elif node.target is aten.squeeze.default:
            node.target = aten.squeeze.dims
            shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
            node.args = (node.args[0], [d for d, size in enumerate(shape) if isinstance(size, int) and size == 1])
    module.graph.eliminate_dead_code()
    return module


def described(inputs: Inputs) -> list[Given]:
    """Inputs as component code is told of them."""
    found = []
    for given in inputs.values():
        shape: list[int | None] = list(given.tensor.shape)
        if isinstance(given, Rows):
            shape[given.dim] = 1
        elif isinstance(given, Table):
            shape[given.dim] = None
        rows = given.dim if isinstance(given, Rows) else None
        constant = given.tensor if isinstance(given, Constant) else None
        found.append(Given(rows, tuple(shape), given.tensor.dtype, constant))
    return found


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A body whose results all have rows."""

    followed: Followed
    program: Program
    kernel: Kernel

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        """The results for all rows."""
        tensors = [g.tensor for g in inputs.values()]
        rows = next(g.tensor.shape[g.dim] for g in inputs.values() if isinstance(g, Rows))
        results = [v.empty(rows) for v in self.kernel.values]
        given = self.kernel.laid_out(tensors)
        assert self.kernel.caller(given, None, results)(0, rows) == []
        return results


def as_program(run: Run | fx.GraphModule, inputs: Inputs, target: Target = PROCESSOR) -> tuple[Followed, Program]:
    """A function of rows, or its body, in component code that is not compiled."""
    given = described(inputs)
    followed = follow(run if isinstance(run, fx.GraphModule) else traced(run, inputs), given)
    return followed, written(followed, given, [Output("store", k) for k in range(len(followed.outputs))], target)


def compiled(run: Run | fx.GraphModule, inputs: Inputs, target: Target = PROCESSOR) -> Compiled:
    """Component code of a function of rows, or of its body; a GPU's is run by the host."""
    followed, program = as_program(run, inputs, target)
    given = described(inputs)
    if isinstance(target, Processor):
        kind, runs = Kernel, library.loaded(program.source, target.instructions)
    else:
        kind, runs = emulation, emulated(program)
    kernel = kind(
        runs,
        program.scratch,
        program.lanes,
        tuple(g.dtype for g in given),
        tuple(followed.tables.get(i, g.rows) for i, g in enumerate(given)),
        tuple(Value("store", v.dtype, tuple(v.elements.shape), rows=True) for v in followed.outputs),
    )
    return Compiled(followed, program, kernel)


def by_torch(run: Run, inputs: Inputs) -> list[Tensor]:
    """What a function computes of all rows."""
    rows = next(g.tensor.shape[g.dim] for g in inputs.values() if isinstance(g, Rows))
    return list(run(SimpleNamespace(n=rows, **{name: g.tensor for name, g in inputs.items()})))


def regions(
    run: Run, inputs: Inputs, results: Sequence[Result], block: int = 64, target: Target = PROCESSOR
) -> tuple[Region, Region]:
    """A region that runs operator by operator, and the same one with a kernel.

    The outputs of the function are as a region's body has them: for an `Add`, the index and the rows.
    """
    module, given = traced(run, inputs), described(inputs)
    slices = tuple(Slice(g.dim, 1) if isinstance(g, Rows) else None for g in inputs.values())
    spec = RegionSpec("region", "rows", 0, slices, tuple(results), row_bytes=WORTH_A_THREAD, in_turn=False)
    plain = Region(spec, module, block)
    body = Body.__new__(Body)  # what a program tells it of a region is known here
    body.region, body.given, body.buffers = plain, given, []
    followed = follow(module, given)
    body.tables = followed.tables
    body.outputs = body._results(followed)
    body.program = written(followed, given, body.outputs, target)
    body.values = tuple(body._value(o, followed) for o in body.outputs)
    kernel = body.kernel() if target is PROCESSOR else body.launched(emulated(body.program), "cpu")
    return plain, plain.running(kernel)
