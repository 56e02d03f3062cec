"""The tensor of a graph object that is the positions, and the result that is the energy: found by their properties.

positions   real, [n_atoms, 3]; of several, the one by which an energy has the negative forces for its gradient
energy      real, one element
forces      a result in the shape of the positions
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..api import compile
from ..check.validate import CHECKED
from ..errors import DerivativeError, NoIndexSpaceError
from ..ir.tree import Leaf, flatten
from ..model import DistributedModel
from .products import Choice, Products

Args = tuple[Any, ...]
Picks = Callable[..., Tensor]
PARALLEL = 1e-4
"""Largest difference of a gradient and the forces, relative to the largest force, in float32 too."""
NOTHING = 1e-6
"""Forces and gradients below it (eV/A) are rounding: of one atom, say."""
STEP = 0.01
"""The length of the steps by which positions are changed to compare forces: at rest there are no forces to compare."""


@dataclasses.dataclass(frozen=True)
class Derivatives:
    """An energy and the positions that it is differentiated by, compiled."""

    compiled: DistributedModel
    products: Products

    def leaf(self, args: Args) -> Tensor:
        """The positions among a model's arguments."""
        return next(leaf.tensor for leaf in flatten(args)[0] if leaf.path == self.products.positions)

    def gradient(self, args: Args) -> Tensor:
        """The gradient of the energy. It is checked to be the gradient that the model returns.

        Raises:
            DerivativeError: what the model differentiates is not the energy that it returns without a gradient.
        """
        named, energy, gradient, _ = self.compiled(*args, _weights(self.leaf(args)))
        if not torch.isclose(named, energy, rtol=PARALLEL):
            raise DerivativeError(
                f"The energy that the model returns ({float(named):.6g}) carries no gradient, and it takes its forces "
                f"of another number ({float(energy):.6g}). Return the energy without detaching it, or name it with "
                "energy=."
            )
        return gradient  # type: ignore[no-any-return]

    def product(self, args: Args, weights: Tensor) -> Tensor:
        """The second derivatives times weights in the shape of the positions."""
        return self.compiled(*args, weights)[3]  # type: ignore[no-any-return]


def derivatives(model: DistributedModel, args: Args, positions: str, energy: Choice) -> Derivatives:
    """Products with second derivatives for what a compiled model calls, compiled once.

    Raises:
        DerivativeError: the energy does not depend on the positions, or carries no gradient.
    """
    products = Products(model.stock, model.module, positions, energy)
    if products not in model.derived:
        model.derived[products] = _compiled(products, model, args)
    return Derivatives(model.derived[products], products)


def _compiled(products: Products, model: DistributedModel, args: Args) -> DistributedModel:
    leaf = next(leaf.tensor for leaf in flatten(args)[0] if leaf.path == products.positions)
    how = model.settings
    given = (*args, _weights(leaf))
    with warnings.catch_warnings():
        if leaf.numel() // 3 <= 2 * CHECKED:  # it is checked on this graph itself
            warnings.filterwarnings("ignore", "distcompile could not check")
        compiled = compile(products, given, world=how.world, lowering=how.lowering, memory=how.memory)
    compiled.trains = False
    return compiled


def _weights(leaf: Tensor) -> Tensor:
    """Weights of which no two are the same: a sum over all atoms is zero, and must not be all that is compared."""
    return torch.linspace(-0.5, 1.5, leaf.numel(), dtype=leaf.dtype, device=leaf.device).reshape(leaf.shape)


def found(model: DistributedModel, args: Args, positions: Picks | None, energy: Choice) -> Derivatives:
    """The derivatives that the caller means, among those that a model's arguments and result allow.

    Args:
        model: a compiled model.
        args: its arguments.
        positions: picks the positions from the arguments; by default they are found.
        energy: picks the energy from the result; by default it is found.

    Raises:
        DerivativeError: nothing, or more than one thing, can be meant; names what there is.
    """
    results = tensors(model(*args))
    paths = [picked(args, positions)] if positions is not None else positions_in(model, args, results)
    energies: list[Choice] = [energy] if energy is not None else energies_in(results)
    said = _said(args, paths, results)
    possible: list[Derivatives] = []
    reason: DerivativeError | None = None
    for path, choice in itertools.product(paths, energies):
        try:
            one = derivatives(model, args, path, choice)
            one.gradient(args)
        except DerivativeError as error:
            reason = error
            continue
        possible.append(one)
        if len(paths) * len(energies) > 1 and _is_of_forces(one, model, args):
            return one
    if len(possible) == 1:
        return possible[0]
    if reason is not None and not possible and len(paths) * len(energies) == 1:
        raise reason
    what = "None of" if not possible else "Several of"
    raise DerivativeError(f"{what} the tensors of the graph and of the result can be meant. {said}")


