"""``torch.compile(model, backend="distmlip", options={"world": ..., "lowering": ..., "memory": ...})``.

Dynamo hands over pieces of a model as graphs of torch calls. Each piece that reads rows through a pointer is compiled
as `distcompile.compile` compiles a model; its inputs and results are whole on every rank, so pieces without pointers
simply run as they are. Gradients taken outside, also of parameters and of forces, are exact on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._dynamo as dynamo
from torch import Tensor, fx
from torch._dynamo import trace_rules

from .api import compiled_for
from .model import DistributedModel, Settings

trace_rules.add("distcompile")  # what runs a compiled graph is not for Dynamo to trace, also not in a backward pass

OPTIONS = ("world", "lowering", "memory", "radial_error")


def distmlip(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any], *, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile one graph of Dynamo. Registered as a backend of ``torch.compile``.

    Raises:
        ValueError: an unknown option.
        CaptureError, UnsupportedOp: as `distcompile.compile`; where Dynamo cannot follow a model, use that instead.
    """
    options = options or {}
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ValueError(f"unknown option {', '.join(unknown)} for backend 'distmlip'; it takes {', '.join(OPTIONS)}")
    _ask_for_symbolic_sizes(graph_module)
    return _Piece(graph_module, options)


def _ask_for_symbolic_sizes(graph_module: fx.GraphModule) -> None:
    """Make Dynamo trace once more, with symbolic sizes, if it took the first call's sizes for fixed."""
    values = [n.meta.get("example_value") for n in graph_module.graph.nodes if n.op == "placeholder"]
    shapes = [[v] if isinstance(v, torch.SymInt) else v.shape for v in values if isinstance(v, torch.SymInt | Tensor)]
    symbolic = any(isinstance(n, torch.SymInt) for shape in shapes for n in shape)
    asked_before = dynamo.config.assume_static_by_default != _USUAL
    dynamo.config.assume_static_by_default = _USUAL
    if not symbolic and not asked_before and _USUAL:
        dynamo.config.assume_static_by_default = False
        raise dynamo.exc.TensorifyScalarRestartAnalysis(restart_reason="distmlip compiles for any number of atoms")


_USUAL = dynamo.config.assume_static_by_default


class _Piece:
    """One graph, compiled at its first call. It runs as it is if nothing in it reads rows through a pointer."""

    def __init__(self, graph_module: fx.GraphModule, options: dict[str, Any]) -> None:
        self._graph_module, self._options = graph_module, options
        self._compiled: DistributedModel | None = None

    def __call__(self, *args: Any) -> Any:
        if self._compiled is None:
            given = {name: value for name, value in self._options.items() if value is not None}
            self._compiled = compiled_for(self._graph_module, args, Settings(**given))[0]
        return self._compiled(*args)
