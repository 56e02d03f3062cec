"""Code for one body: operators that Inductor knows, then its code, kept on disk by the name of the body.

    silu(x) @ w    =>    x * sigmoid(x), mm    =>    a module of Python that calls loops in C++

Inductor's own entry expects programs that may write into their inputs and have gradients, and follows each twice to
find out. Bodies of regions do neither, so they are followed once; what was generated before is not followed at all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from ....capture.threads import replaced, traced_apart
from ....ir.graphs import writes
from ..cache import cache_folder
from .cpp_library import OPTIMIZATION, compiled_together

Code = Callable[[list[Any]], Sequence[Any]]
"""Takes the inputs of a body as a list, which it empties."""

Examples = tuple[FakeTensorMode, list[Any]]


def generate(name: str, body: fx.GraphModule, examples: Callable[[], Examples]) -> Code:
    """The code for a body, generated unless it was on this machine before.

    Args:
        name: the same for bodies that are the same program under the same `settings`.
        body: operators of ATen that leave their inputs as they are.
        examples: makes fake inputs, with symbols for sizes that vary, and the mode that they belong to.
    """
    from torch._inductor.codecache import PyCodeCache  # takes seconds to import

    with torch.no_grad(), traced_apart(), compiled_together(), _strides_multiplied_out():
        kept = cache_folder() / name
        if kept.exists() and (source := kept.read_text()):
            return PyCodeCache.load(source).call  # type: ignore[no-any-return]
        code, source = _generate(body, *examples())
        if source:
            _keep(kept, source)
    return code


def settings() -> str:
    """A text of all that code depends on besides the body: Inductor's settings, and the processor."""
    import torch._inductor.config as inductor_config  # takes seconds to import
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    with compiled_together():
        return f"{inductor_config.get_hash()!r} {pick_vec_isa()} {OPTIMIZATION}"


def _generate(body: fx.GraphModule, mode: FakeTensorMode, inputs: list[Any]) -> tuple[Code, str]:
    """Code for a body, and its source if that is all that it takes to have the code again."""
    from torch._inductor import compile_fx
    from torch._inductor.fx_passes.joint_graph import joint_graph_passes
    from torch._inductor.output_code import CompiledFxGraph
    from torch._inductor.virtualized import V

    with tracing(TracingContext(mode)), enable_python_dispatcher():
        graph = _decomposed(body, mode, inputs)
        with mode, V.set_fake_mode(mode):
            graph = joint_graph_passes(graph)
        (output,) = graph.graph.find_nodes(op="output")
        output.meta["user_visible_output_idxs"] = list(range(len(output.args[0])))  # these keep their layout
        known = all("val" in node.meta for node in graph.graph.nodes if node.op == "call_function")
        with replaced(compile_fx, "fake_tensor_prop", lambda *_: mode) if known else nullcontext():
            code: Any = compile_fx.compile_fx_inner(graph, inputs, is_inference=True)
    on_host = all(x.device.type == "cpu" for x in inputs if isinstance(x, Tensor))  # else inputs are aligned as well
    is_all = isinstance(code, CompiledFxGraph) and on_host and not code.constants
    return code, code.source_code if is_all else ""


def _decomposed(body: fx.GraphModule, mode: FakeTensorMode, inputs: list[Any]) -> fx.GraphModule:
    """The body in operators that Inductor has loops for."""
    from torch._inductor.decomposition import select_decomp_table

    def follow(run: Callable[..., Any]) -> fx.GraphModule:
        return make_fx(run, select_decomp_table())(*inputs)  # type: ignore[no-any-return]

    # Each body has symbols of its own, so that hardly a result is met twice.
    with mode, replaced(mode, "cache_enabled", False):
        graph = follow(body)
        if any(writes(node.target) for node in graph.graph.nodes):  # some decompositions write into operands
            graph = follow(functionalize(body, remove="mutations"))
    return graph


@contextmanager
def _strides_multiplied_out() -> Iterator[None]:
    """Let Inductor find strides by multiplying out: they are sums of products.

    It looks for the simplest form otherwise, which took half of the time in which it writes vectors.
    """
    with replaced(sympy, "simplify", sympy.expand):
        yield


def _keep(path: Path, source: str) -> None:
    """Write a file that other processes, on other machines too, may look for at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as unfinished:
        unfinished.write(source)
        unfinished.flush()
        os.fsync(unfinished.fileno())  # before it gets its name, in case the machine stops
    Path(unfinished.name).replace(path)
