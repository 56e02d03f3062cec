"""Tables of radial functions: within the error that is allowed, forces that are the energy's gradient, refusals."""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adversaries import F, Toy, add_to
from ase import Atoms
from ase.build import bulk
from ase.io import write
from ase.neighborlist import neighbor_list
from springs import SpringCalculator
from torch import Tensor, nn
from toys import CUTOFF, Graph, gaussians, seeded
from typer.testing import CliRunner

import distcompile
from distcompile import LocalWorld
from distcompile.app import cli
from distcompile.errors import InputError, UnsupportedOp
from distcompile.passes.simplify.radial_tables import Span, span, tabulated
from distcompile.runtime.execution.kernels import Kernel
from distcompile.runtime.execution.tiles import Region
from distcompile.runtime.operators.radial import radial_lookup

aten = torch.ops.aten
LOWERINGS = ["eager", *(["kernels"] if shutil.which("g++") else [])]


class Radial(Toy):
    """Two layers of messages, each with a radial network of 6 - 32 - 32 - 6 functions."""

    def more(self) -> None:
        sizes = ((6, 32), (32, 32), (32, F))
        self.networks = nn.ModuleList(nn.ModuleList(nn.Linear(i, o, bias=False) for i, o in sizes) for _ in range(2))

    def weights(self, layer: int, lengths: Tensor) -> Tensor:
        """The radial functions of a layer. Shape: [n_edges, F]."""
        one, two, three = self.networks[layer]
        hidden = nn.functional.silu(two(nn.functional.silu(one(gaussians(lengths)))))
        result: Tensor = three(hidden)
        return result

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        for layer in range(2):
            h = torch.tanh(self.mix(h + add_to(self.weights(layer, lengths) * h[sender], receiver, h)))
        return h


class WithEnvelope(Radial):
    """The network's functions are multiplied by a cutoff afterwards, which both layers share."""

    def weights(self, layer: int, lengths: Tensor) -> Tensor:
        return super().weights(layer, lengths) * torch.exp(-lengths)[:, None]


class EnergyOnly(Radial):
    """Forces are left to the caller."""

    def forward(self, graph: Graph) -> Any:
        sender, receiver = graph["edge_index"]
        vectors = graph["positions"][sender] + graph["shifts"] @ graph["cell"] - graph["positions"][receiver]
        return {"energy": self.energy(graph, vectors, vectors.norm(dim=-1))[0]}


class BySpecies(Radial):
    """The network is given the sender's species as well."""

    def weights(self, layer: int, lengths: Tensor) -> Tensor:
        one, two, three = self.networks[layer]
        kind = self.embedding.weight[self.senders]
        hidden = nn.functional.silu(two(nn.functional.silu(one(gaussians(lengths) + kind))))
        result: Tensor = three(hidden)
        return result

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        self.senders = graph["species"][graph["edge_index"][0]]
        return super().update(graph, h, w, vectors, lengths)


@functools.cache
def crystal(cells: int, seed: int = 0, scale: float = 1.0) -> Graph:
    """Atoms near the points of a cubic lattice, 1.6 apart, as `toys.random_graph` gives them."""
    random = np.random.default_rng(seed)
    points = np.stack(np.meshgrid(*[np.arange(cells)] * 3, indexing="ij"), -1).reshape(-1, 3)
    side = 1.6 * cells * scale
    positions = 1.6 * scale * points + random.normal(0, 0.05, points.shape)
    atoms = Atoms(f"H{len(points)}", positions=positions, cell=side * np.eye(3), pbc=True)
    receiver, sender, shifts = neighbor_list("ijS", atoms, CUTOFF)
    return {
        "positions": torch.tensor(positions),
        "species": torch.tensor(random.integers(0, 3, len(points))),
        "edge_index": torch.tensor(np.stack([sender, receiver])),
        "shifts": torch.tensor(shifts, dtype=torch.float64),
        "cell": torch.tensor(side * np.eye(3)),
    }


