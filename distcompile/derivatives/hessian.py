"""``distcompile.hessian``: second derivatives of an energy by the positions, row by row, on any ranks.

One compiled program gives the product of the second derivatives with one vector; a row of the Hessian is the product
with a vector that is one in one place. Memory is that of one product, however many rows there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..api import compiled_for
from ..calculators.calculator import calculate, distribute, forget, received
from ..errors import DerivativeError
from ..model import DistributedModel, Settings, arguments
from ..runtime.world import World, default_world
from ..show.progress import counting
from .candidates import Args, Derivatives, Picks, derivatives, energies_in, factor, found, tensors
from .products import Choice

if TYPE_CHECKING:
    from ase import Atoms

Rows = Sequence[int] | range | slice | None
SHAKE = 0.02
"""Length in A of the steps by which a structure's atoms are moved to compare forces: at rest there are none."""
NEAR = 1e-3
"""Difference in A below which two positions are the same, in float32 too."""


def hessian(
    model: nn.Module | Callable[..., Any],
    graph: Any,
    rows: Rows = None,
    *,
    positions: Picks | None = None,
    energy: Callable[[Any], Tensor] | None = None,
    world: World | None = None,
    memory: int | None = None,
) -> Tensor:
    """Second derivatives of the energy by the positions of atoms.

    Every rank has to call it, with the same arguments. A calculator is distributed, in place, if it was not before.

    Args:
        model: a module or a function that takes `graph`, a compiled model, or an ASE calculator.
        graph: a graph object (a tuple for several positional inputs), or ``ase.Atoms`` for a calculator.
        rows: atoms whose rows are wanted (numbers, a range or a slice); all by default.
        positions: picks the positions, a tensor of three numbers for each atom, from the graph object. By default they
            are found: of a calculator's, the tensor that holds the structure's positions, Cartesian or fractional.
        energy: picks the energy from what the model returns. By default it is the one real number there, or of several
            the one whose negative gradient is the forces.
        world: the ranks that execute; by default those of `model`, or the default process group, or one rank.
        memory: bytes that a rank may use for one evaluation.

    Returns:
        ``[len(rows), 3, n_atoms, 3]``, whole on every rank. Of a calculator it is in eV/A^2 and in float64 (with the
        accuracy of the model); of a model in the units, the precision and on the device of its energy and positions.

    Raises:
        DerivativeError: what the energy or the positions are is not clear, the model detaches them, or a calculator's
            forces are not the gradient of the energy by a tensor of its graph.
        CaptureError, UnsupportedOp, ValidationError: as of `distcompile.compile`.
    """
    from ase import Atoms  # slow to import, and needed for calculators only

    if isinstance(graph, Atoms):
        return _of_calculator(model, graph, rows, positions, energy, world, memory)
    args = arguments(graph)
    compiled = _compiled(model, graph, world, memory)
    chosen = found(compiled, args, positions, energy)
    leaf = chosen.leaf(args)
    return _rows(chosen, args, rows, torch.eye(3, dtype=leaf.dtype, device=leaf.device))


def _compiled(model: Any, graph: Any, world: World | None, memory: int | None) -> DistributedModel:
    """A model that is compiled: as it was given, or compiled now."""
    if not isinstance(model, DistributedModel):
        return compiled_for(model, graph, Settings(default_world() if world is None else world, memory))[0]
    other = model if world in (None, model.world) else model.on(world)
    if memory is not None and memory != other.settings.memory:
        return compiled_for(model.stock, graph, dataclasses.replace(other.settings, memory=memory))[0]
    return other


def _of_calculator(
    calculator: Any,
    atoms: Atoms,
    rows: Rows,
    positions: Picks | None,
    energy: Choice,
    world: World | None,
    memory: int | None,
) -> Tensor:
    distribute(calculator, world, memory)
    shaken = atoms.copy()
    shaken.positions += SHAKE * np.random.default_rng(0).standard_normal(shaken.positions.shape)
    try:
        calculate(calculator, shaken)
        forces = torch.as_tensor(calculator.results["forces"])
        model, args = received(calculator, shaken)
    finally:
        forget(calculator)  # its results are those of the moved atoms
    model = _compiled(model, args, world, memory)
    chosen, scale, frame = _of_forces(model, args, shaken, forces, positions, energy)
    here = received(calculator, atoms)[1]
    return scale * _rows(chosen, here, rows, frame)


