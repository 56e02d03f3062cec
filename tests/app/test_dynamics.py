"""Relaxation and dynamics: distributed over ranks they are what the stock calculator gives, and can be resumed."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structures
from ase import Atoms, units
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import FIRE
from springs import SpringCalculator

import distcompile
from distcompile import CheckpointError, LocalWorld, SimulationError
from distcompile.app import checkpoint, dynamics
from distcompile.app.dynamics import Ensemble, Md, Optimizer, Output, Relaxation, relax, run_md
from distcompile.app.sanity import Guard, unknown_species
from distcompile.show.progress import Rate, stepping


def oxide(ranks: int = 0, make: Callable[[], Any] = SpringCalculator) -> Atoms:
    """15 atoms of MgO with a calculator, stock (0) or on that many ranks."""
    atoms = structures.crystal((2, 1, 1))
    atoms.calc = distcompile.distribute(make(), world=LocalWorld(ranks)) if ranks else make()
    return atoms


def ignore(step: int) -> None:
    """Nobody looks at the progress."""


def trajectory(atoms: Atoms, how: Md, **options: Any) -> list[np.ndarray]:
    """Positions after every step."""
    frames: list[np.ndarray] = []
    run_md(atoms, how, Output(), lambda step: frames.append(atoms.positions.copy()), **options)
    return frames


# ---- the same trajectory on ranks


@pytest.mark.parametrize("ensemble", list(Ensemble))
def test_trajectories_do_not_depend_on_ranks(ensemble: Ensemble) -> None:
    """Positions at every step and the last cell, on 3 ranks, are those of the stock calculator."""
    how = Md(ensemble, steps=40, timestep=2.0, temperature=600.0, pressure=1.0)
    stock, ours = oxide(), oxide(3)
    expected, found = trajectory(stock, how), trajectory(ours, how)
    assert len(found) == 41
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours.cell, stock.cell, rtol=0, atol=1e-10)
    assert np.abs(expected[-1] - expected[0]).max() > 0.3
    assert (np.abs(ours.cell - oxide().cell).max() > 0.005) == (ensemble is Ensemble.npt)


def test_stress_is_the_derivative_of_the_energy() -> None:
    """After steps in which the cell changed its shape; all six components, on 3 ranks."""
    atoms = oxide(3)
    run_md(atoms, Md(Ensemble.npt, steps=30, timestep=2.0, temperature=600.0), Output(), ignore)

    def energy(strain: np.ndarray) -> float:
        strained = atoms.copy()
        strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        strained.calc = atoms.calc
        return float(strained.get_potential_energy())

    stress, volume, h = atoms.get_stress(voigt=False), atoms.get_volume(), 1e-5
    assert np.abs(stress).max() > 0.01
    for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        strain = np.zeros((3, 3))
        strain[i, j] += h / 2
        strain[j, i] += h / 2
        assert (energy(strain) - energy(-strain)) / (2 * h * volume) == pytest.approx(stress[i, j], abs=1e-8)


def test_liquid() -> None:
    """Hot enough that neighbours change at most steps: still the stock calculator's trajectory, and its energy."""
    from ase.neighborlist import neighbor_list

    how = Md(Ensemble.nvt, steps=100, timestep=2.0, temperature=4000.0)
    stock, ours = oxide(), oxide(3)
    pairs = []

    def count(step: int) -> None:
        pairs.append(len(neighbor_list("i", ours, 3.4)))

    run_md(stock, how, Output(), ignore)
    run_md(ours, how, Output(), count)
    assert np.count_nonzero(np.diff(pairs)) > 50
    np.testing.assert_allclose(ours.positions, stock.positions, rtol=0, atol=1e-6)  # chaos: rounding grows
    assert ours.get_potential_energy() == pytest.approx(stock.get_potential_energy(), abs=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "cell"), [(Optimizer.fire, True), (Optimizer.bfgs, True), (Optimizer.lbfgs, False)]
)
def test_relaxation_takes_the_same_steps(optimizer: Optimizer, cell: bool) -> None:
    """On 3 ranks and with the stock calculator: number of steps, cell, positions."""
    how = Relaxation(optimizer, fmax=0.05, cell=cell, pressure=0.5 if cell else 0.0)
    stock, ours = oxide(), oxide(3)
    expected, found = relax(stock, how, Output(), ignore), relax(ours, how, Output(), ignore)
    assert found == expected
    assert found[0]
    assert found[1] > 5
    np.testing.assert_allclose(ours.cell, stock.cell, rtol=0, atol=1e-8)
    np.testing.assert_allclose(ours.positions, stock.positions, rtol=0, atol=1e-8)
    assert (np.abs(ours.cell - oxide().cell).max() > 0.01) == cell


