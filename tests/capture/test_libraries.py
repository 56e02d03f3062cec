"""Operators of other libraries: sparse matrices, and the compiled operators of ``torch_scatter``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adversaries import F, Toy, add_to
from torch import Tensor
from toys import Graph, random_graph
from undividable import Given, Update

import distcompile
from distcompile import CaptureError, LocalWorld
from distcompile.testing import check_model

EXAMPLE, *OTHERS = (random_graph(n, seed) for n, seed in ((10, 0), (17, 1), (24, 3)))

LIBRARY = torch.library.Library("torch_scatter", "FRAGMENT")
"""Stands in for the library, whose operators have no shapes for tracers either."""


def _index(index: Tensor, like: Tensor) -> Tensor:
    return index.reshape(*index.shape, *[1] * (like.dim() - index.dim())).expand_as(like)


def _sum(src: Tensor, index: Tensor, out: Tensor | None, dim_size: int | None) -> Tensor:
    return src.new_zeros(dim_size or 0, *src.shape[1:]).scatter_add(0, _index(index, src), src)


def _sum_by_offsets(src: Tensor, offsets: Tensor, out: Tensor | None) -> Tensor:
    return _sum(src, torch.repeat_interleave(offsets.diff()), None, len(offsets) - 1)


def _largest(src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None) -> tuple[Tensor, Tensor]:
    table = src.new_zeros(dim_size or 0, *src.shape[1:])
    found = table.scatter_reduce(dim, index, src, "amax", include_self=False)
    return found, torch.zeros_like(found, dtype=torch.int64)


def _taken(src: Tensor, index: Tensor, out: Tensor | None) -> Tensor:
    return src.index_select(0, index)


for _schema, _implementation in (
    ("segment_sum_coo(Tensor src, Tensor index, Tensor? out, int? dim_size) -> Tensor", _sum),
    ("segment_sum_csr(Tensor src, Tensor indptr, Tensor? out) -> Tensor", _sum_by_offsets),
    ("scatter_max(Tensor src, Tensor index, int dim, Tensor? out, int? dim_size) -> (Tensor, Tensor)", _largest),
    ("gather_coo(Tensor src, Tensor index, Tensor? out) -> Tensor", _taken),
):
    LIBRARY.define(_schema)
    LIBRARY.impl(_schema.partition("(")[0], _implementation, "CPU")
    LIBRARY.impl(_schema.partition("(")[0], _implementation, "AutogradCPU")
LIBRARY.define("of_nothing_known(Tensor src) -> Tensor")
LIBRARY.impl("of_nothing_known", lambda src: src.clone(), "CPU")
operators: Any = torch.ops.torch_scatter


def sorted_edges(graph: Graph) -> tuple[Tensor, Tensor]:
    """Receivers in ascending order, and the order."""
    order = graph["edge_index"][1].argsort(stable=True)
    return graph["edge_index"][1][order], order


def segments(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    receiver, order = sorted_edges(graph)
    return h + operators.segment_sum_coo(w[order], receiver, None, h.shape[0])


def segments_by_offsets(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    receiver, order = sorted_edges(graph)
    counts = torch.bincount(receiver, minlength=h.shape[0])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return h + operators.segment_sum_csr(w[order], offsets, None)


def softmax(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """Over the edges of each receiver, as the library composes it."""
    receiver = graph["edge_index"][1]
    each = receiver[:, None].expand_as(w)
    largest = operators.scatter_max(w, each, 0, None, h.shape[0])[0].detach()
    weights = torch.exp(w - operators.gather_coo(largest, receiver, None))
    return h + add_to(weights / add_to(weights, receiver, h)[receiver] * w, receiver, h)


def constant_matrix(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    where, values = torch.tensor([[0, 1, 2, 2], [3, 4, 5, 5]]), torch.tensor([1.0, 2.0, 3.0, 0.5], dtype=h.dtype)
    return h + torch.sparse.mm(torch.sparse_coo_tensor(where, values, (F, F)), h.T).T


def matrix_of_edges(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    size = (h.shape[0], h.shape[0])
    matrix = torch.sparse_coo_tensor(graph["edge_index"].flip(0), torch.exp(-lengths), size).coalesce()
    return h + matrix @ torch.tanh(matrix.t() @ h) + torch.sparse.mm(matrix, h)


def learned_matrix(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    where = torch.tensor([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
    return torch.sparse.mm(torch.sparse_coo_tensor(where, model.mix.weight[0], (F, F)), h.T).T


MATRIX = torch.sparse_coo_tensor(torch.tensor([[0, 3], [1, 2]]), torch.tensor([2.0, -1.0], dtype=torch.float64), (F, F))
BY_ROWS = MATRIX.to_sparse_csr()
USES: dict[str, Update] = {
    "segments": segments,
    "segments by offsets": segments_by_offsets,
    "a softmax": softmax,
    "a constant matrix": constant_matrix,
    "a matrix of edges": matrix_of_edges,
    "a learned matrix": learned_matrix,
    "a matrix that is kept": lambda m, g, h, w, r: h + (MATRIX @ h.T).T,
    "a matrix by rows that is kept": lambda m, g, h, w, r: h + torch.sparse.mm(BY_ROWS, h.T).T,
}


@pytest.mark.filterwarnings("ignore:.*Sparse CSR")
@pytest.mark.parametrize("name", USES)
def test_they_are_divided(name: str) -> None:
    report = check_model(Given(USES[name]).eval(), EXAMPLE, OTHERS, ranks=(1, 2, 3), relative=1e-12)
    assert report.captures == 1


@pytest.mark.parametrize("name", ["segments", "a softmax", "a learned matrix"])
def test_gradients_of_weights(name: str) -> None:
    model = Given(USES[name]).train()
    compiled = distcompile.compile(model, EXAMPLE, world=LocalWorld(2))
    loss = [(m(OTHERS[0])["forces"] ** 2).sum() for m in (compiled, model)]
    ours, stock = (torch.autograd.grad(one, list(model.parameters()), allow_unused=True) for one in loss)
    for a, b in zip(ours, stock, strict=True):
        assert (a is None) == (b is None) or float((a if b is None else b).abs().max()) == 0  # type: ignore[union-attr]
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*run on all rows")
def test_an_operator_of_which_nothing_is_known_runs_whole() -> None:
    """What shapes it has is seen on the example; no rule divides it."""
    model = Given(lambda m, g, h, w, r: h + operators.of_nothing_known(h.detach())).eval()
    report = check_model(model, EXAMPLE, OTHERS, ranks=(1, 2, 3))
    assert report.captures == 1


def test_what_a_sparse_tensor_cannot_is_named() -> None:
    model = Given(lambda m, g, h, w, r: h * torch.sparse.sum(torch.sparse_coo_tensor(
        g["edge_index"], r, (h.shape[0], h.shape[0])))).eval()  # fmt: skip
    with pytest.raises(CaptureError, match="sum on a sparse tensor"):
        distcompile.compile(model, EXAMPLE, validate=False)
