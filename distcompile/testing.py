"""Conformance kit: hold any model, compiled for N ranks, against the stock model.

    report = distcompile.testing.check_model(model, graph)
    print(report)              # a table to paste into a bug report

Every output is compared, on every graph, on every number of virtual ranks. Nothing is assumed about the model.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .api import compile
from .check.validate import coarsest
from .errors import NoIndexSpaceError, ValidationError
from .ir.tree import flatten
from .model import DistributedModel, arguments
from .predict.account import collectives
from .runtime.world import LocalWorld

RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Largest difference allowed, relative to the largest value of an output."""
FLOOR = 1e-3
"""Outputs smaller than this (eV, eV/A, eV/A^3) are compared as if they were this large: some vanish by symmetry."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """One output of one graph on one number of ranks against the stock model."""

    graph: str
    ranks: int
    output: str
    absolute: float
    largest: float
    """The largest absolute value of the stock output."""
    allowed: float

    @property
    def ok(self) -> bool:
        """True if the difference is within rounding; NaN is not."""
        return self.absolute <= self.allowed


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of `check_model`."""

    model: str
    dtype: str
    captures: int
    capture_seconds: float
    operators: int
    collectives: int
    spaces: tuple[str, ...]
    differences: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        """True if every output agreed everywhere."""
        return all(d.ok for d in self.differences)

    @property
    def worst(self) -> float:
        """The largest difference relative to the largest value of its output."""
        return max((d.absolute / max(d.largest, FLOOR) for d in self.differences), default=0.0)

    def __str__(self) -> str:
        head = (
            f"{self.model}: {self.dtype}, {self.operators} operators, {self.collectives} collectives, spaces "
            f"{', '.join(self.spaces)}; compiled in {self.capture_seconds:.1f} s, {self.captures} capture(s)"
        )
        names = list(dict.fromkeys(d.output for d in self.differences))
        width = max([len(n) for n in names] + [6])
        lines = [head, f"{'graph':<14} {'ranks':>5}  {'output':<{width}} {'difference':>10} {'largest':>10}"]
        lines += [
            f"{d.graph:<14} {d.ranks:>5}  {d.output:<{width}} {d.absolute:>10.2e} {d.largest:>10.2e}"
            f"{'' if d.ok else f'   FAILED, allowed {d.allowed:.1e}'}"
            for d in self.differences
        ]
        return "\n".join([*lines, f"{'ok' if self.ok else 'FAILED'}: largest relative difference {self.worst:.1e}"])


def check_model(
    model: nn.Module | Callable[..., Any],
    graph: Any,
    other_graph: Any = None,
    ranks: Sequence[int] = (1, 2, 3),
    *,
    model_kwargs: dict[str, Any] | None = None,
    relative: float | None = None,
) -> Report:
    """Compile `model` on `graph` and compare N virtual ranks with the stock model in every output.

    Args:
        model: as for `distcompile.compile`.
        graph: the example; a tuple for a model with several positional inputs.
        other_graph: a graph of other sizes (or a list of them), served by the same program; sizes that were baked
            in show here.
        ranks: numbers of virtual ranks.
        model_kwargs: keyword arguments of every call.
        relative: largest difference allowed relative to the largest value of an output; if None, 1e-9 where all is
            in float64 and 1e-5 where the graph or an output is in float32.

    Raises:
        ValidationError: an output differs; the message is the whole table.
        CaptureError, UnsupportedOp: as `distcompile.compile` raises them.
    """
    kwargs = model_kwargs or {}
    others = list(other_graph) if isinstance(other_graph, list) else [other_graph] if other_graph is not None else []
    graphs = {"graph": graph, **{f"other_graph{i or ''}": other for i, other in enumerate(others)}}
    stock = {name: _stock(model, g, kwargs) for name, g in graphs.items()}
    dtype = coarsest([*[leaf.tensor for leaf in flatten(graph)[0]], *stock["graph"].values()])
    allowed = relative or RELATIVE.get(dtype, 0.0)
    start = time.perf_counter()
    compiled = compile(model, graph, model_kwargs=kwargs, world=LocalWorld(1), validate=not others)
    seconds = time.perf_counter() - start
    differences = []
    for n in ranks:
        compiled = compiled.on(LocalWorld(n))
        for name, g in graphs.items():
            found = {leaf.path: leaf.tensor for leaf in flatten(compiled(*arguments(g)))[0]}
            differences += [
                _difference(name, n, path, found.get(path), expected, allowed) for path, expected in stock[name].items()
            ]
    report = Report(
        type(model).__name__,
        _dtype(stock["graph"]),
        compiled.captures,
        seconds,
        *_what_runs(compiled),
        tuple(differences),
    )
    if not report.ok:
        raise ValidationError(f"The compiled model does not reproduce the stock model.\n{report}")
    return report


def _what_runs(compiled: DistributedModel) -> tuple[int, int, tuple[str, ...]]:
    """Numbers of operators and of collectives, and index spaces; zeros and no spaces if there was nothing to divide."""
    try:
        program = compiled.program
    except NoIndexSpaceError:
        return 0, 0, ()
    operators = sum(n.op == "call_function" for n in program.graph.graph.nodes)
    return operators, len(collectives(program)), tuple(s.name for s in program.spaces if s.sharded)


def _stock(model: Any, graph: Any, kwargs: dict[str, Any]) -> dict[str, Tensor]:
    leaves, tree = flatten(arguments(graph))
    copies = [leaf.tensor.detach().clone().requires_grad_(leaf.tensor.requires_grad) for leaf in leaves]
    with torch.enable_grad():
        result, _ = flatten(model(*tree.unflatten(copies), **kwargs))
    return {leaf.path: leaf.tensor.detach() for leaf in result}


def _dtype(outputs: dict[str, Tensor]) -> str:
    found = {str(t.dtype).removeprefix("torch.") for t in outputs.values() if t.is_floating_point()}
    return " and ".join(sorted(found)) or "no floating-point output"


def _difference(graph: str, ranks: int, path: str, ours: Tensor | None, stock: Tensor, relative: float) -> Difference:
    largest = float(stock.abs().max()) if stock.numel() else 0.0
    allowed = relative * max(largest, FLOOR)
    if ours is None or ours.shape != stock.shape:
        return Difference(graph, ranks, path, math.inf, largest, allowed)
    absolute = float((ours.detach().double() - stock.double()).abs().max()) if stock.numel() else 0.0
    return Difference(graph, ranks, path, absolute, largest, allowed)
