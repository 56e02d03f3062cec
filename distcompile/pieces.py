"""Results that stay divided, in files: a piece for each process, readable as matrices of blocks.

    dmodel = distcompile.compile(model, graph, gather=False)
    distcompile.save_blocks("hamiltonian", dmodel(graph)["blocks"], graph["edge_index"], images)
    matrices = distcompile.load_blocks("hamiltonian")       # one sparse matrix for each image of the cell

A matrix over orbitals of atoms, such as a Hamiltonian, has a block for each edge: the row of atoms is that of the
edge's first atom, the column that of its second one, in the image of the cell that the edge points into.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .files import replacing
from .runtime.division.shard import DividedRows
from .runtime.world import ProcessGroupWorld, World, default_world

if TYPE_CHECKING:
    from scipy.sparse import bsr_array

Image = tuple[int, int, int]


def save_blocks(
    folder: str | Path,
    blocks: DividedRows | Tensor,
    edges: Tensor,
    images: Tensor | None = None,
    *,
    n_atoms: int,
    world: World | None = None,
) -> None:
    """Write the blocks of this process, with the atoms that they belong to. Every process has to call it.

    Args:
        folder: made if it is not there. Use one for each result.
        blocks: rows of shape [n_edges, p, q], divided or (as of a model in which nothing was divided) whole.
        edges: first and second atom of all edges. Shape: [2, n_edges]. For blocks of atoms, both are the atom.
        images: the image of the cell that the second atom is in; none is periodic if None. Shape: [n_edges, 3].
        n_atoms: number of atoms.
        world: the ranks that execute; the default process group if there is one.

    Raises:
        InputError: shapes do not fit each other, or edges name atoms that there are not.
    """
    world = default_world() if world is None else world
    rank, ranks = (world.rank, world.size) if isinstance(world, ProcessGroupWorld) else (0, 1)
    if isinstance(blocks, Tensor):  # every process has all
        mine = torch.arange(rank, len(blocks), ranks, device=blocks.device)
        blocks = DividedRows(blocks[mine], mine, len(blocks))
    if blocks.values.dim() != 3 or blocks.dim != 0:
        raise InputError(f"blocks have shape {tuple(blocks.values.shape)}: [n_edges, p, q] is expected.")
    if tuple(edges.shape) != (2, blocks.rows) or (images is not None and tuple(images.shape) != (blocks.rows, 3)):
        raise InputError(
            f"There are {blocks.rows} blocks in all: edges must have shape (2, {blocks.rows}) and images "
            f"({blocks.rows}, 3), not {tuple(edges.shape)}{'' if images is None else f' and {tuple(images.shape)}'}."
        )
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < n_atoms:
        raise InputError(
            f"edges name atoms {int(edges.min())} to {int(edges.max())}, but n_atoms={n_atoms}: atoms are numbered "
            f"from 0 to {n_atoms - 1}. Give the number of atoms of the whole structure."
        )
    numbers = blocks.numbers.cpu()
    here: dict[str, Any] = {
        "values": blocks.values.detach().cpu().numpy(),
        "numbers": numbers.numpy(),
        "edges": edges.cpu()[:, numbers].numpy(),
        "images": np.zeros((len(numbers), 3), np.int64) if images is None else images.cpu()[numbers].numpy(),
        "rows": blocks.rows,
        "n_atoms": n_atoms,
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    with replacing(Path(folder) / f"piece-{rank:05d}-of-{ranks:05d}.npz") as path:
        np.savez(path, **here)


def load_blocks(*folders: str | Path) -> dict[Image, bsr_array]:
    """The matrices that were saved, for each image of the cell; those of several folders are added up.

    Returns:
        Block-sparse matrices with ``n_atoms * p`` rows and ``n_atoms * q`` columns.

    Raises:
        InputError: a piece is missing, or damaged, or pieces are of several results.
    """
    matrices: dict[Image, Any] = {}
    for folder in folders:
        for image, matrix in _of_folder(Path(folder)).items():
            matrices[image] = matrices[image] + matrix if image in matrices else matrix
    return matrices


def _of_folder(folder: Path) -> dict[Image, bsr_array]:
    from scipy.sparse import bsr_array

    pieces = [_piece(path) for path in _paths(folder)]
    values, edges, images = (
        np.concatenate([piece[name] for piece in pieces], axis)
        for name, axis in (("values", 0), ("edges", 1), ("images", 0))
    )
    numbers = np.sort(np.concatenate([piece["numbers"] for piece in pieces]))
    rows, n_atoms = int(pieces[0]["rows"]), int(pieces[0]["n_atoms"])
    same = all(int(p["rows"]) == rows and int(p["n_atoms"]) == n_atoms for p in pieces)
    if not same or not np.array_equal(numbers, np.arange(rows)):
        raise InputError(f"The pieces in {folder} are of several results. Save each in a folder of its own.")
    found = {}
    p, q = values.shape[1:]
    for image in np.unique(images, axis=0):
        mine = (images == image).all(1)
        first, second = edges[:, mine]
        order = np.lexsort((second, first))
        starts = np.searchsorted(first[order], np.arange(n_atoms + 1))
        matrix = bsr_array((values[mine][order], second[order], starts), shape=(n_atoms * p, n_atoms * q))
        found[int(image[0]), int(image[1]), int(image[2])] = matrix
    return found


def _paths(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("piece-*-of-*.npz"))
    if not paths:
        raise InputError(f"There are no blocks in {folder}: save_blocks writes files named piece-00000-of-00001.npz.")
    counts = {path.stem.split("-of-")[1] for path in paths}
    if len(counts) > 1 or len(paths) != int(next(iter(counts))):
        of = " and ".join(str(int(count)) for count in sorted(counts))
        raise InputError(
            f"{folder} holds {len(paths)} pieces, of {of} processes. Copy the missing ones, or save the result once "
            "more in an empty folder."
        )
    return paths


def _piece(path: Path) -> dict[str, Any]:
    try:
        with np.load(path) as held:
            return {name: held[name] for name in ("values", "numbers", "edges", "images", "rows", "n_atoms")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged or no piece of a result: {error}. Save the result once more.") from error
