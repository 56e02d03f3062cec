"""The body of a region as a kernel: followed, written, compiled."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from ....ir import Tiled
from ....ir.constants import Constants
from ....runtime.execution.kernels import Kernel, Value
from ....runtime.execution.launches import Launch, Launched
from ....runtime.execution.tiles import Add, Reduce, Region, Store
from . import library
from .cpp import Output, Program, written
from .elements import Rows, Unsupported
from .follow import Followed, follow
from .target import PROCESSOR, Target
from .values import Given

aten = torch.ops.aten


class Body:
    """The body of a region in component code.

    Raises:
        Unsupported: it has no form in component code.
    """

    def __init__(self, program: Tiled, name: str, constants: Constants, target: Target = PROCESSOR) -> None:
        self.region: Region = getattr(program.tiled, name)
        calls = (n for n in program.tiled.graph.nodes if n.op == "call_module" and n.target == name)
        call = next(calls)  # one that runs over some rows first is given the same the other time
        self.buffers: list[Tensor] = []
        """Buffers of the model whose values are part of the code."""
        self.given = self._inputs(program, call, constants)
        followed = follow(self.region.graph_module, self.given)
        self.tables = followed.tables
        self.outputs = self._results(followed)
        self.program: Program = written(followed, self.given, self.outputs, target)
        self.values = tuple(self._value(o, followed) for o in self.outputs)

    def kernel(self) -> Kernel:
        """The body, compiled for this machine's processor."""
        return Kernel(library.loaded(self.program.source), *self._described())

    def launched(self, launch: Launch, device: str = "cuda") -> Launched:
        """The body, written for a GPU, as something runs it on a type of device."""
        return Launched(launch, *self._described(), device)

    def _described(self) -> tuple[int, int, tuple[torch.dtype | None, ...], tuple[int | None, ...], tuple[Value, ...]]:
        """What a kernel knows of it."""
        dtypes = tuple(None if g.is_number else g.dtype for g in self.given)
        rows = tuple(self.tables.get(i, g.rows) for i, g in enumerate(self.given))
        return self.program.scratch, self.program.lanes, dtypes, rows, self.values

    def _inputs(self, program: Tiled, call: fx.Node, constants: Constants) -> list[Given]:
        _, *names = (n for n in self.region.graph_module.graph.nodes if n.op == "placeholder")
        found = []
        for name, part, source in zip(names, self.region.spec.inputs, call.args[1:], strict=False):
            value = name.meta["val"]
            if not isinstance(value, Tensor):
                found.append(Given(None, (None,), torch.int64, is_number=True))
                continue
            sizes = program.shape(name)
            shape = [int(n) if n.is_Integer else None for n in sizes]
            if part is not None:
                shape[part.dim] = part.factor
            known = constants.value(source) if isinstance(source, fx.Node) and None not in shape else None
            if known is not None and isinstance(source, fx.Node) and known.numel() <= LARGEST_CONSTANT:
                self.buffers += constants.buffers(source)
                found.append(Given(None, tuple(shape), value.dtype, known))
            else:
                found.append(Given(None if part is None else part.dim, tuple(shape), value.dtype))
        return found

    def _results(self, followed: Followed) -> list[Output]:
        """The use of each output."""
        outputs: list[Output] = []
        at = 0
        shared = {r.after for r in self.region.spec.results if isinstance(r, Add)}
        for j, result in enumerate(self.region.spec.results):
            if isinstance(result, Store | Add) and result.dim != 0:
                raise Unsupported("rows along another dimension than the first")
            if isinstance(result, Reduce) and result.reduction != "sum":
                raise Unsupported("a largest value of all rows")
            if not isinstance(result, Add):
                outputs.append(Output("store" if isinstance(result, Store) else "sum", at))
                at += 1
                continue
            numbers, dtype = followed.outputs[at].elements.numel(), followed.outputs[at + 1].dtype
            if result.reduction == "sum" and not result.by_element and numbers == 1 and dtype.is_floating_point:
                outputs.append(Output("add", at + 1, at, result.after is None and j not in shared))
            else:
                outputs += [Output("values", at), Output("values", at + 1)]
            at += 2
        return outputs

    def _input_of(self, followed: Followed, output: int) -> tuple[int, int] | None:
        """The input, and the entry of its rows, that an output is."""
        (element,) = followed.outputs[output].elements.reshape(-1).tolist()
        owner = int(followed.table.owner(element))
        definition = followed.table.definitions[owner]
        if owner < 0 or not isinstance(definition.what, Rows):
            return None
        place = int(definition.places[element - int(definition.elements[0])])
        factor = self.given[definition.what.input].shape[self.given[definition.what.input].rows or 0]
        return (definition.what.input, place) if factor == 1 else None

    def _value(self, output: Output, followed: Followed) -> Value:
        value = followed.outputs[output.value]
        where = self._input_of(followed, output.index) if output.kind == "add" and output.alone else None
        return Value(output.kind, value.dtype, tuple(value.elements.shape), output.kind != "sum", where)


LARGEST_CONSTANT = 2**18
"""Entries of a buffer up to which its values become part of the code."""
