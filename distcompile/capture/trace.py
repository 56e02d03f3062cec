"""Capture a model's call as one ATen graph with symbolic sizes, gradients included.

    model(graph) -> {energy, forces, stress}          placeholder per tensor of the graph
      ... torch.autograd.grad(energy, positions)  =>  aten.mm, aten.index, ... forward and backward
                                                      output: every tensor of the result

``make_fx`` follows the Python program once on fake tensors that also carry the example's real values. The real
values answer data-dependent questions ("how long is this bincount?") with the example's answer, which is
recorded and checked on every later graph. Code that would bake the example's sizes in is cured by `cures.py`.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import sympy
import torch
import torch._functorch.config as functorch_config
import torch._meta_registrations
from torch import Tensor, fx, nn
from torch._dynamo.exc import UserError
from torch._subclasses.fake_tensor import UnsupportedOperatorException
from torch.func import functionalize
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import PythonKeyTracer, make_fx, maybe_enable_thunkify
from torch.fx.experimental.symbolic_shapes import (
    GuardOnDataDependentSymNode,
    PropagateUnbackedSymInts,
    ShapeEnv,
)

from ..default_device import as_the_user_has_it
from ..errors import CaptureError, DistcompileError
from ..ir import Captured
from ..ir.tree import Leaf, Tree, flatten
from ..ir.user_code import OURS
from ..runtime.execution.precision import as_written, no_casts_kept, precision
from ..torch_versions import composites_in_python
from . import decompositions
from .cures import Cures, LearntEnough, shapes_of
from .fakes import Fakes, fake
from .leaving_torch import BuildsNoIndices, LeftTorch
from .mutations import NoRule, without_mutations
from .origins import origins
from .threads import compiled_code_as_python, one_at_a_time, quiet, replaced, traced_apart


def capture(
    call: Callable[..., Any], model: nn.Module | None, args: tuple[Any, ...], paths: Sequence[str] = ()
) -> Captured:
    """Capture ``call(*args)``, a call of `model`, as one functional ATen graph.

    Args:
        call: the function to trace.
        model: the module that `call` runs, whose packages get the cures.
        args: the example's positional arguments.
        paths: the names of the tensors of `args` in messages.

    Raises:
        CaptureError: the call cannot be traced; names the user's line, the reason and what to change.
    """
    read: set[str] = set()
    leaves, tree = flatten(args, counts=True, read=read)
    leaves = [Leaf(path, leaf.tensor) for path, leaf in zip(paths, leaves, strict=True)] if paths else leaves
    if not leaves:
        raise CaptureError(
            "The graph object holds no tensors: there is nothing to evaluate. Pass what the model's forward takes."
        )
    try:
        with (
            one_at_a_time(),
            functorch_config.patch(fake_tensor_propagate_real_tensors=True),  # torch keeps it for each thread
            quiet(),
            no_casts_kept(),
            _mended(),
        ):
            cures = Cures()
            trace: _Trace | None = None
            while trace is None or cures.learn(trace.shape_env, trace.sizes, trace.rows):
                trace = None  # if this attempt fails, the result of an earlier one must not be used
                try:
                    trace = _trace(call, model, leaves, tree, cures)
                except LeftTorch as left:
                    if not cures.learn_from(left):
                        raise _explained(left) from left
                except BuildsNoIndices:
                    cures.search_on()
                except LearntEnough:
                    pass
                except Exception as error:
                    if isinstance(error, GuardOnDataDependentSymNode) and not cures.keeps_all_values:
                        cures.keeps_all_values = True  # the answer may hang on features, whose values were dropped
                    elif not cures.conversions.fix_numbers():
                        cures.search_around(error)
            conditions = _keep_conditions(trace)
            with as_written():
                functional = _functionalize(trace)
            trace.mode.forget(functional.graph)
    except DistcompileError:
        raise
    except Exception as error:
        raise _explained(error) from error
    return Captured(
        functional,
        tuple(leaves),
        trace.sizes,
        tree.numbers,
        tuple(text for text in tree.texts if text[0] in read),
        trace.result,
        trace.shape_env,
        trace.checks,
        tuple(dict.fromkeys(cures.comparisons)),
        conditions,
        cures.differentiates,
        model is not None and model.training,
        origins(functional, trace.fakes, trace.returned),
        precision(),
        tuple(cures.conversions.loops.of(trace.rows)),
        cures.over_rows,
    )


@dataclasses.dataclass(frozen=True)
class _Trace:
    graph_module: fx.GraphModule
    fakes: list[Tensor]
    result: Tree
    returned: list[Any]
    """The values of the result, before they became nodes."""
    mode: Fakes

    @property
    def shape_env(self) -> ShapeEnv:
        assert self.mode.shape_env is not None
        return self.mode.shape_env

    @property
    def checks(self) -> tuple[sympy.Basic, ...]:
        """The conditions on sizes and values that were tested so far, and that the example meets."""
        asked = [guard.expr for guard in self.shape_env.guards]
        asked += [one.expr for asserts in self.shape_env.deferred_runtime_asserts.values() for one in asserts]
        return tuple(expr for expr in asked if isinstance(expr, sympy.Basic))

    @property
    def sizes(self) -> tuple[tuple[sympy.Expr, ...], ...]:
        """For each leaf, its shape."""
        return shapes_of(self.shape_env, self.fakes)

    @property
    def rows(self) -> set[sympy.Symbol]:
        """Sizes that may be numbers of rows.

        A floating-point leaf has features beside its rows, whose number is not among them.
        """
        lengths = [n for x in self.fakes for n in (x.shape[:1] if x.is_floating_point() else x.shape)]
        return {symbol for n in lengths for symbol in _symbols(n)}


def _trace(
    call: Callable[..., Any],
    model: nn.Module | None,
    leaves: Sequence[Leaf],
    tree: Tree,
    cures: Cures,
) -> _Trace:
    # Without duck shaping two dimensions are one index space only if the program says so.
    mode = Fakes(shape_env=ShapeEnv(duck_shape=False), allow_non_fake_inputs=True)
    if not cures.keeps_all_values:
        mode.widest = 9 * max((n for leaf in leaves for n in leaf.tensor.shape), default=1)  # a matrix for each row
    fakes = [fake(mode, leaf.tensor, i) for i, leaf in enumerate(leaves)]
    result: list[tuple[Tree, list[Any]]] = []

    def flat_call(*tensors: Tensor) -> list[Any]:
        # Most questions about sizes come from shape rules, and are not for the graph.
        with as_the_user_has_it(), maybe_enable_thunkify():
            out = call(*tree.unflatten(tensors))
        out_leaves, out_tree = flatten(out)  # copies containers: the user's stay as they are
        result.append((out_tree, [leaf.tensor for leaf in out_leaves]))
        return result[-1][1]

    with (
        mode,
        cures.applied(model, fakes),
        torch.enable_grad(),
        composites_in_python(),
        _helpers_recorded(),
        compiled_code_as_python(),
        torch.autograd.set_multithreading_enabled(False),  # backward in this thread, too, whatever the device
    ):
        traced = make_fx(
            flat_call, decompositions.TABLE, "real", _allow_non_fake_inputs=True, record_stack_traces=True
        )(*fakes)
    return _Trace(traced, fakes, *result[-1], mode)


def _keep_conditions(trace: _Trace) -> tuple[sympy.Symbol, ...]:
    """Return numbers that decided about branches, or are sizes, as further results: they are new for each graph."""
    nodes = trace.graph_module.graph.nodes
    wanted: set[Any] = {symbol for check in trace.checks for symbol in check.free_symbols}
    wanted |= {s for n in nodes for size in getattr(n.meta.get("val"), "shape", ()) for s in _symbols(size)}
    found: dict[sympy.Symbol, fx.Node] = {}
    for node in nodes:
        if node.target is torch.ops.aten._local_scalar_dense.default:
            for symbol in _symbols(node.meta.get("val")) & wanted:
                found[symbol] = node.args[0]
    (output,) = [n for n in nodes if n.op == "output"]
    output.args = ([*output.args[0], *found.values()],)
    return tuple(found)


def _symbols(number: Any) -> set[sympy.Symbol]:
    """The symbols of a symbolic number as they were before the example fixed them."""
    return number.node._expr.free_symbols if hasattr(number, "node") else set()


def _functionalize(trace: _Trace) -> fx.GraphModule:
    """Replace mutations by functional operators; views stay views."""
    traced = trace.graph_module
    traced.graph.eliminate_dead_code()
    _fix_dtypes(traced, trace.mode)
    try:
        with replaced(trace.mode, "propagate_real_tensors", False):
            functional = without_mutations(traced, trace.mode)
    except NoRule:
        functional = _followed_again(trace)
    functional.graph.eliminate_dead_code()
    functional.recompile()
    return functional


def _followed_again(trace: _Trace) -> fx.GraphModule:
    trace.mode.epoch += 1  # what the first trace found of inputs (their unique values) has sizes of its own
    with trace.mode, fx.traceback.preserve_node_meta(), torch.no_grad():
        run = functionalize(lambda *xs: PropagateUnbackedSymInts(trace.graph_module).run(*xs), remove="mutations")
        return make_fx(run, tracing_mode="real", _allow_non_fake_inputs=True)(*trace.fakes)  # type: ignore[no-any-return]


_WITH_MASKS = {torch.ops.aten.where.self, torch.ops.aten.where.ScalarSelf, torch.ops.aten.where.ScalarOther}
"""Their first operand must stay boolean."""


def _fix_dtypes(module: fx.GraphModule, mode: Fakes) -> None:
    """Write down every dtype that was taken from ``torch.get_default_dtype()``, since the default may change later."""
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        schema = getattr(node.target, "_schema", None)
        operands = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
        if not operands:
            if schema is not None and any(a.name == "dtype" for a in schema.arguments):
                node.update_kwarg("dtype", node.kwargs.get("dtype") or value.dtype)
        elif node.target in _WITH_MASKS:
            continue
        elif torch.Tag.pointwise in getattr(node.target, "tags", ()) and not any(
            n.meta["val"].is_floating_point() or n.meta["val"].is_complex() for n in operands
        ):
            with module.graph.inserting_before(node):
                cast = module.graph.call_function(
                    torch.ops.aten._to_copy.default, (operands[0],), {"dtype": value.dtype}
                )
            with mode:
                cast.meta["val"] = operands[0].meta["val"].to(value.dtype)
            cast.meta["stack_trace"] = node.meta.get("stack_trace")
            node.replace_input_with(operands[0], cast)


@contextmanager
def _helpers_recorded() -> Iterator[None]:
    """Let the tracer note every frame of the model's code with an operator, not only those called ``forward``.

    Lines of source are looked up for these frames alone: for all frames of each operator, they took a twentieth of a
    capture's time.
    """
    elsewhere = (torch.__path__[0], "<eval_with_key>")

    def frames(_: PythonKeyTracer, stack: traceback.StackSummary) -> traceback.StackSummary:
        inner = max((i for i, frame in enumerate(stack) if frame.filename == __file__), default=-1)
        theirs = [frame for frame in stack[inner + 1 :] if not frame.filename.startswith(elsewhere)]
        return traceback.StackSummary.from_list(theirs)

    def unread(symbolized: list[dict[str, Any]], skip: int) -> traceback.StackSummary:
        return traceback.StackSummary(
            traceback.FrameSummary(f["filename"], f["line"], f["name"], lookup_line=False)
            for f in reversed(symbolized[skip:])
        )

    with (
        replaced(PythonKeyTracer, "_filter_traceback_frames", frames),
        replaced(torch.utils._traceback, "_extract_symbolized_tb", unread),
    ):
        yield


@contextmanager
def _mended() -> Iterator[None]:
    """Let torch follow calls that it does not follow by itself.

    Shapes of triangular systems: torch expands operands to their sizes, which it cannot do here. Weights of a class of
    the model's own: torch takes them for tensors that handle their operators themselves. Notes on each tensor for other
    readers of the graph, at a twentieth of a capture's time, are left out.
    """

    def broadcast(one: Tensor, two: Tensor, name: str | None = None) -> tuple[Tensor, Tensor]:
        return (one, two) if one.shape[:-2] == two.shape[:-2] else stock(one, two, name)

    stock = torch._meta_registrations._linalg_broadcast_batch_dims_name
    with (
        traced_apart(),
        replaced(torch._meta_registrations, "_linalg_broadcast_batch_dims_name", broadcast),
        replaced(proxy_tensor, "HANDLED_TYPES", _Followed(proxy_tensor.HANDLED_TYPES)),
        replaced(proxy_tensor, "_extract_tensor_metadata", lambda value: None),
    ):
        yield


class _Followed(tuple[type, ...]):
    """The types of tensors that the tracer follows."""

    def __contains__(self, kind: Any) -> bool:
        is_weight = issubclass(kind, nn.Parameter) and kind.__torch_dispatch__ is nn.Parameter.__torch_dispatch__
        return is_weight or super().__contains__(kind)


@contextmanager
def told_in_words() -> Iterator[None]:
    """Turn torch's error about an unknown number of the graph into an error for users."""
    try:
        yield
    except (GuardOnDataDependentSymNode, UserError) as error:
        raise CaptureError(
            "What follows of the captured call hangs on a size that only values of the graph tell: "
            f"{str(error).splitlines()[0]}\nTake sizes from tensor.shape, or compute the list of which it is the "
            "length from integers of the graph."
        ) from error


def _explained(error: Exception) -> CaptureError:
    """Turn a failure inside the tracer into one message that points at the model's own line."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((*OURS, np.__path__[0]))
    ]
    where = f"{frames[-1].filename}:{frames[-1].lineno}\n    {frames[-1].line}" if frames else "unknown"
    reason = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    if isinstance(error, LeftTorch):
        reason = "forward itself asks for the values of a tensor (NumPy, a list); a function that it calls may do so"
    elif isinstance(error, UnsupportedOperatorException):
        library = str(error.func).partition(".")[0]
        reason = (
            f"torch follows no shapes through the operator {error.func} of the library {library!r}. Register them with "
            "torch.library.register_fake, and a gradient with register_autograd, or use operators of torch"
        )
    elif "INTERNAL ASSERT" in reason:
        reason = "torch cannot follow this operator when sizes, or numbers computed from tensors, are not known"
    return CaptureError(
        f"The model's call could not be captured.\n  at {where}\n  reason: {reason}\n"
        "Check first that the stock model runs on the example. Code that turns tensor values into Python values "
        "(.item(), numpy, printing, data-dependent loops, a neighbour search) has to move out of forward."
    )
