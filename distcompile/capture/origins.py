"""The results of a call that carry gradients, and the tensors that these lead to: as in the stock model.

    energy = model(...)                          carries, to the parameters that require gradients
    forces = -grad(energy, positions)            does not, without create_graph=True
    charges = layers(...).detach()               does not

A graph of operators computes forces as it computes anything else, and would carry gradients through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from ..ir import Origins
from ..runtime.operators.halo import stop_gradient


def origins(module: fx.GraphModule, inputs: Sequence[Tensor], results: Sequence[Any]) -> tuple[Origins | None, ...]:
    """The origins of each result; None for a result without a gradient though the tensors that it is made of have one.

    Args:
        module: a traced call.
        inputs: the inputs that it was traced with.
        results: the results of the call, before it was a graph.
    """
    sources: list[int | nn.Parameter] = []
    reached: dict[fx.Node, int] = {}  # a bit for each source
    *nodes, output = module.graph.nodes
    places = iter(range(len(inputs)))
    for node in nodes:
        value = getattr(module, str(node.target)) if node.op == "get_attr" else None
        if node.op == "placeholder" or isinstance(value, nn.Parameter):
            reached[node] = 1 << len(sources)
            sources.append(next(places) if value is None else value)
            continue
        reached[node] = 0
        if node.target is not stop_gradient and _may_carry(node.meta.get("val")):
            for operand in node.all_input_nodes:
                reached[node] |= reached[operand]
    required = sum(
        1 << i for i, s in enumerate(sources) if (s if isinstance(s, nn.Parameter) else inputs[s]).requires_grad
    )
    found: list[Origins | None] = []
    for node, result in zip(output.args[0], results, strict=False):
        bits = reached.get(node, 0)
        if bits & required and not getattr(result, "requires_grad", False):
            found.append(None)
            continue
        of = [s for i, s in enumerate(sources) if bits >> i & 1]
        leaves = frozenset(s for s in of if isinstance(s, int))
        found.append(Origins(leaves, tuple(s for s in of if isinstance(s, nn.Parameter))))
    return tuple(found)


def _may_carry(value: Any) -> bool:
    """True if a value, or one of several, is of a type that has gradients."""
    values = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(v, Tensor) and (v.is_floating_point() or v.is_complex()) for v in values)
