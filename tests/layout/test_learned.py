"""What is learned of a calculator's graph objects gives the package's own results, and what cannot be is left to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import structures
import torch
import torch.distributed as dist
from ase import Atoms
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.neighborlist import neighbor_list
from packages import CUTOFF, Package, within
from processes import run_ranks
from springs import SpringCalculator

import distcompile
from distcompile import LocalWorld
from distcompile.layout import evaluate
from distcompile.layout.learn import check
from distcompile.layout.observed import NoRecipeError


def distributed(calculator: Any, ranks: int = 1, **options: Any) -> Any:
    """Everything is learned within the first evaluation if results are not to change from call to call."""
    return distcompile.distribute(calculator, world=LocalWorld(ranks), lowering="eager", **options)


def same(atoms: Atoms, calculator: Any, stock: Any, most: float = 1e-9) -> None:
    """All properties are those of the stock calculator."""
    one, other = atoms.copy(), atoms.copy()
    for name in ("energy", "forces", "stress") if atoms.cell.rank == 3 else ("energy", "forces"):
        expected = np.asarray(stock.get_property(name, other))
        found = np.asarray(calculator.get_property(name, one))
        np.testing.assert_allclose(found, expected, rtol=0, atol=most * max(1.0, np.abs(expected).max()))


STRUCTURES: dict[str, Callable[[], Atoms]] = {
    "crystal": lambda: structures.crystal((3, 2, 2)),
    "film": structures.film,
    "cluster": structures.cluster,
    "small cell": structures.small_cell,
    "hexagonal": structures.oxide,
}


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("name", STRUCTURES)
def test_steps(name: str, ranks: int) -> None:
    """Atoms move, some across boundaries, and the cell changes: the package makes no graph object any more."""
    atoms, chance = STRUCTURES[name](), np.random.default_rng(5)
    stock, package = Package(within(CUTOFF)), Package(within(CUTOFF))
    calculator = distributed(package, ranks)
    same(atoms, calculator, stock)
    made = package.made
    for step in range(8):
        atoms.positions += chance.normal(0, 0.08, atoms.positions.shape)
        if step == 3:
            atoms.positions += [1.7, 0.4, 0.0]
        if step > 4 and atoms.pbc.all():
            atoms.set_cell(atoms.cell.array * (1 + chance.normal(0, 0.005, (3, 3))), scale_atoms=True)
        same(atoms, calculator, stock)
    assert package.made == made
    assert "each rank its rows" in _explained(calculator)


def _explained(calculator: Any) -> str:
    return calculator.model.forward._models["([], False)"].explain()  # type: ignore[no-any-return]


def test_one_rank_has_no_atoms() -> None:
    """More ranks than atoms."""
    atoms = structures.small_cell()[:2]
    calculator = distributed(Package(within(CUTOFF)), 4)
    for shift in (0.0, 0.1):
        atoms.positions[0] += shift
        same(atoms, calculator, Package(within(CUTOFF)))


def _wrapped(graph: dict[str, Any], atoms: Atoms) -> dict[str, Any]:
    """Positions in the cell, and images that go with them."""
    inside = torch.tensor(atoms.get_positions(wrap=True))
    first, second = graph["edges"]
    vectors = graph["pos"][second] - graph["pos"][first] + graph["shift"]
    return graph | {"pos": inside, "shift": vectors - inside[second] + inside[first]}


def _shuffled(graph: dict[str, Any], atoms: Atoms) -> dict[str, Any]:
    """Edges in an order of their own, from second to first atoms."""
    order = torch.randperm(graph["edges"].shape[1], generator=torch.Generator().manual_seed(len(atoms)))
    return graph | {"edges": graph["edges"].flip(0)[:, order].int(), "shift": -graph["shift"][order]}


@pytest.mark.parametrize("change", [_wrapped, _shuffled])
def test_other_ways_to_say_it(change: Callable[[dict[str, Any], Atoms], dict[str, Any]]) -> None:
    """Wrapped positions, another order of edges and of their ends."""
    atoms = structures.crystal((2, 2, 1))
    package = Package(within(CUTOFF), change)
    calculator = distributed(package, 2)
    same(atoms, calculator, Package(within(CUTOFF), change))
    made = package.made
    atoms.positions += [2.0, 0.0, -3.0]
    same(atoms, calculator, Package(within(CUTOFF), change))
    assert package.made == made


def _seen_as(pbc: bool) -> Callable[[Atoms], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All pairs of a film, by a package that knows only molecules, or only crystals."""

    def edges(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        other = atoms.copy()
        other.pbc = pbc
        return within(CUTOFF)(other)

    return edges


@pytest.mark.parametrize("pbc", [False, True])
def test_films_are_molecules_or_crystals_to_some_packages(pbc: bool) -> None:
    """Nothing is periodic, or atoms see others across the empty space, as in the package."""
    atoms = structures.film(vacuum=0.9)
    package, stock = Package(_seen_as(pbc)), Package(_seen_as(pbc))
    calculator = distributed(package, 2)
    same(atoms, calculator, stock)
    made = package.made
    for _ in range(3):
        atoms.positions += [1.1, 0.7, 0.3]
        same(atoms, calculator, stock)
    assert package.made == made


def _nearest(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The six nearest neighbours of each atom."""
    i, j, d, s = neighbor_list("ijdS", atoms, 8.0)
    order = np.lexsort((d, i))
    rank = np.arange(len(i)) - np.searchsorted(i[order], i[order])
    chosen = order[rank < 6]
    return i[chosen], j[chosen], s[chosen]


def _random(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nine of ten pairs."""
    i, j, s = within(CUTOFF)(atoms)
    chosen = np.random.default_rng(len(i)).random(len(i)) < 0.9
    return i[chosen], j[chosen], s[chosen]


def _by_species(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Oxygen sees less far."""
    i, j, d, s = neighbor_list("ijdS", atoms, CUTOFF)
    chosen = (d < 3.1) | ((atoms.numbers[i] != 8) & (atoms.numbers[j] != 8))
    return i[chosen], j[chosen], s[chosen]


@pytest.mark.parametrize("edges", [_nearest, _random, _by_species])
def test_what_cannot_be_learned(edges: Callable[[Atoms], Any]) -> None:
    """The package goes on to make such graph objects, and `explain` says why."""
    atoms = structures.crystal((2, 2, 1))
    package = Package(edges)
    calculator = distributed(package, 2)
    same(atoms, calculator, Package(edges))
    made = package.made
    atoms.positions[0] += 0.05
    same(atoms, calculator, Package(edges))
    assert package.made > made
    assert "made whole by the package on every rank: " in _explained(calculator)


def test_another_species_sees_less_far() -> None:
    """A species whose edges are others than those that were learned is not taken for one of these."""
    atoms = Atoms("Mg", [[0.0, 0, 0]], cell=[3.1] * 3, pbc=True).repeat((2, 2, 2))
    atoms.rattle(0.1, seed=2)
    package = Package(_by_species)
    calculator = distributed(package, 2)
    same(atoms, calculator, Package(_by_species))
    made = package.made
    atoms.positions[0] += 0.05
    same(atoms, calculator, Package(_by_species))
    assert package.made == made
    atoms.numbers[3] = 8
    same(atoms, calculator, Package(_by_species))
    assert package.made > made


def test_other_kinds_are_learned_when_they_are_met() -> None:
    """Another species, then another periodicity."""
    package = Package(within(CUTOFF))
    calculator = distributed(package, 2)
    crystal = structures.crystal((2, 1, 1))
    same(crystal, calculator, Package(within(CUTOFF)))
    crystal.numbers[2] = 16
    same(crystal, calculator, Package(within(CUTOFF)))
    same(structures.cluster(), calculator, Package(within(CUTOFF)))
    made = package.made
    for atoms in (crystal, structures.cluster()):
        atoms.positions[0] += 0.05
        same(atoms, calculator, Package(within(CUTOFF)))
    assert package.made == made


def _charged(graph: dict[str, Any], atoms: Atoms) -> dict[str, Any]:
    """The type depends on what the user says of atoms."""
    charges = torch.tensor(atoms.get_initial_charges().astype(int))
    return graph | {"type": (graph["type"] + charges) % 10}


def _with_an_option(graph: dict[str, Any], atoms: Atoms) -> dict[str, Any]:
    """Everything depends on a number in the user's atoms."""
    return graph | {"n": graph["n"] * (1 + atoms.info.get("charge", 0))}


def test_what_users_say_of_atoms() -> None:
    """A table of species is none if charges decide; a number in ``info`` is part of what was learned."""
    atoms = structures.crystal((2, 1, 1))
    atoms.set_initial_charges(np.arange(len(atoms)) % 3)
    calculator = distributed(Package(within(CUTOFF), _charged))
    for _ in range(2):
        same(atoms, calculator, Package(within(CUTOFF), _charged))
        atoms.set_initial_charges(atoms.get_initial_charges()[::-1])
    atoms = structures.crystal((2, 1, 1))
    calculator = distributed(Package(within(CUTOFF), _with_an_option))
    for charge in (0, 1, 1, 0, 2):
        atoms.info["charge"] = charge
        atoms.positions[0] += 0.01
        same(atoms, calculator, Package(within(CUTOFF), _with_an_option))


def test_a_setting_of_the_calculator() -> None:
    """A user changes an attribute of the calculator that its results depend on."""

    class Scaled(Package):
        scale = 1.0

        def calculate(self, *args: Any, **kwargs: Any) -> None:
            super().calculate(*args, **kwargs)
            self.results["energy"] *= self.scale

    atoms = structures.crystal((2, 1, 1))
    package, stock = Scaled(within(CUTOFF)), Scaled(within(CUTOFF))
    calculator = distributed(package)
    for scale in (1.0, 1.0, 2.0, 2.0):
        package.scale = stock.scale = scale
        atoms.positions[0] += 0.01
        same(atoms, calculator, stock)


@pytest.mark.parametrize("ranks", [1, 2])
def test_calculators_within_a_calculator(ranks: int) -> None:
    """Each goes around its own package; what holds no model is as it was."""
    atoms = structures.crystal((2, 1, 1))
    one, two = Package(within(CUTOFF)), Package(within(3.0))
    stock = SumCalculator([Package(within(CUTOFF)), Package(within(3.0)), LennardJones(sigma=1.5, rc=3.0)])
    calculator = distributed(SumCalculator([one, two, LennardJones(sigma=1.5, rc=3.0)]), ranks)
    same(atoms, calculator, stock)
    made = one.made, two.made
    for _ in range(3):
        atoms.positions[0] += 0.05
        same(atoms, calculator, stock)
    assert (one.made, two.made) == made


def test_graphs_stay_with_the_package_if_asked() -> None:
    """``graphs="stock"``; anything else is refused."""
    package = Package(within(CUTOFF))
    atoms = structures.crystal((2, 1, 1))
    calculator = distributed(package, graphs="stock")
    for made in (1, 2):
        atoms.positions[0] += 0.01
        same(atoms, calculator, Package(within(CUTOFF)))
        assert package.made >= made
    with pytest.raises(ValueError, match="choose"):
        distcompile.distribute(Package(within(CUTOFF)), graphs="mine")  # type: ignore[arg-type]


def test_a_few_evaluations_learn_nothing() -> None:
    """By default, a script of two evaluations does not wait for anything."""
    package = Package(within(CUTOFF))
    calculator = distcompile.distribute(package)
    atoms = structures.crystal((2, 1, 1))
    atoms.calc = calculator
    counts = []
    for _ in range(5):
        atoms.positions[0] += 0.01
        atoms.get_forces()
        counts.append(package.made)
    assert counts[1] - counts[0] == 1 and counts[4] == counts[2] > counts[1] + 1


def test_positions_that_are_no_numbers() -> None:
    """NaN is named, on the way around the package as well."""
    atoms = structures.crystal((2, 1, 1))
    atoms.calc = distributed(Package(within(CUTOFF)), 2)
    atoms.get_forces()
    atoms.positions[4, 1] = np.nan
    with pytest.raises(distcompile.InputError, match="atom 4"):
        atoms.get_forces()


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_have_as_many_rows(ranks: int) -> None:
    """Division by the number of atoms would give nearly all edges to one rank; both times, as atoms move far."""
    from distcompile.calculators.calculator import statistics

    atoms = structures.crystal_in_gas()
    atoms.calc = distributed(Package(within(CUTOFF)), ranks)
    for shift in (0.0, 0.1, 4.0):
        atoms.positions[:96] += [shift, 0.0, 0.0]
        same(atoms, atoms.calc, Package(within(CUTOFF)))
        atoms.get_potential_energy()
        rows = [sum(row["owned"].values()) for row in statistics(atoms.calc)]
        assert max(rows) < 1.03 * np.mean(rows), rows


@pytest.mark.parametrize(("apart", "is_refused"), [(1e-6, False), (1e-4, True)])
def test_forces_that_are_zero_by_symmetry(apart: float, is_refused: bool) -> None:
    """In a perfect crystal they are rounding, and that of one graph object is not that of another."""
    atoms = structures.crystal((2, 2, 2))
    calculator = distributed(Package(within(CUTOFF)))
    same(atoms, calculator, Package(within(CUTOFF)))
    learned = calculator.calculate.graphs.last[0].learned
    assert learned.sizes["forces"] > 0.01
    zeros = np.zeros((len(atoms), 3))
    with pytest.raises(NoRecipeError, match="forces differs") if is_refused else contextlib.nullcontext():
        check(learned, {"forces": zeros + apart}, {"forces": zeros})


def test_statistics_of_ranks() -> None:
    """The rows of each rank, and the memory of its graph object's rows."""
    from distcompile.calculators.calculator import statistics

    atoms = structures.crystal((3, 2, 2))
    atoms.calc = distributed(SpringCalculator(), 3)
    atoms.get_forces()
    rows = statistics(atoms.calc)
    assert [row["owned"]["atoms"] for row in rows] == [33, 31, 31]
    assert all(row["halo"]["atoms"] > 0 for row in rows)


def _script() -> tuple[float, np.ndarray, int]:
    atoms = structures.crystal((3, 2, 2))
    package = Package(within(CUTOFF))
    atoms.calc = distcompile.distribute(package, lowering="eager")
    atoms.get_forces()
    made = package.made
    for step in range(4):
        atoms.positions += 0.1 * np.sin(step + np.arange(3 * len(atoms)).reshape(-1, 3))
        forces = atoms.get_forces()
    return atoms.get_potential_energy(), forces, package.made - made


def _drifted(rank_with_another: int, far: float) -> None:
    atoms = structures.crystal((3, 2, 2))
    atoms.calc = distcompile.distribute(Package(within(CUTOFF)), lowering="eager")
    atoms.get_forces()
    atoms.positions[0] += 0.1
    if dist.get_rank() == rank_with_another:
        atoms.positions[5, 1] += far
    atoms.get_forces()


@pytest.mark.parametrize("far", [1e-12, 1.0])
def test_processes_with_other_structures(far: float) -> None:
    """Ranks that have drifted apart, by rounding or by more, are told so."""
    for found in run_ranks(2, _drifted, 1, far):
        assert isinstance(found, distcompile.RankError), found
        assert "Ranks disagree on the graph" in str(found)


def _without_memory() -> None:
    atoms = structures.crystal((3, 2, 2))
    atoms.calc = distcompile.distribute(Package(within(CUTOFF)), lowering="eager")
    atoms.get_forces()
    atoms.positions[5, 1] += 0.1
    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 1:
            patch.setattr(evaluate.Divided, "share", _fails)
        atoms.get_forces()


def _fails(*_: Any) -> Any:
    raise MemoryError("no room for pairs")


def test_a_process_that_fails_to_make_its_rows() -> None:
    """The other one does not wait for it."""
    one, two = run_ranks(2, _without_memory)
    assert isinstance(one, distcompile.RankError) and "Rank 1 refused its part" in str(one)
    assert isinstance(two, distcompile.OutOfMemory)


def test_processes() -> None:
    """Two processes give what one rank gives."""
    expected = _script()
    for found in run_ranks(2, _script):
        assert not isinstance(found, BaseException), found
        assert found[0] == pytest.approx(expected[0], rel=1e-12)
        np.testing.assert_allclose(found[1], expected[1], atol=1e-12)
        assert found[2] == 0
