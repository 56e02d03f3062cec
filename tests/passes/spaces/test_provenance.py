"""The elements of a graph's integers that a computed pointer holds, by a code for each."""

from __future__ import annotations

import pytest
import torch
from printed import programs
from torch import Tensor

from distcompile.passes.spaces.provenance import Elements

P, Q = torch.tensor([3, 0, 1, 2]), torch.tensor([0, 1, 2, 3])


def turned(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Pointers that are joined, one of them turned round."""
    both, back = torch.cat([p, q.flip(0)]), torch.cat([q, p])
    return torch.zeros_like(x).index_add(0, both, x[back].exp())


def counted(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """A pointer that is computed: the next atom."""
    return torch.zeros_like(x).index_add(0, q, x[(p + 1) % x.shape[0]].exp())


def elements(model: object) -> list[list[int] | None]:
    """The codes in each output of the index program, for other pointers than the example's."""
    program = programs(model)["hoist"]  # type: ignore[arg-type]
    codes = Elements(program, [torch.zeros(4, 3), P, Q])
    (output,) = [node for node in program.index_program.graph.nodes if node.op == "output"]
    return [None if (c := codes.of(i)) is None else c.tolist() for i in range(len(output.args[0]))]


def test_what_moves_integers_is_followed() -> None:
    """p has the codes 1 to 4, q 5 to 8: joined, and one of them turned round."""
    found = elements(turned)
    assert [1, 2, 3, 4, 8, 7, 6, 5] in found
    assert [5, 6, 7, 8, 1, 2, 3, 4] in found


def test_what_computes_integers_is_not() -> None:
    """Of a sum nobody knows which elements it holds."""
    found = elements(counted)
    assert None in found
    assert [5, 6, 7, 8] in found


@pytest.mark.parametrize("model", [turned, counted])
def test_codes_do_not_depend_on_values(model: object) -> None:
    assert elements(model) == elements(model)
