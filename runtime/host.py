"""Calls of a model's own Python functions that leave torch (NumPy, Python loops): run as they are, on the whole graph.

Such functions build indices: neighbour pairs, triplets, orderings. They belong to the index program, which runs once
per graph object before the ranks part, so any Python is allowed in them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from ..sizes import SMALLEST_SPACE


@dataclasses.dataclass(frozen=True)
class HostCall:
    """A function with everything but its tensors and sizes filled in."""

    function: Callable[..., Any]
    arguments: Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]
    """From tensors and sizes to the positional and keyword arguments."""

    def __call__(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> tuple[list[Tensor], list[Any], Any]:
        """The result: its tensors, its flat values with None in place of tensors and 0 of integers, its structure."""
        args, kwargs = self.arguments([*tensors, *sizes])
        flat, spec = pytree.tree_flatten(self.function(*args, **kwargs))
        for value in flat:
            if not isinstance(value, Tensor | int | float | str | None):
                raise CaptureError(
                    f"{self.function.__qualname__} leaves torch and returns a {type(value).__name__}. "
                    "Let it return tensors, so that it can run as one step in front of the compiled program."
                )
        kept = [None if isinstance(v, Tensor) else 0 if type(v) is int else v for v in flat]
        tensors_out = [v.clone() if isinstance(v, Tensor) else torch.tensor(v) for v in flat if _is_number(v)]
        return tensors_out, kept, spec


def _is_number(value: Any) -> bool:
    """Whether a result depends on the graph: a tensor or an integer."""
    return isinstance(value, Tensor) or type(value) is int


_CALLS: dict[str, HostCall] = {}
_numbered = itertools.count()


def register(call: HostCall) -> str:
    """Keep a call for the programs that contain it; return its key."""
    key = f"{call.function.__qualname__}/{next(_numbered)}"
    _CALLS[key] = call
    return key


@torch.library.custom_op("distcompile::host", mutates_args=())
def _host(tensors: Sequence[Tensor], sizes: Sequence[int], key: str) -> list[Tensor]:
    """The tensors (and integers, as tensors) that a registered call returns."""
    with torch.no_grad():
        return _CALLS[key](tensors, sizes)[0]


@_host.register_fake
def _(tensors: Sequence[Tensor], sizes: Sequence[Any], key: str) -> list[Tensor]:
    results, _, _ = on_example(_CALLS[key], tensors, sizes)
    context = torch.library.get_ctx()
    shapes = [[context.new_dynamic_size() if n >= SMALLEST_SPACE else n for n in r.shape] for r in results]
    return [torch.empty(shape, dtype=r.dtype, device=r.device) for shape, r in zip(shapes, results, strict=True)]


host = torch.ops.distcompile.host.default


def on_example(call: HostCall, tensors: Sequence[Tensor], sizes: Sequence[Any]) -> tuple[list[Tensor], list[Any], Any]:
    """Run a call on the example's values, which the tracer keeps beside fake tensors."""
    values = [t.real_tensor if isinstance(t, FakeTensor) else t for t in tensors]
    if any(v is None for v in values):
        raise CaptureError(
            f"{call.function.__qualname__} leaves torch (NumPy or Python values) and depends on features computed by "
            "the model. Compute them with torch operators."
        )
    hints = [int(s.node.hint) if isinstance(s, torch.SymInt) else int(s) for s in sizes]
    with _outside_of_tracing():
        return call([v.detach() for v in values if v is not None], hints)


@contextmanager
def _outside_of_tracing() -> Iterator[None]:
    with torch._C.DisableTorchFunction(), unset_fake_temporarily(), disable_proxy_modes_tracing(), torch.no_grad():
        yield