def _of_forces(
    model: DistributedModel, args: Args, atoms: Atoms, forces: Tensor, positions: Picks | None, energy: Choice
) -> tuple[Derivatives, float, Tensor]:
    """The derivatives whose gradient is a calculator's forces, the factor between them, and the map of positions."""
    frames = _frames(args, atoms, positions)
    energies: list[Choice] = [energy] if energy is not None else [*energies_in(tensors(model(*args))), None]
    reasons = [] if frames else ["no tensor of the graph that the model is given holds the positions"]
    for (path, frame), choice in ((frame, choice) for frame in frames for choice in energies):
        try:
            one = derivatives(model, args, path, choice)
            times = factor(one.gradient(args).double().cpu() @ frame.T, forces)
        except DerivativeError as error:
            reasons.append(str(error))
            continue
        if times:
            return one, times, frame
        reasons.append(f"that of {_called(choice)} by {path} is another")
    raise DerivativeError(
        f"The forces of this calculator are not the gradient of an energy of its model by one tensor of the graph "
        f"({'; '.join(dict.fromkeys(reasons))}). Graphs that hold vectors of edges instead of positions, forces that a "
        "model predicts directly, and sums of several models or corrections are such. Take differences of forces "
        "(ase.vibrations.Vibrations), or pass the model and its graph, with positions= and energy=."
    )


def _called(energy: Choice) -> str:
    if energy is None:
        return "what the model differentiates"
    return f"result{energy}" if isinstance(energy, str) else "what energy= picks"


def _frames(args: Args, atoms: Atoms, positions: Picks | None) -> list[tuple[str, Tensor]]:
    """The tensors that hold the positions.

    With each, the matrix that turns a step of an atom in A into a step of its row.
    """
    inverse = torch.tensor(np.linalg.inv(atoms.cell.complete().array))
    frames = []
    for leaf in tensors(args):
        if leaf.tensor.shape != (len(atoms), 3) or (positions is not None and leaf.tensor is not positions(*args)):
            continue
        values = leaf.tensor.detach().double().cpu().numpy()
        if _is_at(values, atoms):
            frames.append((leaf.path, torch.eye(3, dtype=torch.float64)))
        elif atoms.cell.rank == 3 and _is_at(values @ atoms.cell.array, atoms):
            frames.append((leaf.path, inverse))
    return frames


def _is_at(values: Any, atoms: Atoms) -> bool:
    """True if positions are those of a structure, except for whole cells and a shift of all atoms."""
    apart = values - atoms.positions
    cells = np.linalg.solve(atoms.cell.complete().array.T, (apart - apart[0]).T).T
    cells -= np.where(atoms.pbc & atoms.cell.any(1), np.round(cells), 0)
    return bool(np.abs(cells @ atoms.cell.complete().array).max() < NEAR)


def _numbers(rows: Rows, n_atoms: int) -> list[int]:
    """The numbers of the chosen atoms."""
    if rows is None or isinstance(rows, slice):
        return list(range(n_atoms)[rows or slice(None)])
    wanted = [int(i) for i in rows]
    if bad := [i for i in wanted if not -n_atoms <= i < n_atoms]:
        raise DerivativeError(f"rows= names atom {bad[0]}, but there are {n_atoms} atoms, from 0 to {n_atoms - 1}.")
    return [i % n_atoms for i in wanted]


def _rows(chosen: Derivatives, args: Args, rows: Rows, frame: Tensor) -> Tensor:
    """Rows of the Hessian, by steps of atoms that `frame` turns into steps of the positions among the arguments."""
    leaf = chosen.leaf(args)
    numbers = _numbers(rows, leaf.numel() // 3)
    result = frame.new_zeros(len(numbers), 3, leaf.numel() // 3, 3)
    turn = frame.to(leaf)
    with counting("Hessian", 3 * len(numbers)) as done:
        for i, atom in enumerate(numbers):
            for component in range(3):
                weights = torch.zeros_like(leaf, requires_grad=False).reshape(-1, 3)
                weights[atom] = turn[component]
                product = chosen.product(args, weights.reshape(leaf.shape)).reshape(-1, 3)
                result[i, component] = product.to(frame) @ frame.T
                done()
    return result