def test_relaxation_is_that_of_an_ase_script(tmp_path: Path) -> None:
    """The same steps as a script that uses ASE itself; the trajectory starts and ends where the relaxation does."""
    script, ours = oxide(), oxide()
    optimizer = FIRE(FrechetCellFilter(script), logfile=None)
    optimizer.run(fmax=0.05, steps=500)
    files = Output(tmp_path / "r.traj", tmp_path / "r.log", interval=7)
    _, steps = relax(ours, Relaxation(cell=True), files, ignore)
    assert steps == optimizer.nsteps
    np.testing.assert_allclose(ours.cell, script.cell, rtol=0, atol=1e-12)
    frames = read(tmp_path / "r.traj", ":")
    np.testing.assert_allclose(frames[0].positions, oxide().positions)
    np.testing.assert_allclose(frames[-1].positions, ours.positions)
    assert len(frames) == steps // 7 + 1 + bool(steps % 7)
    assert len((tmp_path / "r.log").read_text().splitlines()) == steps + 2


def test_not_relaxed_in_time() -> None:
    assert relax(oxide(), Relaxation(steps=3), Output(), ignore) == (False, 3)


# ---- checkpoints


@pytest.mark.parametrize("ensemble", list(Ensemble))
def test_a_resumed_run_is_the_uninterrupted_one(ensemble: Ensemble, tmp_path: Path) -> None:
    """Bit for bit: positions, momenta, cell, thermostat and barostat; trajectory and log have no gap and no double."""
    whole, half = oxide(), oxide()
    kind = {Ensemble.nve: "traj", Ensemble.nvt: "extxyz", Ensemble.npt: "xyz"}[ensemble]
    how = Md(ensemble, 40, 2.0, 500.0, checkpoint=tmp_path / "whole.npz", checkpoint_every=100)
    run_md(whole, how, Output(tmp_path / f"whole.{kind}", tmp_path / "whole.log", 4), ignore)
    how = Md(ensemble, 22, 2.0, 500.0, checkpoint=tmp_path / "c.npz", checkpoint_every=9)
    files = Output(tmp_path / f"t.{kind}", tmp_path / "l.log", 4)
    with pytest.raises(KeyboardInterrupt):
        run_md(half, how, files, interrupted_at(21))
    assert checkpoint.read(tmp_path / "c.npz").step == 18
    resumed = oxide()
    how = Md(ensemble, 40, 2.0, 500.0, checkpoint=tmp_path / "c.npz", checkpoint_every=9)
    assert run_md(resumed, how, files, ignore, resume=True) == 18
    np.testing.assert_array_equal(resumed.positions, whole.positions)
    np.testing.assert_array_equal(resumed.get_momenta(), whole.get_momenta())
    np.testing.assert_array_equal(resumed.cell, whole.cell)
    one, other = checkpoint.read(tmp_path / "whole.npz"), checkpoint.read(tmp_path / "c.npz")
    assert one.step == other.step == 40
    for name, value in one.state.items():
        np.testing.assert_array_equal(value, other.state[name], err_msg=name)
    frames = [[f.positions for f in read(tmp_path / name, ":")] for name in (f"whole.{kind}", f"t.{kind}")]
    np.testing.assert_array_equal(*frames)
    assert len(frames[0]) == 11
    assert [f.get_potential_energy() for f in read(tmp_path / f"t.{kind}", ":")][-1] == pytest.approx(
        whole.get_potential_energy(), abs=1e-6
    )
    assert (tmp_path / "whole.log").read_text() == (tmp_path / "l.log").read_text()