def model_of(kind: type[Toy] = Radial) -> Toy:
    """A model in evaluation mode; its energy varies with distances by much."""
    model = kind().eval()
    model.requires_grad_(False)
    return model


def compiled(model: nn.Module, error: float | None = 1e-6, **options: Any) -> distcompile.DistributedModel:
    options = {"world": LocalWorld(1), "lowering": "eager", **options}
    return distcompile.compile(model, crystal(3), radial_error=error, **options)


def operators(program: distcompile.DistributedModel) -> Counter[Any]:
    return Counter(n.target for n in program.program.graph.graph.nodes if n.op == "call_function")


def off(found: Any, stock: Any) -> dict[str, float]:
    """Differences relative to the largest value."""
    return {k: float((found[k] - stock[k]).abs().max() / stock[k].abs().max()) for k in stock}


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("kind", [Radial, WithEnvelope])
@pytest.mark.parametrize("error", [1e-4, 1e-7])
def test_results_are_within_the_error(kind: type[Toy], error: float, lowering: Any) -> None:
    """Of energy, forces and stress, and the products of radial networks are gone, those of gradients too."""
    model = model_of(kind)
    program, plain = compiled(model, error, lowering=lowering), compiled(model, None)
    assert len(program.program.tabulated) == 1
    (entry,) = program.program.tabulated
    assert [t.functions for t in entry.tables] == [F, F]
    assert all(0 < t.error <= error for t in entry.tables)
    assert operators(program)[radial_lookup] == 4, "values and slopes of two layers"
    regions = [r for r in program.program.tiled.children() if isinstance(r, Region)]
    held = [r for r in regions if any(n.target is radial_lookup for n in r.graph_module.graph.nodes)]
    assert held
    assert all(isinstance(r.compiled, Kernel) is (lowering == "kernels") for r in held)
    assert operators(plain)[aten.mm.default] - operators(program)[aten.mm.default] == 12
    graph = crystal(3, 7)
    worst = off(program(graph), model(graph))
    assert max(worst.values()) < 10 * error, worst
    assert max(worst.values()) > 0, "something was looked up"


def test_a_smaller_error_takes_more_intervals() -> None:
    """And gives smaller differences."""
    model, graph = model_of(), crystal(3, 7)
    intervals, errors = [], []
    for allowed in (1e-3, 1e-6, 1e-9):
        program = compiled(model, allowed)
        intervals.append(sum(t.intervals for t in program.program.tabulated[0].tables))
        errors.append(off(program(graph), model(graph))["forces"])
    assert intervals[0] < intervals[1] < intervals[2]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_nothing_is_tabulated_unless_it_is_asked_for() -> None:
    model = model_of()
    plain = distcompile.compile(model, crystal(3), world=LocalWorld(1))
    assert operators(plain)[radial_lookup] == 0
    assert plain.program.tabulated == ()
    assert "table" not in plain.explain()
    assert max(off(plain(crystal(3, 7)), model(crystal(3, 7))).values()) < 1e-12


