"""Fake tensors that carry the example's values, and its sizes as symbols."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.source import ConstantSource
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext
from torch.utils import _pytree as pytree

from ..ir.graphs import writes
from ..ir.sizes import SMALLEST_SPACE
from ..torch_versions import COUNTS_LIKE_WHAT_IS_COUNTED, type_of_counts

_COUNT, _CONVERT = torch.ops.aten.bincount.default, torch.ops.aten._to_copy.default


class Fakes(FakeTensorMode):
    """Answers data-dependent questions with the example's values, and uses them for nothing else.

    At first only integers and narrow values (positions, distances) keep real values. Most data-dependent questions are
    about these, and the features of a large example would fill the memory. A call that asks for values of features is
    traced again with all values.
    """

    widest = sys.maxsize
    """Real values of more elements than this are dropped, unless they are integers."""

    _changing = False
    """True within an operator that changes an operand: its inner steps must not change the real value again."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._parameters: dict[nn.Parameter, Tensor] = {}

    def _with_values(self, parameter: nn.Parameter) -> Tensor:
        """A parameter with its values. Torch drops them, and makes results up from memory that it never wrote."""
        if isinstance(parameter, FakeTensor):  # it belongs to a module that is built within the call
            return parameter
        if parameter not in self._parameters:
            self._parameters[parameter] = self.from_tensor(parameter.detach(), static_shapes=True)
        return self._parameters[parameter]

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.propagate_real_tensors and _has_parameter(args, kwargs or {}):
            args, kwargs = pytree.tree_map_only(nn.Parameter, self._with_values, (args, kwargs))
        if self._changing:
            propagates, self.propagate_real_tensors = self.propagate_real_tensors, False
            try:
                return super().dispatch(func, types, args, kwargs or {})
            finally:
                self.propagate_real_tensors = propagates
        self._changing = writes(func)
        try:
            result = super().dispatch(func, types, args, kwargs or {})
        finally:
            self._changing = False
        if func is _COUNT and COUNTS_LIKE_WHAT_IS_COUNTED:
            result = self.dispatch(_CONVERT, types, (result,), {"dtype": type_of_counts(*args[1:2])})
        if self.propagate_real_tensors:
            # A result of a dropped value has no real value either; torch would make one up from empty tensors.
            lost = any(_is_lost(a) for arg in args for a in (arg if isinstance(arg, list | tuple) else [arg]))
            for value in result if isinstance(result, list | tuple) else (result,):
                real = getattr(value, "real_tensor", None)
                if real is not None and (lost or (real.numel() > self.widest and real.dtype.is_floating_point)):
                    value.real_tensor = None
        return result

    def forget(self, graph: fx.Graph) -> None:
        """Follow only shapes from now on, and free the example's values."""
        self.propagate_real_tensors = False
        for node in graph.nodes:
            values = node.meta.get("val")
            for value in values if isinstance(values, list | tuple) else [values]:
                if isinstance(value, FakeTensor):
                    value.real_tensor = None

    # The base class would also compare strides and offsets of fake and real tensors at each operator, and that
    # comparison writes the example's sizes into the symbols.
    def _maybe_infer_fake_kernel_from_pytree_out(
        self, func: Any, fake_in: Any, real_in: Any, fake_out: Any, real_out: Any
    ) -> Any:
        return fake_out


def fake(mode: FakeTensorMode, tensor: Tensor, index: int) -> Tensor:
    """A tensor of the example with a symbol for each size that may vary."""
    dynamic = [DimDynamic.DYNAMIC if n >= SMALLEST_SPACE else DimDynamic.STATIC for n in tensor.shape]
    context: Any = StatelessSymbolicContext(dynamic_sizes=dynamic, constraint_sizes=[None] * tensor.dim())
    # Contiguous and alone in its storage, so that strides and offsets bring no symbols of their own.
    plain = tensor.detach().clone(memory_format=torch.contiguous_format).requires_grad_(tensor.requires_grad)
    fake = mode.from_tensor(plain, symbolic_context=context, source=ConstantSource(f"leaf{index}"))
    fake.item_memo = None  # a symbol for a scalar's value would not come from an operator of the graph
    return fake


def _has_parameter(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """True if an operator is given a parameter. Most are not, and taking arguments apart costs a tenth of a capture."""
    given = (one for a in (*args, *kwargs.values()) for one in (a if isinstance(a, list | tuple) else (a,)))
    return any(isinstance(one, nn.Parameter) for one in given if isinstance(one, Tensor))


def _is_lost(value: Any) -> bool:
    return isinstance(value, FakeTensor) and value.real_tensor is None