def interrupted_at(last: int) -> Callable[[int], None]:
    """Stops a run after a step, as Ctrl-C would."""

    def stop(step: int) -> None:
        if step == last:
            raise KeyboardInterrupt

    return stop


def test_velocities_of_the_structure_are_kept() -> None:
    """Only a structure at rest is given velocities, and those depend on the seed."""
    moving, one, other = oxide(), oxide(), oxide()
    moving.set_momenta(np.full((15, 3), 0.1))
    run_md(moving, Md(steps=0), Output(), ignore)
    np.testing.assert_array_equal(moving.get_momenta(), 0.1)
    run_md(one, Md(steps=0, seed=1), Output(), ignore)
    run_md(other, Md(steps=0, seed=2), Output(), ignore)
    assert 100 < one.get_temperature() < 600
    assert np.abs(one.get_momenta() - other.get_momenta()).max() > 0.1
    np.testing.assert_allclose(one.get_momenta().sum(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize("ensemble", [Ensemble.nvt, Ensemble.npt])
def test_a_thermostat_gives_atoms_at_rest_velocities(ensemble: Ensemble, capsys: pytest.CaptureFixture[str]) -> None:
    """The same as atoms of which the file says nothing are given; one line says so, and the run stays warm."""
    silent, resting = oxide(), oxide()
    resting.set_momenta(np.zeros((15, 3)))
    temperatures: list[float] = []
    for atoms in (silent, resting):
        run_md(atoms, Md(ensemble, 60, 2.0, 400.0, seed=3), Output(), lambda _: temperatures.append(measured(resting)))
    np.testing.assert_array_equal(resting.positions, silent.positions)
    assert capsys.readouterr().out.splitlines() == [
        "The structure has no velocities: velocities are drawn at 400 K, seed 3.",
        "All atoms of the structure are at rest: velocities are drawn at 400 K, seed 3.",
    ]
    assert 200 < np.mean(temperatures[-40:]) < 600


def measured(atoms: Atoms) -> float:
    """The temperature, of three degrees of freedom an atom."""
    return float(2 * atoms.get_kinetic_energy() / (3 * len(atoms) * units.kB))


def test_atoms_at_rest_without_a_thermostat(capsys: pytest.CaptureFixture[str]) -> None:
    """A start like any other: the forces move them, energy is conserved."""
    atoms = oxide()
    atoms.set_momenta(np.zeros((15, 3)))
    run_md(atoms, Md(steps=0), Output(), ignore)
    assert not atoms.get_momenta().any()
    before = atoms.get_total_energy()
    run_md(atoms, Md(steps=20), Output(), ignore)
    assert capsys.readouterr().out == "All atoms of the structure are at rest, and start so.\n" * 2
    assert atoms.get_kinetic_energy() > 0.1
    assert atoms.get_total_energy() == pytest.approx(before, abs=2e-3)


@pytest.mark.parametrize("ensemble", list(Ensemble))
def test_one_atom(ensemble: Ensemble) -> None:
    """Its centre of mass is all that moves: it keeps a velocity, and the thermostat finds it."""
    atoms = Atoms("Mg", cell=[5.0] * 3, pbc=True, calculator=SpringCalculator())
    temperatures: list[float] = []
    run_md(atoms, Md(ensemble, 3000, 2.0, 400.0), Output(), lambda _: temperatures.append(measured(atoms)))
    assert np.isfinite(temperatures).all()
    assert np.isfinite(atoms.positions).all()
    if ensemble is Ensemble.nve:
        np.testing.assert_allclose(temperatures, temperatures[0], rtol=1e-9)
        assert temperatures[0] > 10
    else:
        assert np.mean(temperatures) == pytest.approx(400, rel=0.3)


def test_no_velocities_at_zero_kelvin() -> None:
    """They are zero, not 0/0."""
    atoms = oxide()
    run_md(atoms, Md(steps=5, temperature=0.0), Output(), ignore)
    assert 0 < measured(atoms) < 100


def test_atoms_that_nothing_can_move() -> None:
    atoms = oxide()
    atoms.set_constraint(FixAtoms(range(15)))
    with pytest.raises(SimulationError, match="Constraints hold every atom"):
        run_md(atoms, Md(steps=5), Output(), ignore)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Md]:
    """A checkpoint of step 4, and the run that wrote it."""
    how = Md(Ensemble.nvt, 4, checkpoint=tmp_path / "c.npz", checkpoint_every=2)
    run_md(oxide(), how, Output(), ignore, calculator="springs")
    return tmp_path / "c.npz", how


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ensemble": Ensemble.nve}, "ensemble is nvt there, nve here"),
        ({"temperature": 500.0}, r"temperature \(K\) is 300.0 there, 500.0 here"),
        ({"timestep": 2.0}, r"timestep \(fs\) is 1.0 there, 2.0 here"),
    ],
)
def test_a_checkpoint_of_another_run(saved: tuple[Path, Md], change: dict[str, Any], said: str) -> None:
    path, _ = saved
    options = {"ensemble": Ensemble.nvt, "steps": 8, "checkpoint": path} | change
    with pytest.raises(CheckpointError, match=said):
        run_md(oxide(), Md(**options), Output(), ignore, calculator="springs", resume=True)


