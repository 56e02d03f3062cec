"""Systems on which partitions are measured, made in code: the same atoms and neighbours wherever they are made.

bulk          rocksalt, displaced a little            even in every direction
liquid        atoms at random, none too close         even, without planes between which to cut
slab          a crystal with molecules on one side    uneven work: bulk, surface, gas
nanoparticle  a ball in vacuum                        no faces along axes
film          two thin layers of a crystal            wide and flat
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class System:
    """Atoms and their neighbours."""

    name: str
    positions: Tensor  # Shape: [n_atoms, 3], A
    pairs: Tensor
    """Neighbours, each pair in both directions.  # Shape: [2, n_edges], int64"""

    @property
    def work(self) -> Tensor:
        """Rows that follow each atom: itself and the edges to it."""
        return 1.0 + torch.bincount(self.pairs[1], minlength=len(self.positions)).double()


def liquid(n_atoms: int, cutoff: float = 5.5) -> System:
    """As dense as water, periodic: 0.1 atoms/A^3, 70 neighbours within 5.5 A."""
    side = (n_atoms / 0.1) ** (1 / 3)
    cells = int(np.ceil(n_atoms ** (1 / 3)))
    random = np.random.default_rng(1)
    sites = random.permutation(cells**3)[:n_atoms]
    places = np.stack(np.unravel_index(sites, (cells, cells, cells)), 1) + random.uniform(-0.35, 0.35, (n_atoms, 3))
    return _system("liquid", (places * side / cells) % side, np.full(3, side), cutoff)


def bulk(cells: int, cutoff: float = 5.5) -> System:
    """Rocksalt MgO, periodic, 8 atoms a cell."""
    positions = _displaced(_rocksalt((cells, cells, cells)), 0.1)
    box = np.full(3, cells * 4.21)
    return _system("bulk", positions % box, box, cutoff)


def slab(cells: int, cutoff: float = 5.5) -> System:
    """Four cells of MgO, periodic along two axes, under a dilute gas of molecules of three atoms."""
    crystal = _rocksalt((cells, cells, 4))
    random = np.random.default_rng(2)
    side = cells * 4.21
    sites = int(side // 4.0)
    layers = 6
    chosen = random.random((sites, sites, layers)) < np.linspace(0.8, 0.1, layers)
    centres = (np.argwhere(chosen) + 0.5) * np.array([side / sites, side / sites, 4.0]) + [0, 0, 18.0]
    atoms = centres[:, None] + random.normal(size=(len(centres), 3, 3)) * 0.6
    positions = np.concatenate([_displaced(crystal, 0.1), atoms.reshape(-1, 3)])
    positions[:, :2] %= side
    return _system("slab", positions, np.array([side, side, 0.0]), cutoff)


def nanoparticle(radius: float, cutoff: float = 5.5) -> System:
    """A ball of MgO in vacuum.

    Args:
        radius: in A.
        cutoff: in A.
    """
    cells = int(np.ceil(2 * radius / 4.21)) + 1
    positions = _displaced(_rocksalt((cells, cells, cells)), 0.1)
    inside = np.linalg.norm(positions - positions.mean(0), axis=1) < radius
    return _system("nanoparticle", positions[inside], np.zeros(3), cutoff)


def film(cells: int, cutoff: float = 5.5) -> System:
    """One cell of MgO thick, periodic along two axes."""
    positions = _displaced(_rocksalt((cells, cells, 1)), 0.1)
    side = cells * 4.21
    positions[:, :2] %= side
    return _system("film", positions, np.array([side, side, 0.0]), cutoff)


def _rocksalt(repeat: tuple[int, int, int]) -> Array:
    """All sites of a rocksalt crystal of 4.21 A: a simple cubic lattice."""
    sites = np.stack(np.meshgrid(*[np.arange(2 * n) for n in repeat], indexing="ij"), -1).reshape(-1, 3)
    return (sites + 0.25) * 2.105


def _displaced(positions: Array, by: float) -> Array:
    return positions + np.random.default_rng(3).normal(size=positions.shape) * by


def _system(name: str, positions: Array, box: Array, cutoff: float) -> System:
    """Neighbours within the cutoff; `box` is zero along axes that are not periodic."""
    pairs = cKDTree(positions, boxsize=box).query_pairs(cutoff, output_type="ndarray").T
    both = np.concatenate([pairs, pairs[::-1]], axis=1)
    order = np.lexsort(both) if both.shape[1] < 10**6 else np.argsort(both[1], kind="stable")
    return System(name, torch.tensor(positions), torch.tensor(both[:, order]))
