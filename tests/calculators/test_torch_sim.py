"""Models of torch-sim: batches of structures under its own integrators and optimisers, on ranks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import structures
import torch
import zoo

import distcompile
from distcompile import LocalWorld

torch_sim = pytest.importorskip("torch_sim")
pytest.importorskip("mace")

RUNS = {
    "NVE": lambda model, atoms: torch_sim.integrate(atoms, model, integrator=torch_sim.nve, **MOVING),
    "NVT": lambda model, atoms: torch_sim.integrate(atoms, model, integrator=torch_sim.nvt_langevin, **MOVING),
    "NPT": lambda model, atoms: torch_sim.integrate(
        atoms, model, integrator=torch_sim.npt_langevin, external_pressure=torch.tensor(0.0), **MOVING
    ),
    "relaxation of cells": lambda model, atoms: torch_sim.optimize(
        atoms, model, optimizer=torch_sim.frechet_cell_fire, max_steps=6
    ),
}
MOVING = {"n_steps": 4, "temperature": 300.0, "timestep": 0.002}


def stock() -> Any:
    from torch_sim.models.mace import MaceModel

    return MaceModel(copy.deepcopy(zoo.mace("small").model), device=torch.device("cpu"), dtype=torch.float64)


def state() -> Any:
    two = [structures.crystal((2, 1, 1)), structures.small_cell()]
    return torch_sim.io.atoms_to_state(two, device=torch.device("cpu"), dtype=torch.float64)


def test_runs() -> None:
    """The wrapper makes graphs with NumPy, so the model within is distributed. All quantities are those of stock."""
    ours = distcompile.distribute(stock(), world=LocalWorld(2))
    with pytest.warns(UserWarning, match="MaceModel cannot be captured .*, so the ScaleShiftMACE that it calls is"):
        ours(state())
    for name, run in RUNS.items():
        found = []
        for model in (stock(), ours):
            torch.manual_seed(1)
            found.append(run(model, state()))
        expected, divided = found
        assert float((expected.positions - state().positions).abs().max()) > 1e-4, name
        for quantity in ("positions", "cell", "energy", "forces"):
            difference = (getattr(divided, quantity) - getattr(expected, quantity)).abs().max()
            assert float(difference) < 1e-9, (name, quantity)