def test_a_checkpoint_of_another_structure(saved: tuple[Path, Md]) -> None:
    """More atoms, other species, another calculator: named, and the structure is left as it was."""
    _, how = saved
    large, other, third = oxide().repeat((1, 1, 2)), oxide(), oxide()
    other.numbers[7] = 12 + 8 - other.numbers[7]
    for atoms, name, said in (
        (large, "springs", "a checkpoint of 15 atoms, the structure has 30"),
        (other, "springs", "atom 7 has atomic number"),
        (third, "chgnet", "calculator is springs there, chgnet here"),
    ):
        before = atoms.positions.copy()
        with pytest.raises(CheckpointError, match=said):
            run_md(atoms, how, Output(), ignore, calculator=name, resume=True)
        np.testing.assert_array_equal(atoms.positions, before)


def test_damaged_checkpoints(saved: tuple[Path, Md], tmp_path: Path) -> None:
    """Cut short anywhere, one byte changed, not a checkpoint at all, or not there: an error, never wrong numbers."""
    path, how = saved
    data = path.read_bytes()
    damaged = [data[:n] for n in (0, 1, 100, len(data) // 2, len(data) - 1)]
    damaged.append(data[:1500] + bytes([data[1500] ^ 255]) + data[1501:])
    damaged.append(b"not a checkpoint\n")
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"c\.npz is no checkpoint, or was cut short"):
            run_md(oxide(), how, Output(), ignore, calculator="springs", resume=True)
        assert checkpoint.last(path) == ""
    path.unlink()
    with pytest.raises(CheckpointError, match=r"There is no checkpoint .*c\.npz to resume from"):
        run_md(oxide(), how, Output(), ignore, calculator="springs", resume=True)


def test_a_full_disk_leaves_the_old_checkpoint(saved: tuple[Path, Md]) -> None:
    """Writing fails for want of room (a limit on the size of files): said so, nothing is lost, no litter."""
    path, _ = saved
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"of step 8 cannot be written .*last checkpoint is .* of step 4"):
            how = Md(Ensemble.nvt, 10, checkpoint=path, checkpoint_every=4)
            run_md(oxide(), how, Output(), ignore, calculator="springs", resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["c.npz"]


# ---- guards


class Failing(SpringCalculator):
    """Springs whose results are damaged from an evaluation on."""

    def __init__(self, after: int, force: float = 0.0, energy: float = 0.0) -> None:
        super().__init__()
        self.left, self.force, self.energy = after, force, energy

    def calculate(self, *args: Any, **options: Any) -> None:
        super().calculate(*args, **options)
        self.left -= 1
        if self.left < 0:
            self.results["energy"] += self.energy
            self.results["forces"][6, 1] += self.force


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"force": np.nan}, r"Step 3: the force on atom 6 \(.*\) is .*nan"),
        ({"force": np.inf}, r"Step 3: the force on atom 6 \(.*\) is .*inf"),
        ({"energy": -np.inf}, "Step 3: the energy is -inf"),
    ],
)
def test_numbers_that_are_none(damage: dict[str, float], said: str, tmp_path: Path) -> None:
    """The run stops at the step, and the checkpoint is of a step before."""
    how = Md(steps=10, checkpoint=tmp_path / "c.npz", checkpoint_every=1)
    with pytest.raises(SimulationError, match=said):
        run_md(oxide(0, lambda: Failing(3, **damage)), how, Output(), ignore)
    assert checkpoint.read(tmp_path / "c.npz").step == 2
    with pytest.raises(SimulationError, match=said):
        relax(oxide(0, lambda: Failing(3, **damage)), Relaxation(), Output(), ignore)


