"""Stock ASE calculators of whichever packages are installed, distributed in place: the same script on every rank.

Each process makes the calculator as a user would, asks for all properties, then moves the atoms for some steps.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structures
import torch
import torch.distributed as dist
import zoo
from processes import run_ranks
from springs import SpringCalculator

import distcompile
from distcompile import LocalWorld, RankError
from distcompile.app.dynamics import Ensemble, Md, Output, run_md


def mace(folder: Path) -> Any:
    """From a model file on disk."""
    from mace.calculators import MACECalculator

    return MACECalculator(model_paths=str(folder / "small.model"), default_dtype="float64")


def matgl(_: Path) -> Any:
    """matgl's CHGNet, which has moments; random weights."""
    from matgl.ext.ase import PESCalculator

    model = copy.deepcopy(zoo.matgl("CHGNet").model)  # distribute() changes it in place
    return PESCalculator(model, stress_unit="eV/A3")


def sevennet(_: Path) -> Any:
    """The pretrained SevenNet-0."""
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator("7net-0", device="cpu")


def nequip(_: Path) -> Any:
    """NequIP with random weights; the calculator also holds modules that prepare its graphs."""
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
    from nequip.integrations.ase import NequIPCalculator

    transforms = [ChemicalSpeciesToAtomTypeMapper(list(zoo.MATGL_ELEMENTS)), NeighborListTransform(r_max=4.5)]
    return NequIPCalculator(copy.deepcopy(zoo.nequip().model).eval(), device="cpu", transforms=transforms)


def fairchem(folder: Path) -> Any:
    """UMA's mixture of experts with random weights; with default settings it looks for neighbours within forward."""
    from fairchem.core.calculate.ase_calculator import FAIRChemCalculator
    from fairchem.core.units.mlip_unit.api.inference import InferenceSettings
    from fairchem.core.units.mlip_unit.predict import MLIPPredictUnit

    unit = MLIPPredictUnit(
        str(folder / "uma.pt"), device="cpu", inference_settings=InferenceSettings(base_precision_dtype="float64")
    )
    return FAIRChemCalculator(unit, task_name="omat")


@contextlib.contextmanager
def made(name: str, folder: Path) -> Iterator[Any]:
    """The stock calculator of a package; CHGNet's is in float64 inside."""
    if name == "chgnet":
        with zoo.chgnet_calculator() as make:
            yield make()
    else:
        makers: dict[str, Callable[[Path], Any]] = {
            "mace": mace, "matgl": matgl, "sevenn": sevennet, "nequip": nequip, "fairchem": fairchem
        }  # fmt: skip
        yield makers[name](folder) if name in makers else SpringCalculator()


PROPERTIES = {
    "springs": ("energy", "forces", "stress"),
    "chgnet": ("energy", "forces", "stress", "magmoms"),
    "mace": ("energy", "forces", "stress"),
    "matgl": ("energy", "forces", "stress", "magmoms"),
    "sevenn": ("energy", "forces", "stress"),
    "nequip": ("energy", "forces", "stress"),
    "fairchem": ("energy", "forces", "stress"),
}


def script(name: str, folder: Path, world: int | None) -> dict[str, Any]:
    """What an ASE script finds: properties, and positions and cell after some steps of NPT.

    Args:
        name: of the package.
        folder: with what its calculator reads.
        world: virtual ranks; None for the process group, 0 for the stock calculator.
    """
    atoms = structures.crystal((1, 1, 1))
    with made(name, folder) as calculator:
        if world != 0:
            distcompile.distribute(calculator, world=None if world is None else LocalWorld(world))
        atoms.calc = calculator
        found: dict[str, Any] = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces().copy()}
        found["stress"] = atoms.get_stress().copy()
        if "magmoms" in PROPERTIES[name]:
            found["magmoms"] = atoms.get_magnetic_moments().copy()
        run_md(atoms, Md(Ensemble.npt, steps=3, timestep=2.0, temperature=600.0), Output(), lambda _: None)
        if world != 0:
            assert calculator.calculate.graphs.last is not None, "the package still makes graph objects"
    return found | {"positions": atoms.positions, "cell": atoms.cell.array}


@pytest.mark.parametrize("name", list(PROPERTIES))
def test_the_same_script_on_ranks(name: str, tmp_path: Path) -> None:
    """Energy, forces, stress and moments, and the same trajectory: to 1e-8 in float64.

    On two processes, both get all of it; calculators that take long to compile run on three virtual ranks.
    """
    if name != "springs" and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed in this environment")
    if name == "mace":
        torch.save(zoo.mace().model, tmp_path / "small.model")
    elif name == "fairchem":
        zoo.save_uma(tmp_path / "uma.pt")
    if name in ("springs", "mace"):
        answers = run_ranks(2, script, name, tmp_path, None, timeout=300.0)
    else:
        answers = [script(name, tmp_path, 3)]
    expected = script(name, tmp_path, 0)
    for answer in answers:
        assert isinstance(answer, dict), answer
        assert answer.keys() == expected.keys()
        for key, value in answer.items():
            scale = max(1.0, float(np.abs(expected[key]).max()))
            allowed = (1e-8 if name in ("springs", "chgnet", "mace") else 2e-5) * scale
            np.testing.assert_allclose(value, expected[key], rtol=0, atol=allowed, err_msg=f"{name}: {key}")
    assert np.abs(expected["forces"]).max() > 1e-3


def who_is_first() -> bool:
    return distcompile.is_first()


def test_one_rank_is_first() -> None:
    assert run_ranks(2, who_is_first) == [True, False]
    assert distcompile.is_first()


def drift(what: str) -> Any:
    """A script whose second rank does something of its own."""
    atoms = structures.crystal((1, 1, 1))
    atoms.calc = distcompile.distribute(SpringCalculator())
    energy = atoms.get_potential_energy()
    if dist.get_rank() == 1 and what == "positions":
        atoms.positions[2, 0] += 1e-12
    elif dist.get_rank() == 1 and what == "cell":
        atoms.cell[1, 1] += 1e-9
    elif dist.get_rank() == 1 and what == "call":
        atoms.rattle(0.01, seed=5)
        atoms.get_forces()
    elif what == "velocities":
        seed = dist.get_rank()  # the classic mistake
        run_md(atoms, Md(steps=3, seed=seed), Output(), lambda _: None)
    else:
        atoms.rattle(0.02, seed=6)
    atoms.rattle(0.03, seed=7)
    atoms.get_forces()
    return energy


@pytest.mark.parametrize("what", ["positions", "cell", "call", "velocities"])
def test_ranks_that_drift_apart(what: str) -> None:
    """Found at the next evaluation, on both ranks, before it gives numbers."""
    for answer in run_ranks(2, drift, what, timeout=60.0):
        assert isinstance(answer, RankError), answer
        assert "Ranks disagree on the graph" in str(answer)
