"""Products with nearly empty constants: the same numbers from the entries alone, and only where that is allowed."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import Any
from unittest import mock

import pytest
import torch
from adversaries import Toy, add_to
from torch import Tensor, nn
from toys import Graph, random_graph

import distcompile
from distcompile import LocalWorld, testing
from distcompile.runtime.operators.sparse import sparse_mm
from distcompile.testing import check_model

aten = torch.ops.aten
needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="no library for sparse products")


def nearly_empty(rows: int, columns: int, entries: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """A table with entries at random places, its first row and last column empty."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.zeros(rows * columns, dtype=dtype)
    places = torch.randperm(rows * columns, generator=generator)[:entries]
    table[places] = torch.randn(entries, generator=generator, dtype=dtype)
    table = table.reshape(rows, columns)
    table[0], table[:, -1] = 0, 0
    return table


def product(x: Tensor, table: Tensor) -> Tensor:
    """``x @ table`` from the entries of the table."""
    sparse = table.to_sparse_csr()
    result: Tensor = sparse_mm(x, sparse.crow_indices(), sparse.col_indices(), sparse.values(), table.shape[1])
    return result


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.T.contiguous().T,
    "every other column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "one row for all": lambda x: x[:1].expand_as(x),
    "no rows": lambda x: x[:0],
    "one row": lambda x: x[:1],
}


@pytest.mark.parametrize("entries", [0, 1, 40])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_product_is_that_of_the_dense_table(dtype: torch.dtype, layout: str, entries: int) -> None:
    """Whatever the strides of the rows, for tables without any entry, and for no rows at all."""
    table = nearly_empty(20, 30, entries, dtype)
    x = LAYOUTS[layout](torch.randn(7, 20, dtype=dtype, generator=torch.Generator().manual_seed(1)))
    found = product(x, table)
    torch.testing.assert_close(found, x @ table)
    assert found.dtype == dtype
    assert found.is_contiguous(), "as is promised to code generators"


def test_the_product_is_differentiable_twice() -> None:
    """Gradients to the rows, and gradients of gradients."""
    table = nearly_empty(6, 9, 12)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: product(v, table), (x,))
    assert torch.autograd.gradgradcheck(lambda v: product(v, table).sin(), (x,))
    (gradient,) = torch.autograd.grad(product(x, table).sin().sum(), x)
    assert torch.allclose(gradient, (x @ table).cos() @ table.T, rtol=1e-12)


def test_the_operator_is_sound() -> None:
    """What is said of its shapes, strides and gradients holds, also where sizes are symbols."""
    sparse = nearly_empty(20, 30, 40).to_sparse_csr()
    entries = [t.clone() for t in (sparse.crow_indices(), sparse.col_indices(), sparse.values())]
    for rows in (1, 5):
        x = torch.randn(rows, 20, dtype=torch.float64, requires_grad=True)
        torch.library.opcheck(sparse_mm, (x, *entries, 30))


class Coupled(Toy):
    """Messages go through a table of couplings. Shape: [128, 256]."""

    def __init__(self, table: Tensor, kind: str = "buffer") -> None:
        super().__init__()
        if kind == "parameter":
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table)

    def more(self) -> None:
        self.widen, self.narrow = nn.Linear(6, 128, bias=False), nn.Linear(256, 6, bias=False)

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        coupled = self.widen(w * h[sender]).sin() @ self.coupling()
        return torch.tanh(self.mix(h + add_to(self.narrow(coupled.tanh()), receiver, h)))

    def coupling(self) -> Tensor:
        """The table as it is multiplied with. Shape: [128, 256]."""
        return self.table


class Derived(Coupled):
    """The table is put together from a buffer each time."""

    def coupling(self) -> Tensor:
        return torch.cat([self.table, 0.5 * self.table], 1)[:, :256].reshape(256, 128).T


class Weighted(Coupled):
    """The table is a buffer times weights, which change as the model is trained."""

    def coupling(self) -> Tensor:
        return self.table * self.widen.weight[:, :1]


def compiled(model: nn.Module, seed: int = 1) -> distcompile.DistributedModel:
    """A model compiled on one rank."""
    return distcompile.compile(model, random_graph(14, seed), world=LocalWorld(1), validate=False)


def products(model: distcompile.DistributedModel) -> Counter[Any]:
    """How often each operator occurs in a program."""
    return Counter(n.target for n in model.program.graph.graph.nodes if n.op == "call_function")


@needs_mkl
@pytest.mark.parametrize("kind", [Coupled, Derived])
def test_a_nearly_empty_buffer_is_multiplied_by_its_entries(kind: type[Coupled]) -> None:
    """Once forward, once for the gradient, and right on 1, 2 and 3 ranks; also on graphs without edges."""
    model = kind(nearly_empty(128, 256, 300)).eval()
    program = compiled(model)
    dense = compiled(Weighted(nearly_empty(128, 256, 300)).eval())
    assert products(program)[sparse_mm] == 2
    assert products(dense)[aten.mm.default] == products(program)[aten.mm.default] + 2
    with mock.patch.object(testing, "compile", return_value=program):
        check_model(model, random_graph(14, 1), [random_graph(24, 2), random_graph(5, 3, volume=1e6)], relative=1e-12)