@pytest.mark.parametrize("kind", [Radial, WithEnvelope])
def test_forces_are_the_gradient_of_the_energy(kind: type[Toy]) -> None:
    """To much less than the tables' error, by differences of the energy: with few intervals, so that these are off."""
    model = model_of(kind)
    program = compiled(model, 1e-2)
    graph = crystal(3, 7)
    forces, stock = program(graph)["forces"], model(graph)["forces"]
    step = 1e-4
    for atom, axis in ((0, 0), (5, 1), (20, 2)):
        energies = []
        for sign in (1, -1, 2, -2):
            moved = {**graph, "positions": graph["positions"].clone()}
            moved["positions"][atom, axis] += sign * step
            energies.append(float(program(moved)["energy"]))
        one, minus, two, minus_two = energies
        slope = (8 * (one - minus) - (two - minus_two)) / (12 * step)
        assert abs(slope + float(forces[atom, axis])) < 1e-8 * float(forces.abs().max())
    assert float((forces - stock).abs().max()) > 1e-6 * float(stock.abs().max()), "the table is coarse"


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_ranks_agree(lowering: Any) -> None:
    """N ranks are 1 rank, and all refuse the same graph."""
    model = model_of()
    program = compiled(model, lowering=lowering)
    graph = crystal(3, 7)
    one = program(graph)
    for ranks in (2, 3):
        other = program.on(LocalWorld(ranks))
        assert max(off(other(graph), one).values()) < 1e-12
        with pytest.raises(InputError, match="radial_error"):
            other(crystal(3, 7, 0.4))


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_a_distance_outside_of_the_range_is_refused(lowering: Any) -> None:
    """With the range and the number; the program goes on to serve others."""
    model = model_of()
    program = compiled(model, lowering=lowering)
    (entry,) = program.program.tabulated
    shortest = float(lengths(crystal(3)).min())
    assert entry.low == pytest.approx(shortest / 2)
    assert entry.ends
    assert entry.high == pytest.approx(CUTOFF, abs=1e-2), "the envelope is zero from there on"
    graph = crystal(3, 7)
    moved = {**graph, "positions": graph["positions"].clone()}
    at, to = graph["edge_index"][:, 0].tolist()
    vector = graph["positions"][at] + graph["shifts"][0] @ graph["cell"] - graph["positions"][to]
    moved["positions"][to] += vector * (1 - 0.3 / vector.norm())
    with pytest.raises(InputError, match=r"from 0\.\d+ .*2 numbers are, 0\.3 on average.*without radial_error"):
        program(moved)
    assert max(off(program(graph), model(graph)).values()) < 1e-5
    far = {**graph, "shifts": graph["shifts"].clone()}
    far["shifts"][:3] += 2  # beyond the cutoff, where functions are constant
    assert max(off(program(far), model(far)).values()) < 1e-5


def lengths(graph: Graph) -> Tensor:
    sender, receiver = graph["edge_index"]
    vectors = graph["positions"][sender] + graph["shifts"] @ graph["cell"] - graph["positions"][receiver]
    return vectors.norm(dim=-1)


def test_weights_that_change_make_new_tables() -> None:
    """At the next call; also buffers that the functions are made of."""
    model, graph = model_of(), crystal(3, 7)
    program = compiled(model)
    before = program(graph)["energy"]
    assert program.captures == 1
    with torch.no_grad():
        model.networks[1][2].weight.mul_(1.5)
    assert max(off(program(graph), model(graph)).values()) < 1e-5
    assert abs(float(program(graph)["energy"] - before)) > 1e-3
    assert program.captures == 2
    model.load_state_dict(seeded(Radial(), 3).state_dict())
    assert max(off(program(graph), model(graph)).values()) < 1e-5
    assert program.captures == 3
    with torch.no_grad():
        model.readout.weight.mul_(2.0)  # not in tables
    assert max(off(program(graph), model(graph)).values()) < 1e-5
    assert program.captures == 3


