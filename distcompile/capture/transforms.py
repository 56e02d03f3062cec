"""Transformed functions (``torch.func``) whose batches have a fixed length, written out, for the time of a capture.

    vmap(f)(stack([a, b]))             =>  stack([f(a), f(b)])
    jvp(f, x, v)                       =>  the gradient of u -> <u, J> by u, in the direction of v
    autograd.grad(y, x, batch of gradients, is_grads_batched=True)   =>  one gradient after the other, stacked

torch's rules for batched and for dual tensors ask sizes for plain numbers, which would bake the example's rows in. A
batch of rows stays one: what is done to each row by itself, torch's rules follow well. Where each entry of such a batch
is made of all rows (the Hessian of an energy) they do not; its lines are noted for whoever finds rows baked in.

Source: jvp by two vjp, J. Townsend, "A new trick for calculating Jacobian vector products", 2017.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch._functorch.eager_transforms as eager_transforms
import torch._functorch.vmap as functorch_vmap
from torch import Tensor, _vmap_internals
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.utils import _pytree as pytree

from ..ir.user_code import OURS
from .threads import replaced

MOST = 64
"""Longer batches are left to torch, since each entry is captured by itself."""


class Written:
    """The functions that a capture writes out."""

    def __init__(self) -> None:
        self.keeps_graph = False
        """True while several gradients are taken of one graph, which must stay until the last."""
        self.over_rows: dict[str, None] = {}
        """Lines that map a function over rows."""

    @contextmanager
    def out(self) -> Iterator[None]:
        """Write transformed functions out in this thread."""
        with ExitStack() as stack:
            stack.enter_context(replaced(functorch_vmap, "_flat_vmap", self._flat_vmap(functorch_vmap._flat_vmap)))
            stack.enter_context(replaced(_vmap_internals, "_vmap", self._gradients(_vmap_internals._vmap)))
            stack.enter_context(replaced(eager_transforms, "_jvp_with_argnums", _jvp))
            yield

    def _gradients(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        """The replacement of the function by which ``autograd.grad`` maps over a batch of gradients."""

        def mapped(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
            def each(*batches: Any) -> Any:
                length: Any = next(x.shape[0] for x in pytree.tree_leaves(batches) if isinstance(x, Tensor))
                if not _is_fixed(length):
                    return stock(func, *args, **kwargs)(*batches)
                before, self.keeps_graph = self.keeps_graph, True
                try:
                    results = [func(*_entry(batches, i)) for i in range(length)]
                finally:
                    self.keeps_graph = before
                return _stacked(results, [0] * len(pytree.tree_leaves(results[0], is_leaf=lambda x: x is None)))

            return each

        return mapped

    def _flat_vmap(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(stock)
        def flat_vmap(func: Any, batch_size: Any, in_dims: Any, args: Any, spec: Any, out_dims: Any, *more: Any) -> Any:
            if not _is_fixed(batch_size):
                self.over_rows[_line()] = None
                return stock(func, batch_size, in_dims, args, spec, out_dims, *more)
            results = []
            for i in range(batch_size):
                given = [x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True)]
                results.append(func(*pytree.tree_unflatten(given, spec)))
            dims = pytree._broadcast_to_and_flatten(out_dims, pytree.tree_structure(results[0]))
            return _stacked(results, dims or [0])

        return flat_vmap


def _line() -> str:
    """The line of a model that called a transform."""
    theirs = [f for f in traceback.extract_stack() if not f.filename.startswith(OURS)]
    return f"{theirs[-1].filename}:{theirs[-1].lineno}" if theirs else "a line that is not known"


def _is_fixed(length: Any) -> bool:
    """True if a batch is written out: it has a fixed length, and is not within a batch of rows."""
    stack = get_interpreter_stack() or []
    return type(length) is int and 0 < length <= MOST and not any(s.key() == TransformType.Vmap for s in stack)


def _entry(batches: Any, i: int) -> Any:
    return pytree.tree_map_only(Tensor, lambda x: x[i], batches)


def _stacked(results: list[Any], dims: list[Any]) -> Any:
    """Results of all entries of a batch as one.

    None stays None, and a result that is the same for all (`dims`) comes once.
    """
    spec = pytree.tree_structure(results[0], is_leaf=lambda x: x is None)
    columns = zip(*(pytree.tree_leaves(r, is_leaf=lambda x: x is None) for r in results), strict=True)
    stacked = [
        c[0] if c[0] is None or dim is None else torch.stack(c, dim) for c, dim in zip(columns, dims, strict=True)
    ]
    return pytree.tree_unflatten(stacked, spec)


def _jvp(
    func: Callable[..., Any], primals: Any, tangents: Any, argnums: Any, *, strict: bool = False, has_aux: bool
) -> Any:
    """The derivative in a direction: the gradient is linear in its weights, and is differentiated by these."""
    chosen = primals if argnums is None else eager_transforms._slice_argnums(primals, argnums)
    directions = tangents if argnums is None or isinstance(tangents, tuple) else (tangents,)
    chosen = chosen if isinstance(chosen, tuple) else (chosen,)
    auxiliary: list[Any] = []

    def of_chosen(*given: Any) -> Any:
        every = given if argnums is None else eager_transforms._replace_args(primals, given, argnums)
        result = func(*every)
        if has_aux:
            result, other = result
            auxiliary.append(other)
        return result

    value, pulled = torch.func.vjp(of_chosen, *chosen)[:2]
    weights = pytree.tree_map(torch.zeros_like, value)
    pushed = torch.func.vjp(pulled, weights)[1]
    (tangent,) = pushed(directions)
    return (value, tangent, auxiliary[-1]) if has_aux else (value, tangent)