def _is_of_forces(one: Derivatives, model: DistributedModel, args: Args) -> bool:
    """True if the negative gradient is a result of the model, at positions where atoms are not at rest."""
    places, tree = flatten(args)
    random = torch.Generator().manual_seed(0)
    moved = []
    for leaf in places:
        step = torch.randn(leaf.tensor.shape, generator=random) if leaf.path == one.products.positions else None
        moved.append(leaf.tensor if step is None else leaf.tensor.detach() + STEP * step.to(leaf.tensor))
    args = tree.unflatten(moved)
    gradient = one.gradient(args)
    forces = [r.tensor for r in tensors(model(*args)) if r.tensor.shape == gradient.shape]
    return any(abs(factor(gradient, f) - 1) < PARALLEL for f in forces)


def factor(gradient: Tensor, forces: Tensor) -> float:
    """The number by which a gradient has to be multiplied to give the negative forces; 0 if there is none."""
    one, other = gradient.detach().double().flatten(), forces.detach().double().flatten()
    if max(one.abs().max(), other.abs().max()) < NOTHING:
        return 1.0
    if not one.any():
        return 0.0
    times = -(one @ other) / (one @ one)
    return float(times) if (times * one + other).abs().max() <= PARALLEL * other.abs().max() else 0.0


def tensors(obj: Any) -> list[Leaf]:
    """The real tensors of a graph object or a result."""
    return [leaf for leaf in flatten(obj)[0] if isinstance(leaf.tensor, Tensor) and leaf.tensor.is_floating_point()]


def energies_in(results: Sequence[Leaf]) -> list[Choice]:
    """Paths of the results that may be an energy."""
    return [leaf.path for leaf in results if leaf.tensor.numel() == 1]


def positions_in(model: DistributedModel, args: Args, results: Sequence[Leaf]) -> list[str]:
    """Paths of the tensors that may be positions: three numbers for each atom, a row of the first space.

    Where there is nothing to divide, atoms are not known. Then a tensor in the shape of the forces is taken, or any
    tensor of three numbers a row if there is none.
    """
    rows = [leaf for leaf in tensors(args) if leaf.tensor.dim() == 2 and leaf.tensor.shape[1] == 3]
    try:
        program = model.executor_for(*args).program
    except NoIndexSpaceError:
        shapes = [r.tensor.shape for r in results]
        return [leaf.path for leaf in rows if leaf.tensor.shape in shapes] or [leaf.path for leaf in rows]
    sizes = zip(flatten(args, counts=True)[0], program.captured.sizes, strict=True)
    counted = [(leaf.path, program.space_of(program.size(shape[0]))) for leaf, shape in sizes if shape]
    atoms = {path for path, space in counted if space is program.spaces[0]}
    return [leaf.path for leaf in rows if leaf.path in atoms]


def picked(args: Args, positions: Picks) -> str:
    """Path of the tensor that the user's function picks from the arguments."""
    wanted = positions(*args)
    for leaf in tensors(args):
        if leaf.tensor is wanted and leaf.tensor.shape[-1:] == (3,):
            return leaf.path
    raise DerivativeError(
        "positions= must return a real tensor of the graph itself, three numbers for each atom, not one that is "
        f"computed from it. {_said(args, (), ())}"
    )


def _said(args: Args, paths: Sequence[str], results: Sequence[Leaf]) -> str:
    """A sentence on the tensors that there are to choose from."""

    def listed(leaves: Sequence[Leaf]) -> str:
        return ", ".join(f"{leaf.path} {list(leaf.tensor.shape)}" for leaf in leaves) or "nothing"

    likely = [leaf for leaf in tensors(args) if not paths or leaf.path in paths]
    text = f"Positions may be {listed(likely)} of the arguments: choose with positions=lambda graph: ..."
    return f"{text}; the energy may be of {listed(results)}: choose with energy=lambda result: ..." if results else text