class Raising(SpringCalculator):
    """Springs that fail at an evaluation, in a way of their own."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.left, self.error = at, error

    def calculate(self, *args: Any, **options: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error
        super().calculate(*args, **options)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ValueError("too few\natoms."),
            r"the calculator fails: ValueError: too few atoms \(.*, line \d+\)\.",
        ),
        (AssertionError(), r"the calculator fails: AssertionError \(test_dynamics.py, line \d+\)\."),
        (OSError(28, "No space left on device"), r"a file cannot be read or written: .*No space left on device\."),
    ],
)
def test_a_calculator_that_fails(error: BaseException, said: str) -> None:
    """One line with the step, the error and what to do, in dynamics and in relaxations."""
    for run, how, cure in (
        (run_md, Md(steps=9), dynamics.SLOWER),
        (relax, Relaxation(), dynamics.GENTLER),
        (relax, Relaxation(Optimizer.bfgs, cell=True), dynamics.GENTLER),
    ):
        with pytest.raises(SimulationError, match=f"^Step 3: {said}") as caught:
            run(oxide(0, lambda: Raising(3, error)), how, Output(), ignore)
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith(
            "Make room for it, or let it be reached." if isinstance(error, OSError) else cure
        )


def test_interrupts_are_not_the_calculators() -> None:
    with pytest.raises(KeyboardInterrupt):
        run_md(oxide(0, lambda: Raising(3, KeyboardInterrupt())), Md(steps=9), Output(), ignore)


def test_advice_fits_the_task() -> None:
    """A relaxation has no time step, and a single evaluation neither."""
    for damage in ({"force": np.nan}, {"energy": np.nan}):
        with pytest.raises(SimulationError) as caught:
            relax(oxide(0, lambda damage=damage: Failing(3, **damage)), Relaxation(), Output(), ignore)
        assert "--timestep" not in str(caught.value)
        assert "--optimizer" in str(caught.value)
        with pytest.raises(SimulationError, match="--timestep"):
            run_md(oxide(0, lambda damage=damage: Failing(3, **damage)), Md(steps=9), Output(), ignore)
    atoms = oxide()
    atoms.positions[4] = atoms.positions[9] + [0.2, 0, 0]
    with pytest.raises(SimulationError, match=r"0\.200 A apart") as caught:
        relax(atoms, Relaxation(), Output(), ignore)
    assert "--timestep" not in str(caught.value)


@pytest.mark.parametrize("image", [0, 1])
def test_two_atoms_in_one_place(image: int) -> None:
    """Both are named, in the cell or in an image of it."""
    atoms = oxide()
    atoms.positions[4] = atoms.positions[9] + image * atoms.cell[1]
    for how in (Md(steps=3), Relaxation()):
        with pytest.raises(SimulationError) as caught:
            run_md(atoms, how, Output(), ignore) if isinstance(how, Md) else relax(atoms, how, Output(), ignore)
        assert re.fullmatch(r"Step 0: atoms 4 \(\w+\) and 9 \(\w+\) are at one place\. Take one .*", str(caught.value))


def test_atoms_on_top_of_each_other() -> None:
    """At the start, across the boundary of the cell too; and when they are thrown at each other."""
    atoms = oxide()
    atoms.positions[4] = atoms.positions[9] + [0.2, 0, 0] + atoms.cell[2]
    with pytest.raises(SimulationError, match=r"Step 0: atoms 4 \(.*\) and 9 \(.*\) are 0\.200 A apart"):
        run_md(atoms, Md(steps=3), Output(), ignore)
    atoms = oxide()
    vectors = atoms.get_distances(0, range(15), mic=True, vector=True)
    near = int(np.linalg.norm(vectors[1:], axis=1).argmin()) + 1
    atoms.set_momenta(np.zeros((15, 3)))
    velocities = np.zeros((15, 3))
    velocities[0] = vectors[near] / np.linalg.norm(vectors[near]) * 3.0
    atoms.set_velocities(velocities)
    with pytest.raises(SimulationError, match=rf"Step [1-9]\d*: atoms (0|{near}) .* and (0|{near}) .* apart"):
        run_md(atoms, Md(steps=50, timestep=1.0), Output(), ignore)


def test_close_pairs_are_never_missed() -> None:
    """Against a search at every step, while atoms and cell move at random; and few steps need one."""
    random = np.random.default_rng(0)
    caught = searches = steps = 0
    for trial in range(20):
        atoms = oxide()
        guard = Guard(atoms)
        for step in range(60):
            atoms.positions += random.normal(scale=0.02 + 0.04 * (trial % 2), size=(15, 3))
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + random.normal(scale=2e-3, size=(3, 3))), scale_atoms=True)
            said = [refusal(g, step) for g in (guard, Guard(atoms))]
            assert said[0] == said[1]
            steps += 1
            if said[0]:
                caught += 1
                break
        searches += guard.searches
    assert caught > 3
    assert searches < steps / 2


def refusal(guard: Guard, step: int) -> str:
    """What a guard says about distances."""
    try:
        guard.check_distances(step)
    except SimulationError as error:
        return re.sub("[0-9]+ .*", "", str(error))
    return ""


def test_a_solid_is_not_searched_at_every_step() -> None:
    atoms = oxide()
    guard = Guard(atoms)
    run_md(atoms, Md(steps=50, temperature=300.0), Output(), guard.check_distances)
    assert guard.searches < 10


def test_species_that_the_model_does_not_know() -> None:
    """Named with an atom; a calculator that fails for another reason is not blamed on species."""
    atoms = oxide()
    atoms.numbers[[5, 8]] = 54
    assert "does not know Xe (atom 5)" in unknown_species(atoms, atoms.calc)
    broken = oxide(0, Broken)
    assert unknown_species(broken, broken.calc) == ""
    one = Atoms("Xe2", positions=[[0, 0, 0], [0, 0, 3]])
    assert "does not know Xe (atom 0)" in unknown_species(one, atoms.calc)
    assert "does not know Xe (atom 2)" in unknown_species(atoms[6:], atoms.calc, places=atoms[:2])


class Broken(SpringCalculator):
    """Fails on everything."""

    def calculate(self, *args: Any, **options: Any) -> None:
        raise RuntimeError("the disk with the weights is gone")


@pytest.mark.parametrize("how", [Md(Ensemble.npt), Relaxation(cell=True)])
def test_a_cell_is_needed(how: Md | Relaxation) -> None:
    atoms = oxide()
    atoms.pbc = (True, True, False)
    with pytest.raises(SimulationError, match="periodic along all three axes"):
        run_md(atoms, how, Output(), ignore) if isinstance(how, Md) else relax(atoms, how, Output(), ignore)


# ---- progress


def test_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps a second of 2 fs with 100 atoms; the first call starts the clock."""
    clock = iter([10.0, 15.0])
    monkeypatch.setattr("distcompile.show.progress.time.perf_counter", lambda: next(clock))
    rate = Rate(30, atoms=100, timestep=2.0)
    assert rate(5) == ""
    assert rate(15) == "2 steps/s, 200 atoms*steps/s, 0.346 ns/day, 00:00:07 left"


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with stepping("NVE", 3, atoms=10, timestep=1.0) as done:
        for step in range(4):
            done(step)
    (line,) = capsys.readouterr().out.splitlines()
    assert re.match(r"NVE: step 3 of 3, .* steps/s, .* atoms\*steps/s, .* ns/day, 00:00:00 left", line)
