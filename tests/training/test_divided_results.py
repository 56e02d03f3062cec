"""Results of edges may stay divided: no rank holds them whole, and files are written in pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structures
import torch
from processes import run_ranks

import distcompile
from distcompile import DividedRows, InputError, LocalWorld, load_blocks, save_blocks
from training.models import Model, given
from training.test_training_step import CRYSTAL

MODEL = Model().eval()


def compiled(ranks: int) -> Any:
    return distcompile.compile(MODEL, given(CRYSTAL)[0], world=LocalWorld(ranks), lowering="eager", gather=False)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("atoms", [structures.film(), structures.small_cell()], ids=["film", "small cell"])
def test_rows_and_their_numbers(ranks: int, atoms: Any) -> None:
    """Put together they are the stock model's; what has no rows is whole."""
    graph, _ = given(atoms)
    expected, found = MODEL(graph), compiled(ranks)(graph)
    torch.testing.assert_close(found["energy"], expected["energy"].detach(), rtol=1e-9, atol=1e-9)
    for name in ("blocks", "forces"):
        rows = found[name]
        assert isinstance(rows, DividedRows) and rows.rows == len(expected[name]) and rows.dim == 0
        whole = torch.empty_like(rows.values).index_copy_(0, rows.numbers, rows.values)
        torch.testing.assert_close(whole, expected[name].detach(), rtol=1e-9, atol=1e-9)
        assert not rows.values.requires_grad


def matrices(folder: Path, ranks: int) -> dict[Any, Any]:
    """Saved by a number of virtual ranks, and read."""
    atoms = structures.film()
    graph, _ = given(atoms)
    images = torch.tensor(np.linalg.solve(atoms.cell.array.T, graph["shifts"].numpy().T).T).round().long()
    save_blocks(folder, compiled(ranks)(graph)["blocks"], graph["edges"], images, n_atoms=len(atoms))
    return load_blocks(folder)


def test_matrices_of_blocks(tmp_path: Path) -> None:
    """Each block is where its edge points, by image of the cell."""
    atoms = structures.film()
    graph, _ = given(atoms)
    found = matrices(tmp_path / "one", 3)
    blocks = MODEL(graph)["blocks"].detach().numpy()
    total = sum(np.abs(m.toarray()).sum() for m in found.values())
    np.testing.assert_allclose(total, np.abs(blocks).sum(), rtol=1e-9)
    images = np.linalg.solve(atoms.cell.array.T, graph["shifts"].numpy().T).T.round().astype(int)
    for at in (0, 17, len(blocks) - 1):
        i, j = graph["edges"][:, at].tolist()
        matrix = found[tuple(images[at].tolist())].toarray()
        assert matrix.shape == (2 * len(atoms), 2 * len(atoms))
        np.testing.assert_allclose(matrix[2 * i : 2 * i + 2, 2 * j : 2 * j + 2], blocks[at], rtol=1e-9, atol=1e-12)
    other = matrices(tmp_path / "two", 1)
    twice = load_blocks(tmp_path / "one", tmp_path / "two")
    for image, matrix in twice.items():
        np.testing.assert_allclose(matrix.toarray(), found[image].toarray() + other[image].toarray(), rtol=1e-9)


def _save(folder: str) -> tuple[int, int]:
    atoms = structures.film()
    graph, _ = given(atoms)
    dmodel = distcompile.compile(Model().eval(), given(CRYSTAL)[0], lowering="eager", gather=False, validate=False)
    rows = dmodel(graph)["blocks"]
    save_blocks(folder, rows, graph["edges"], n_atoms=len(atoms))
    return len(rows.numbers), rows.rows


def test_processes_write_a_piece_each(tmp_path: Path) -> None:
    """Each has its part of the rows; a piece that is missing or damaged is named."""
    counts = run_ranks(2, _save, str(tmp_path))
    assert all(0 < n < rows for n, rows in counts) and sum(n for n, _ in counts) == counts[0][1]
    graph, _ = given(structures.film())
    (found,) = load_blocks(tmp_path).values()
    np.testing.assert_allclose(found.sum(), MODEL(graph)["blocks"].detach().numpy().sum(), rtol=1e-9)
    second = tmp_path / "piece-00001-of-00002.npz"
    content = second.read_bytes()
    second.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"piece-00001-of-00002.npz is damaged"):
        load_blocks(tmp_path)
    second.unlink()
    with pytest.raises(InputError, match="1 pieces, of 2 processes"):
        load_blocks(tmp_path)
    with pytest.raises(InputError, match="no blocks"):
        load_blocks(tmp_path / "nothing")


def _save_whole(folder: str) -> int:
    atoms = structures.film()
    graph, _ = given(atoms)
    save_blocks(folder, Model().eval()(graph)["blocks"], graph["edges"], n_atoms=len(atoms))
    return int(sum(len(np.load(path)["numbers"]) for path in Path(folder).glob(f"piece-{rank():05d}-*.npz")))


def rank() -> int:
    return torch.distributed.get_rank()


def test_processes_share_what_each_has_whole(tmp_path: Path) -> None:
    """Every block is in one piece."""
    counts = run_ranks(2, _save_whole, str(tmp_path))
    graph, _ = given(structures.film())
    blocks = MODEL(graph)["blocks"].detach().numpy()
    assert abs(counts[0] - counts[1]) <= 1 and sum(counts) == len(blocks)
    (found,) = load_blocks(tmp_path).values()
    np.testing.assert_allclose(found.sum(), blocks.sum(), rtol=1e-9)


def test_blocks_that_do_not_fit() -> None:
    """Shapes are checked before anything is written."""
    blocks = torch.zeros(5, 2, 2)
    with pytest.raises(InputError, match=r"\(2, 5\)"):
        save_blocks("nowhere", blocks, torch.zeros(2, 4, dtype=torch.int64), n_atoms=3)
    with pytest.raises(InputError, match=r"\[n_edges, p, q\]"):
        save_blocks("nowhere", blocks[:, 0], torch.zeros(2, 5, dtype=torch.int64), n_atoms=3)
    with pytest.raises(InputError, match=r"atoms 0 to 4, but n_atoms=3.*from 0 to 2"):
        save_blocks("nowhere", blocks, torch.tensor([[0, 1, 2, 0, 1], [1, 0, 1, 4, 2]]), n_atoms=3)
    assert not Path("nowhere").exists()
