"""Run TorchScript as Python, so that a tracer sees every operator with symbolic sizes.

The TorchScript interpreter turns sizes into plain integers, which would bake the example's number of atoms
into the captured graph. Here the same program (its inlined graph) is walked node by node instead.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import CaptureError
from .threads import replaced


@contextmanager
def scripts_as_python() -> Iterator[None]:
    """Let this thread run scripted functions and methods as Python, wherever they are kept."""
    script_method: Any = torch._C.ScriptMethod
    with (
        replaced(torch.jit.ScriptFunction, "__call__", _run_function),
        replaced(script_method, "__call__", _run_method),
    ):
        yield


def _run_function(function: Any, *args: Any, **kwargs: Any) -> Any:
    original = getattr(function, "_torchdynamo_inline", None)
    if original is not None:
        return original(*args, **kwargs)
    return run_graph(function.inlined_graph, _bind(function.schema.arguments, args, kwargs))


def _run_method(method: Any, *args: Any, **kwargs: Any) -> Any:
    return run_graph(method.inlined_graph, [method.owner, *_bind(method.schema.arguments[1:], args, kwargs)])


def _bind(arguments: Sequence[Any], args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Order the arguments of a call by those of a TorchScript schema, filling in defaults."""
    return [*args, *(kwargs.get(a.name, a.default_value) for a in arguments[len(args) :])]


def run_graph(graph: Any, inputs: Sequence[Any]) -> Any:
    """Evaluate an inlined TorchScript graph on `inputs` (its module first, if it has one)."""
    env: dict[str, Any] = {}
    for value, given in zip(graph.inputs(), inputs, strict=True):
        env[value.debugName()] = given
    _run_block(graph, env)
    outputs = [env[o.debugName()] for o in graph.outputs()]
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _run_block(block: Any, env: dict[str, Any]) -> None:
    for node in block.nodes():
        kind = node.kind()
        args = [env[i.debugName()] for i in node.inputs()]
        if kind == "prim::If":
            results = _run_if(node, args[0], env)
        elif kind == "prim::Loop":
            results = _run_loop(node, args, env)
        elif kind in _MANY:
            results = list(args[0])
        else:
            results = [_evaluate(node, kind, args)]
        for output, result in zip(node.outputs(), results, strict=False):
            env[output.debugName()] = result


def _run_if(node: Any, condition: Any, env: dict[str, Any]) -> list[Any]:
    then, otherwise = node.blocks()
    taken = then if condition else otherwise
    _run_block(taken, env)
    return [env[o.debugName()] for o in taken.outputs()]


def _run_loop(node: Any, args: list[Any], env: dict[str, Any]) -> list[Any]:
    limit, go_on, *carried = args
    (body,) = node.blocks()
    step = 0
    while step < limit and go_on:
        for value, given in zip(body.inputs(), [step, *carried], strict=True):
            env[value.debugName()] = given
        _run_block(body, env)
        go_on, *carried = [env[o.debugName()] for o in body.outputs()]
        step += 1
    return carried


_MANY = {"prim::ListUnpack", "prim::TupleUnpack"}


def _raise(message: str, *_: Any) -> None:
    raise RuntimeError(message)


# What TorchScript's own primitives and its operators on Python values mean in Python.
_PRIMITIVES: dict[str, Callable[..., Any]] = {
    "prim::ListConstruct": lambda *a: list(a),
    "prim::TupleConstruct": lambda *a: tuple(a),
    "prim::DictConstruct": lambda *a: dict(zip(a[::2], a[1::2], strict=True)),
    "prim::TupleIndex": operator.getitem,
    "prim::NumToTensor": lambda a: a,
    "prim::unchecked_cast": lambda a: a,
    "prim::Uninitialized": lambda: None,
    "prim::RaiseException": _raise,
    "prim::dtype": lambda a: a.dtype,
    "prim::device": lambda a: a.device,
    "prim::layout": lambda a: a.layout,
    "prim::requires_grad": lambda a: a.requires_grad,
    "prim::data": lambda a: a.detach(),
    "prim::min": min,
    "prim::max": max,
    "aten::__getitem__": operator.getitem,
    "aten::_set_item": operator.setitem,
    "aten::__contains__": operator.contains,
    "aten::__is__": operator.is_,
    "aten::__isnot__": operator.is_not,
    "aten::__not__": operator.not_,
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::div": operator.truediv,
    "aten::floordiv": operator.floordiv,
    "aten::remainder": operator.mod,
    "aten::pow": operator.pow,
    "aten::sqrt": math.sqrt,
    "aten::neg": operator.neg,
    "aten::eq": operator.eq,
    "aten::ne": operator.ne,
    "aten::lt": operator.lt,
    "aten::le": operator.le,
    "aten::gt": operator.gt,
    "aten::ge": operator.ge,
    "aten::Int": lambda a: a,
    "aten::IntImplicit": lambda a: a,
    "aten::ScalarImplicit": lambda a: a,
    "aten::Float": lambda a: a,
    "aten::Bool": bool,
    "aten::append": lambda a, x: a.append(x) or a,
    "aten::slice": lambda a, start, stop, step: a[start:stop:step],
    "aten::list": list,
    "aten::keys": lambda a: list(a.keys()),
    "aten::values": lambda a: list(a.values()),
    "aten::items": lambda a: list(a.items()),
    "aten::warn": lambda *_: None,
    "aten::format": lambda s, *a: s.format(*a),
}

_OF_OBJECTS = {"aten::__is__", "aten::__isnot__"}
"""Questions about tensors that may be asked of any object."""

# Sizes must be asked of the tensor itself: the operators of the same names return plain integers.
_SIZES: dict[str, Callable[..., Any]] = {
    "aten::size": lambda a, *d: a.size(*d) if d else list(a.size()),
    "aten::len": lambda a: a.shape[0] if isinstance(a, torch.Tensor) else len(a),
    "aten::dim": lambda a: a.dim(),
    "aten::numel": lambda a: a.numel(),
    "prim::shape": lambda a: list(a.shape),
}


def _evaluate(node: Any, kind: str, args: list[Any]) -> Any:
    if kind == "prim::Constant":
        return None if node.mustBeNone() else node.output().toIValue()
    if kind == "prim::GetAttr":
        return getattr(args[0], node.s("name"))
    if kind in _SIZES:
        return _SIZES[kind](*args)
    on_tensors = any(isinstance(a, torch.Tensor) for a in args) and not isinstance(args[0], list | tuple | dict)
    if kind in _PRIMITIVES and (not on_tensors or kind.startswith("prim::") or kind in _OF_OBJECTS):
        return _PRIMITIVES[kind](*args)
    namespace, _, name = kind.partition("::")
    packet = getattr(getattr(torch.ops, namespace, None), name, None)
    if packet is not None:
        overload = getattr(packet, node.schema().split("(")[0].partition(".")[2] or "default", None)
        if overload is not None:
            return _call(overload, args)
    if kind in _PRIMITIVES:
        return _PRIMITIVES[kind](*args)
    raise CaptureError(
        f"The model holds TorchScript code that uses {kind}, which cannot be captured.\n"
        f"  at: {node.sourceRange().strip()}\n"
        "Build the model without torch.jit.script, or report this operator."
    )


def _call(overload: Any, args: list[Any]) -> Any:
    positional, keyword = [], {}
    for argument, value in zip(overload._schema.arguments, args, strict=True):
        if argument.kwarg_only:
            keyword[argument.name] = value
        else:
            positional.append(value)
    return overload(*positional, **keyword)