TABLE = nearly_empty(128, 256, 300)
DENSE = {
    "a full table": lambda: Coupled(torch.randn(128, 256, dtype=torch.float64)),
    "weights": lambda: Coupled(TABLE.clone(), "parameter"),
    "a table times weights": lambda: Weighted(TABLE.clone()),
    "half precision": lambda: HalfPrecision(TABLE.clone()),
}


class HalfPrecision(Coupled):
    """The product in a precision for which there is no sparse one."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        coupled = (self.widen(w * h[sender]).bfloat16() @ self.table.bfloat16()).to(h.dtype)
        return torch.tanh(self.mix(h + add_to(self.narrow(coupled), receiver, h)))


@pytest.mark.parametrize("name", DENSE)
def test_other_tables_are_multiplied_whole(name: str) -> None:
    """Full ones, weights, what depends on weights, and precisions that sparse products do not have."""
    torch.manual_seed(0)
    model = DENSE[name]().eval()
    program = compiled(model)
    assert products(program)[sparse_mm] == 0
    graph = random_graph(20, 2)
    torch.testing.assert_close(program(graph)["energy"], model(graph)["energy"].detach())


@needs_mkl
def test_small_tables_are_multiplied_whole() -> None:
    """Below the size from which it pays."""

    class Small(Coupled):
        def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
            sender, receiver = graph["edge_index"]
            coupled = self.widen(w * h[sender]).sin() @ self.table[:, :100]
            return torch.tanh(self.mix(h + add_to(coupled[:, :6] + coupled[:, 94:], receiver, h)))

    assert products(compiled(Small(nearly_empty(128, 256, 300)).eval()))[sparse_mm] == 0


@needs_mkl
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_training_goes_through_sparse_products(ranks: int) -> None:
    """Gradients of a loss on energy and forces to all weights: of the forces these are second derivatives."""
    model = Coupled(nearly_empty(128, 256, 300)).train()
    program = compiled(model).on(LocalWorld(ranks))
    assert products(program)[sparse_mm] >= 2
    graph = random_graph(18, 2)
    parameters = list(model.parameters())

    def gradients(call: Any) -> tuple[Tensor, ...]:
        result = call(graph)
        loss = result["energy"] ** 2 + (result["forces"] ** 2 * torch.linspace(0.5, 1, 3)).sum()
        return torch.autograd.grad(loss, parameters)

    for found, stock in zip(gradients(program), gradients(model), strict=True):
        assert stock.abs().max() > 1e-6
        torch.testing.assert_close(found, stock, rtol=1e-9, atol=1e-11 * float(stock.abs().max()))


@needs_mkl
@pytest.mark.parametrize("kind", [Coupled, Derived])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_buffer_that_changes_is_read_again(kind: type[Coupled], ranks: int) -> None:
    """Loaded weights and changes in place count at the next call, as they do for dense tables; nothing else does."""
    model, graph = kind(nearly_empty(128, 256, 300)).eval(), random_graph(18, 2)
    program = compiled(model).on(LocalWorld(ranks))

    def same() -> bool:
        found, stock = program(graph), model(graph)
        return all(torch.allclose(found[k], stock[k], rtol=1e-10, atol=1e-12) for k in found)

    before = program(graph)["energy"]
    assert same()
    assert program.captures == 1
    model.load_state_dict({**model.state_dict(), "table": 3 * nearly_empty(128, 256, 300, seed=5)})
    assert same()
    assert abs(program(graph)["energy"] - before) > 1e-3
    assert program.captures == 2
    assert products(program)[sparse_mm] == 2
    model.table.copy_(torch.randn(128, 256, dtype=torch.float64))
    assert same()
    assert products(program)[sparse_mm] == 0, "it is full now"
    assert program.captures == 3


class OnlyForward(nn.Module):
    """One product and a sum at the receiver: little code to generate."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", nearly_empty(128, 256, 300))

    def forward(self, graph: Graph) -> Tensor:
        sender, receiver = graph["edge_index"]
        wide = graph["positions"].sin().repeat(1, 43)[:, :128]
        return add_to((wide[sender] @ self.table).tanh(), receiver, wide)


@needs_mkl
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_sparse_products_in_generated_code() -> None:
    """Around an operator that has no code of its own, code is generated as ever; graphs without edges too."""
    model = OnlyForward().eval()
    program = distcompile.compile(model, random_graph(14, 1), lowering="inductor", validate=False)
    assert products(program)[sparse_mm] == 1
    for graph in (random_graph(18, 2), random_graph(5, 3, volume=1e6)):
        for ranks in (1, 2):
            torch.testing.assert_close(program.on(LocalWorld(ranks))(graph), model(graph), rtol=1e-10, atol=1e-12)
