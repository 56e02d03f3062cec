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

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.utils import _pytree as pytree

from ...errors import CaptureError
from ...ir.operators import Facts
from ...ir.operators import register as register_facts
from ...ir.sizes import SMALLEST_SPACE


@dataclasses.dataclass(frozen=True)
class HostCall:
    """A function with everything but its tensors and sizes filled in."""

    function: Callable[..., Any]
    arguments: Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]
    """Makes the positional and keyword arguments from tensors and sizes."""

    def __call__(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> tuple[list[Tensor], list[Any], Any]:
        """The result: its tensors and numbers, its flat values with `Tensor` in place of tensors, its structure."""
        args, kwargs = self.arguments([*tensors, *sizes])
        flat, spec = pytree.tree_flatten(self.function(*args, **kwargs))
        flat = [v.item() if isinstance(v, np.number) else v for v in flat]
        for value in flat:
            if not isinstance(value, Tensor | int | float | str | None):
                raise CaptureError(
                    f"{self.function.__qualname__} leaves torch and returns a {type(value).__name__}. "
                    "Let it return tensors, so that it can run as one step in front of the compiled program."
                )
        tensors_out = [v.clone() if isinstance(v, Tensor) else _as_tensor(v) for v in flat if is_result(v)]
        return tensors_out, [Tensor if isinstance(v, Tensor) else v for v in flat], spec


def is_result(value: Any) -> bool:
    """True if a value that a function returns depends on the graph: a tensor or a number."""
    return isinstance(value, Tensor) or type(value) in (int, float)


def _as_tensor(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.int64 if isinstance(number, int) else torch.float64)


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
register_facts(host, Facts(data_dependent=True))


def on_example(call: HostCall, tensors: Sequence[Tensor], sizes: Sequence[Any]) -> tuple[list[Tensor], list[Any], Any]:
    """Run a call on the example's values, which the tracer keeps beside fake tensors."""
    values = [t.real_tensor if isinstance(t, FakeTensor) else t for t in tensors]
    if any(v is None for v in values):
        raise CaptureError(
            f"{call.function.__qualname__} leaves torch (NumPy or Python values) and depends on features computed by "
            "the model. Compute them with torch operators."
        )
    hints = [int(s.node.hint) if isinstance(s, torch.SymInt) else int(s) for s in sizes]
    with outside_of_tracing(), torch.enable_grad():
        given = zip(values, tensors, strict=True)
        found = call([v.detach().requires_grad_(t.requires_grad) for v, t in given if v is not None], hints)
    if any(result.requires_grad for result in found[0]):
        raise CaptureError(
            f"{call.function.__qualname__} leaves torch (NumPy or Python values) and also computes by torch what has a "
            "gradient, which would be lost. Move what leaves torch to a function of its own."
        )
    return found


@contextmanager
def outside_of_tracing() -> Iterator[None]:
    """Compute with values instead of noting operators."""
    with torch._C.DisableTorchFunction(), unset_fake_temporarily(), disable_proxy_modes_tracing(), torch.no_grad():
        yield
