"""Component code for GPUs, without one: compiled by NVRTC, and run by threads of the host that stand for a GPU's.

What operators compute is tested where the same is for processors (`test_operators`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import toys
import zoo
from structures import crystal
from torch import Tensor

import distcompile
from distcompile import LocalWorld
from distcompile.ir import Runnable, copy_tiled, grown
from distcompile.ir.constants import Constants
from distcompile.passes.lower import lower
from distcompile.passes.lower.components.cpp import Program
from distcompile.passes.lower.components.elements import Unsupported
from distcompile.passes.lower.components.gpu import nvrtc
from distcompile.passes.lower.components.gpu.emulated import DivergentThreads, emulated
from distcompile.passes.lower.components.gpu.target import GPU
from distcompile.passes.lower.components.kernel import Body
from distcompile.runtime.execution.tiles import Add, Reduce, Region, Store

from .bodies import Inputs, Rows, Table, Weight, as_program, by_torch, emulation, regions

pytestmark = pytest.mark.skipif(lower.compiler() is None, reason="no C++ compiler")

OPTIONS: dict[str, dict[str, Any]] = {"Eam": {"half": True}, "ThreeBody": {"angles": True}}
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")


def bodies(model: distcompile.DistributedModel) -> dict[str, Body]:
    """The bodies of a model's only program, written for a GPU; all have a form."""
    program = model._executors[0].program
    constants = Constants(program.tiled)
    named = program.tiled.named_children()
    return {name: Body(program, name, constants, GPU) for name, module in named if isinstance(module, Region)}


def on_emulated_gpu(model: distcompile.DistributedModel, descending: bool) -> None:
    """Let a model run its regions on an emulated GPU."""
    (executor,) = model._executors
    module = copy_tiled(executor.program)
    for name, body in bodies(model).items():
        kernel = body.launched(emulated(body.program, descending), "cpu")
        module.add_module(name, getattr(module, name).running(kernel))
    executor.fit = None
    executor.run_as(grown(executor.program, Runnable, tiled=module))


@pytest.mark.parametrize("name", ["Pair", "Gnn", "Eam", "ThreeBody"])
def test_models_whatever_thread_comes_first(name: str) -> None:
    """On two ranks, with threads in ascending and in descending order: what must not depend on it does not."""
    options = OPTIONS.get(name, {})
    stock = getattr(toys, name)().eval()
    model = distcompile.compile(
        stock, toys.random_graph(14, 1, **options), world=LocalWorld(2), lowering="eager", validate=False
    )
    for descending in (False, True):
        on_emulated_gpu(model, descending)
        for size in (23, 1):
            graph = toys.random_graph(size, 2, **options)
            expected, found = stock(graph), model(graph)
            for key in expected:
                torch.testing.assert_close(found[key], expected[key], rtol=1e-12, atol=1e-12)


def messages(t: Any) -> list[Tensor]:
    """What edges send, to be added; its sines; whole numbers to be added, which no kernel adds; sums of all edges."""
    m = (t.x @ t.w) * t.h[t.sender]
    return [t.receiver, m, m.sin(), t.receiver, t.sender, m.sum((0, 1)), t.sender.sum(0)]


RESULTS = (
    Add(0, "sum", by_element=False, reuse=False),
    Store(0, 1),
    Add(0, "sum", by_element=False, reuse=False),
    Reduce("sum"),
    Reduce("sum"),
)