def test_gradients_by_tabulated_weights_are_refused() -> None:
    """Not given without their part; gradients by the graph are given, to second derivatives."""
    model, graph = EnergyOnly().eval(), crystal(3, 7)
    with pytest.warns(UserWarning, match="cannot be differentiated"):
        program = compiled(model)
    energy = program(graph)["energy"]
    with pytest.raises(UnsupportedOp, match="Compile without radial_error to train"):
        torch.autograd.grad(energy, model.networks[0][0].weight)
    model.requires_grad_(False)
    found, stock = (gradients(call, graph) for call in (program, model))
    for ours, theirs in zip(found, stock, strict=True):
        assert float(theirs.abs().max()) > 1e-3
        assert float((ours - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())


def gradients(call: Any, graph: Graph) -> tuple[Tensor, Tensor]:
    """The forces, and the derivative of a sum of their squares."""
    positions = graph["positions"].clone().requires_grad_()
    (first,) = torch.autograd.grad(call({**graph, "positions": positions})["energy"], positions, create_graph=True)
    (second,) = torch.autograd.grad((first**2 * torch.linspace(0.5, 1, 3)).sum(), positions)
    return first.detach(), second


def test_an_energy_without_gradients_is_tabulated_too() -> None:
    program = compiled(model_of(EnergyOnly))
    assert operators(program)[radial_lookup] == 2
    graph = crystal(3, 7)
    assert max(off(program(graph), model_of(EnergyOnly)(graph)).values()) < 1e-6


def test_functions_of_more_than_a_distance_stay() -> None:
    """Those that the species decide, too."""
    model, graph = model_of(BySpecies), crystal(3, 7)
    program = compiled(model)
    assert operators(program)[radial_lookup] == 0
    assert max(off(program(graph), model(graph)).values()) < 1e-12


def test_a_table_that_is_too_large_is_not_made() -> None:
    """The program is as without, and says so."""
    model, graph = model_of(), crystal(3, 7)
    program = compiled(model, 1e-15)
    assert operators(program)[radial_lookup] == 0
    assert "is larger than" in program.explain()
    assert max(off(program(graph), model(graph)).values()) < 1e-12


def test_the_explanation_names_tables() -> None:
    text = compiled(model_of()).explain()
    assert "Radial functions in tables" in text
    assert f"{F} functions of test_tabulate.py" in text
    assert "intervals" in text


class AsSprings(nn.Module):
    """A model that `SpringCalculator` can call."""

    def __init__(self) -> None:
        super().__init__()
        self.radial = model_of()

    def forward(self, graph: Graph) -> Any:
        result = self.radial({**graph, "species": graph["oxygen"].long()})
        virial = result["stress"] * torch.linalg.det(graph["cell"]).abs()
        return {"energy": result["energy"].detach(), "forces": result["forces"], "virial": virial}


def test_a_calculator_with_tables() -> None:
    """`distribute` hands the error on; energies and forces are near those of the stock calculator, and not the same."""
    atoms = bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat((2, 1, 1))
    atoms.rattle(0.05, seed=1)
    found = []
    for error in (None, 1e-4, 1e-8):
        atoms.calc = SpringCalculator()
        atoms.calc.model = AsSprings()
        if error is not None:
            distcompile.distribute(atoms.calc, LocalWorld(2), lowering="eager", radial_error=error)
        found.append((atoms.get_potential_energy(), atoms.get_forces()))
    (stock, forces), *others = found
    for error, (energy, ours) in zip((1e-4, 1e-8), others, strict=True):
        assert energy == pytest.approx(stock, rel=10 * error)
        assert 0 < np.abs(ours - forces).max() < 10 * error * np.abs(forces).max()


def test_the_command_line_hands_the_error_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``--radial-error``, which is none unless it is given."""
    write(tmp_path / "oxide.extxyz", bulk("MgO", "rocksalt", a=4.21))
    jobs: list[Any] = []
    monkeypatch.setattr(cli, "perform", jobs.append)
    arguments = ["run", str(tmp_path / "oxide.extxyz"), "--calculator", "chgnet"]
    for more in ([], ["--radial-error", "1e-5"]):
        assert CliRunner().invoke(cli.app, [*arguments, *more]).exit_code == 0
    assert [job.radial_error for job in jobs] == [None, 1e-5]


# ---- Tables by themselves.


def waves(x: Tensor) -> Tensor:
    """Functions that a cutoff at 2 ends."""
    return torch.stack([torch.sin(k * x) * (1 - x / 2).clamp(min=0) ** 3 for k in (1.0, 4.0, 9.0)], 1)


@pytest.mark.parametrize("error", [1e-3, 1e-6, 1e-10])
def test_the_error_of_a_table_is_as_tested(error: float) -> None:
    """Anywhere, by places at random: of values and of slopes. Second derivatives have no steps."""
    where = span(waves, torch.tensor([0.5, 1.9], dtype=torch.float64))
    assert where.ends
    assert (where.low, where.high) == (0.25, pytest.approx(2.0, abs=1e-4))
    table = tabulated(waves, where, error, 8, 2**24)
    assert table is not None
    x = where.low + (where.high - where.low) * torch.rand(5000, dtype=torch.float64).requires_grad_()
    values = waves(x)
    slopes = torch.stack([torch.autograd.grad(v.sum(), x, retain_graph=True)[0] for v in values.unbind(1)], 1)
    for order, exact in ((0, values), (1, slopes)):
        found = radial_lookup(x.detach(), table.coefficients, where.low, where.high, order)
        assert float((found - exact).abs().max() / exact.abs().max()) < 1.2 * error
    step = (where.high - where.low) / len(table.coefficients)
    nodes = where.low + step * torch.arange(1, len(table.coefficients), dtype=torch.float64)
    for order in (0, 1, 2):
        left, right = (
            radial_lookup(nodes + d, table.coefficients, where.low, where.high, order) for d in (-1e-9, 1e-9)
        )
        torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


def test_two_polynomials_meet_where_functions_are_put_together() -> None:
    """Else no step would be short enough: their second derivatives have a step there, and another at the end."""

    def step(x: Tensor) -> Tensor:
        t = (2.5 - x) / 0.8
        ends = torch.where(x < 2.5, t**2 * (3 - 2 * t), 0.0)
        return torch.where(x < 1.7, 1 + 3 * (x - 1.7) ** 2 * x, ends)[:, None]

    where = span(step, torch.tensor([1.0, 2.4], dtype=torch.float64), lambda x: (x < 1.7)[:, None])
    assert where == Span(0.5, pytest.approx(2.5), True, pytest.approx(1.7))
    table = tabulated(step, where, 1e-9, 8, 2**24)
    assert table is not None
    assert len(table.coefficients) < 100
    assert table.low <= 0.5
    place = (1.7 - table.low) / (2.5 - table.low) * len(table.coefficients)
    assert place == pytest.approx(round(place), abs=1e-6)
    assert tabulated(step, Span(0.5, 2.5, True), 1e-9, 8, 2**24) is None


def test_functions_that_do_not_end_have_a_margin() -> None:
    where = span(lambda x: x[:, None].sin(), torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert where == Span(0.5, 3.0 * 1.05, False)


def test_functions_that_jump_have_no_table() -> None:
    """No step is short enough."""
    where = Span(0.5, 3.0, False)
    assert tabulated(lambda x: torch.where(x < 2, x.sin(), x)[:, None], where, 1e-3, 8, 2**30) is None


@pytest.mark.parametrize("order", [0, 1, 2, 5, 6])
def test_the_operator_is_the_polynomials_derivative(order: int) -> None:
    """Also beyond its ends, for no rows and for NaN."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(7, 6, 3, generator=generator, dtype=torch.float64)
    x = torch.tensor([0.4, 1.03, 2.2, 2.97, 1.0, 5.0, float("nan")], dtype=torch.float64)
    found = radial_lookup(x, table, 1.0, 3.0, order)
    for row, number in zip(found, x.tolist(), strict=True):
        if np.isnan(number):
            assert row.isnan().all()
            continue
        inside = min(max((number - 1) * 3.5, 0), 7)
        at = min(int(inside), 6)
        for k in range(3):
            made = np.polynomial.Polynomial(table[at, :, k].numpy())
            expected = (made.deriv(order) if order else made)(inside - at) * 3.5**order
            assert float(row[k]) == pytest.approx(0.0 if order and not 1 <= number <= 3 else expected, abs=1e-9)
    assert radial_lookup(x[:0], table, 1.0, 3.0, order).shape == (0, 3)


def test_the_operator_is_sound() -> None:
    """What is said of its shapes and gradients holds, also where sizes are symbols."""
    table = torch.randn(7, 6, 3, dtype=torch.float64)
    for rows in (1, 5):
        x = (1 + 2 * torch.rand(rows, dtype=torch.float64)).requires_grad_()
        torch.library.opcheck(radial_lookup, (x, table, 1.0, 3.0, 0))
        assert torch.autograd.gradcheck(lambda v: radial_lookup(v, table, 1.0, 3.0, 0), (x,))
        assert torch.autograd.gradgradcheck(lambda v: radial_lookup(v, table, 1.0, 3.0, 0), (x,))