def edges(rows: int, dtype: torch.dtype) -> Inputs:
    """Edges of ten atoms."""
    random, fixed = torch.Generator().manual_seed(rows), torch.Generator().manual_seed(0)
    return {
        "x": Rows(torch.randn(rows, 20, generator=random, dtype=torch.float64).to(dtype)),
        "receiver": Rows(torch.randint(0, 10, (rows,), generator=random)),
        "sender": Rows(torch.randint(-10, 10, (rows,), generator=random)),
        "h": Table(torch.randn(10, 30, generator=fixed, dtype=torch.float64).to(dtype)),
        "w": Weight(torch.randn(20, 30, generator=fixed, dtype=torch.float64).to(dtype)),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_results_of_every_kind(dtype: torch.dtype) -> None:
    """Stored, added, added by torch, summed; all rows at once or some of them first; many rows added to few."""
    plain, region = regions(messages, edges(11, dtype), RESULTS, target=GPU)
    kinds = ["add", "store", "values", "values", "sum", "sum"]
    assert [v.kind for v in region.compiled.values] == kinds  # type: ignore[union-attr]
    for rows, cut in ((1, 0), (37, 20), (3000, 1700)):
        given = [g.tensor for g in edges(rows, dtype).values()]
        tables = [torch.ones(10, 30, dtype=dtype), torch.ones(10, dtype=torch.int64)]
        expected = plain(rows, *given, *tables)
        some = region(rows, *given, *tables, only=(0, cut))
        for found in (region(rows, *given, *tables), region(rows, *given, *tables, only=(cut, rows), so_far=some)):
            for one, other in zip(found, expected, strict=True):
                within = {torch.float64: 1e-11, torch.float32: 1e-4}.get(other.dtype, 0)
                torch.testing.assert_close(one, other, rtol=within, atol=within)


def wide(t: Any) -> list[Tensor]:
    """Each of a few numbers with each: more values at once than there are registers."""
    pairs = [t.x[:, i] * t.x[:, j] for i in range(20) for j in range(i)]
    return [torch.stack([sum((p + k).sin() * (p * k).cos() for p in pairs) for k in range(4)], 1)]


def test_more_values_than_registers_are_several_loops() -> None:
    """Each computes what it needs."""
    given = edges(5, torch.float64)
    _, together = as_program(wide, given, dataclasses.replace(GPU))
    assert together.source.count("LOOP loop") > 1
    found = run(together, given)
    torch.testing.assert_close(found, by_torch(wide, given)[0], rtol=1e-12, atol=1e-11)


def run(program: Program, given: Inputs, descending: bool = False) -> Tensor:
    """The only result of a program for all rows, [n, 4]."""
    tensors = [g.tensor for g in given.values()]
    result = torch.full((len(tensors[0]), 4), torch.nan, dtype=torch.float64)
    dtypes = tuple(t.dtype for t in tensors)
    kernel = emulation(emulated(program, descending), program.scratch, program.lanes, dtypes, (0, 0, 0, 0, None), ())
    words = [0, len(result), *(0 for _ in tensors), *(t.data_ptr() for t in tensors), result.data_ptr(), 0]
    kernel.library(words, 2, result)
    return result


def summed(t: Any) -> list[Tensor]:
    """Sums of what other threads computed."""
    y = (t.x @ t.w).sin()
    return [torch.stack([y.sum(1), (y @ t.w.T).sum(1), y[:, 0], y[:, 29]], 1)]


def test_threads_that_do_not_wait_are_found() -> None:
    """Without the meetings of threads, results are those of what was not there yet; and else they are right."""
    given = edges(9, torch.float64)
    _, program = as_program(summed, given, GPU)
    (expected,) = by_torch(summed, given)
    for descending in (False, True):
        torch.testing.assert_close(run(program, given, descending), expected, rtol=1e-12, atol=1e-12)
    hasty = dataclasses.replace(program, source=program.source.replace("#define MEET __syncthreads();", "#define MEET"))
    assert not torch.allclose(run(hasty, given), expected, equal_nan=True)
    lost = program.source.replace("#define MEET __syncthreads();", "#define MEET ONCE __syncthreads();")
    with pytest.raises(DivergentThreads):
        run(dataclasses.replace(program, source=lost), given)


needs_nvrtc = pytest.mark.skipif(nvrtc.nvrtc() is None, reason="NVRTC is not installed")


@needs_nvrtc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_compiles_for_gpus(architecture: str) -> None:
    """A toy with three-body terms, without spilled registers."""
    options = OPTIONS["ThreeBody"]
    stock, graph = toys.ThreeBody().eval().float(), toys.random_graph(14, 1, **options)
    graph = {k: v.float() if v.is_floating_point() else v for k, v in graph.items()}
    model = distcompile.compile(stock, graph, lowering="eager", validate=False)
    for name, body in bodies(model).items():
        binary = nvrtc.binary(body.program.source, architecture)
        assert binary.code.startswith(b"\x7fELF"), name
        assert 16 <= binary.registers <= 255, name
        assert binary.spilled == 0, name


@needs_nvrtc
def test_mace_compiles_without_spilled_registers() -> None:
    """Its contractions, in double precision, have more values at once than a GPU has registers."""
    pytest.importorskip("mace")
    case = zoo.mace("small")
    model = distcompile.compile(
        case.model.eval(), case.graph(crystal((2, 1, 1))), model_kwargs=case.kwargs, lowering="eager", validate=False
    )
    spilled = {name: nvrtc.binary(b.program.source, "sm_80").spilled for name, b in bodies(model).items()}
    assert len(spilled) > 8
    assert set(spilled.values()) == {0}, spilled


@needs_nvrtc
def test_what_nvrtc_refuses_is_left_to_others() -> None:
    """The reason is its first line."""
    with pytest.raises(Unsupported, match=r"NVRTC: body\.cu"):
        nvrtc.binary("void broken(", "sm_80")


def test_rows_of_a_block_fill_its_memory() -> None:
    """Up to 32 of them; a single one that is larger than shared memory has no form."""
    assert [GPU.lanes({"F": n, "D": 0, "I": 0, "B": 0}, True) for n in (100, 2000, 9000, 30_000)] == [32, 16, 4, 1]
    given: Inputs = {"x": Rows(torch.randn(3, 30_000, dtype=torch.float64))}
    with pytest.raises(Unsupported, match=r"\d+ bytes of memory, more than 163840"):
        as_program(lambda t: [t.x.sin()], given, GPU)
