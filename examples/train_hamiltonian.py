"""Train a model of Hamiltonians on small sheets of carbon, then infer a sheet that is 100 times larger.

pip install '.[mace,plot]' graph2mat==0.0.13 torch_geometric
python examples/train_hamiltonian.py
python examples/train_hamiltonian.py --epochs 60 --resume
torchrun --nproc-per-node 2 examples/train_hamiltonian.py

The model is graph2mat's with MACE, as its package has it. Its targets are matrices of a tight-binding model, in eV; a
sisl.Hamiltonian that was read from a file of a SIESTA run takes their place as it is.
"""

import argparse
import os
import time
import warnings
from pathlib import Path

import mace.modules  # before e3nn: lets torch load what e3nn 0.4.4 ships
import matplotlib.pyplot as plt
import numpy as np
import sisl
import torch
import torch.distributed as dist
from e3nn import o3
from graph2mat import AtomicTableWithEdges, MatrixDataProcessor
from graph2mat.bindings.torch import TorchBasisMatrixData
from graph2mat.models import MatrixMACE
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

import distcompile
from distcompile import DividedRows

CUTOFF = 3.2  # A: three shells of neighbours
N = 4  # orbitals of an atom: s, and p in three directions

CARBON = sisl.Atom(6, [sisl.AtomicOrbital(n=2, l=i, m=m, R=CUTOFF / 2) for i in (0, 1) for m in range(-i, i + 1)])
TABLE = AtomicTableWithEdges([CARBON])
PROCESSOR = MatrixDataProcessor(basis_table=TABLE, sub_point_matrix=False, out_matrix="hamiltonian")


def sheet(n: int, seed: int) -> sisl.Geometry:
    """n x n cells of graphene, atoms moved by 0.05 A in each direction."""
    geometry = sisl.geom.graphene(1.42, CARBON).repeat(n, 0).repeat(n, 1)
    geometry.xyz[:] += np.random.default_rng(seed).normal(scale=0.05, size=geometry.xyz.shape)
    geometry.optimize_nsc(R=CUTOFF)
    return geometry


def hamiltonian(geometry: sisl.Geometry) -> sisl.Hamiltonian:
    """Slater and Koster's matrix for s and p orbitals, in eV; on an atom, s and p feel how near its neighbours are."""
    H = sisl.Hamiltonian(geometry)
    for atom in range(geometry.na):
        places, others, lengths = geometry.close(atom, R=CUTOFF, ret_xyz=True, ret_rij=True)
        onsite, mine = np.diag([-8.0, 0.0, 0.0, 0.0]), atom * N + np.arange(N)
        for place, other, r in zip(places, others, lengths, strict=True):
            if r < 0.1:  # the atom itself
                continue
            u = TABLE.change_of_basis @ (other - geometry.xyz[atom]) / r
            fade = np.exp(-1.5 * (r - 1.42)) * (1 - (r / CUTOFF) ** 2) ** 2
            block = np.empty((N, N))
            block[0, 0], block[0, 1:], block[1:, 0] = -5.0, 4.7 * u, -4.7 * u
            block[1:, 1:] = (5.5 + 1.55) * np.outer(u, u) - 1.55 * np.eye(3)
            onsite += 0.3 * fade * np.pad(np.outer(u, u), (1, 0), constant_values=0.2)
            for i in range(N):
                H[mine[i], place * N + np.arange(N)] = fade * block[i]
        for i in range(N):
            H[mine[i], mine] = onsite[i]
    return H


def graph(source: sisl.Hamiltonian | sisl.Geometry) -> TorchBasisMatrixData:
    """The graph object of the model, for one structure."""
    data = TorchBasisMatrixData.new(source, data_processor=PROCESSOR, labels=isinstance(source, sisl.Hamiltonian))
    data["batch"] = torch.zeros(len(data["point_types"]), dtype=torch.int64)
    data["ptr"] = torch.tensor([0, len(data["point_types"])])
    return data


def example(seed: int) -> tuple[TorchBasisMatrixData, dict[str, Tensor]]:
    """A graph of 18 atoms, and its targets: elements of the blocks of all atoms, and of all edges."""
    data = graph(hamiltonian(sheet(3, seed)))
    targets = {"node_labels": data["point_labels"], "edge_labels": data["edge_labels"]}
    del data["point_labels"], data["edge_labels"]
    return data, targets


def model() -> MatrixMACE:
    """The model, with few features. It makes a matrix of N x N elements for each atom and each edge."""
    block = mace.modules.RealAgnosticResidualInteractionBlock
    body = mace.modules.MACE(
        r_max=CUTOFF, num_bessel=8, num_polynomial_cutoff=5, max_ell=2, interaction_cls=block,
        interaction_cls_first=block, num_interactions=2, num_elements=1, hidden_irreps=o3.Irreps("8x0e+8x1o"),
        MLP_irreps=o3.Irreps("1x0e"), atomic_energies=torch.zeros(1), avg_num_neighbors=12.0,
        atomic_numbers=torch.tensor([0]), correlation=2, gate=None,
    )  # fmt: skip
    return MatrixMACE(body, unique_basis=TABLE.basis, edge_hidden_irreps=o3.Irreps("4x0e+4x1o+4x2e"))


def loss(result: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """The mean square error of elements, in eV^2."""
    return sum(((result[name] - targets[name]) ** 2).mean() for name in targets)


def train(net: MatrixMACE, folder: Path, epochs: int, resume: bool, lowering: str) -> None:
    """Train on eight sheets in random order; each epoch leaves a checkpoint and the curve of losses."""
    examples = [example(seed) for seed in range(8)]
    step = distcompile.training_step(net, loss, *examples[0], lowering=lowering)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    losses: list[float] = []
    file = folder / "checkpoint.pt"
    if resume:
        kept = torch.load(file, weights_only=True)
        net.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        torch.set_rng_state(kept["random"])
        losses = kept["losses"]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, disable=not distcompile.is_first()) as progress:
        bar = progress.add_task("training", total=epochs, completed=len(losses))
        for epoch in range(len(losses), epochs):
            total = 0.0
            for i in torch.randperm(len(examples)).tolist():
                optimizer.zero_grad()
                total += step(*examples[i]).item()
                optimizer.step()
            losses.append(total / len(examples))
            if distcompile.is_first():
                state = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "losses": losses, "random": torch.get_rng_state()}, file.with_suffix(".new"))
                os.replace(file.with_suffix(".new"), file)  # all of it or nothing
                if epoch + 1 in (epochs // 3, 2 * epochs // 3, epochs):
                    progress.console.print(f"epoch {epoch + 1}: loss {losses[-1]:.12g}", highlight=False)
            progress.update(bar, advance=1, description=f"training, {losses[-1]:.2e}")
    if distcompile.is_first():
        plt.semilogy(range(1, epochs + 1), losses)
        plt.xlabel("epoch")
        plt.ylabel("mean square error (eV$^2$)")
        plt.savefig(folder / "loss.png", dpi=150)


def blocks(flat: DividedRows | Tensor) -> DividedRows | Tensor:
    """Elements as blocks, shape [n, N, N]: the model lists all elements of one block after those of another."""
    if isinstance(flat, Tensor):
        return flat.reshape(-1, N, N)
    order = flat.numbers.argsort()
    return DividedRows(
        flat.values[order].reshape(-1, N, N), flat.numbers[order][:: N * N] // (N * N), flat.rows // (N * N)
    )


def save(folder: Path, result: dict[str, DividedRows | Tensor], data: TorchBasisMatrixData) -> dict:
    """Write blocks of atoms and of edges, a piece for each process, and read the matrices: one for each image."""
    n = len(data["point_types"])
    images = torch.linalg.solve(data["cell"].T, data["shifts"].T).T.round().long()
    own = torch.arange(n).expand(2, n)
    distcompile.save_blocks(folder / "edges", blocks(result["edge_labels"]), data["edge_index"], images, n_atoms=n)
    distcompile.save_blocks(folder / "atoms", blocks(result["node_labels"]), own, n_atoms=n)
    if dist.is_initialized():
        dist.barrier()  # until all pieces are there
    return distcompile.load_blocks(folder / "edges", folder / "atoms")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a model of Hamiltonians, then infer a large structure.")
    parser.add_argument("--epochs", type=int, default=30, help="in all, those before --resume too")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the folder")
    parser.add_argument("--folder", type=Path, default=Path("hamiltonian"), help="for all files")
    parser.add_argument("--lowering", default="kernels", help="eager, or kernels: auto would change roundings midway")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)  # the same weights and the same order on every rank
    net = model()
    train(net, given.folder, given.epochs, given.resume, given.lowering)

    net.eval().requires_grad_(False)
    compiled = distcompile.compile(net, example(0)[0], lowering=given.lowering, gather=False)
    small, large = graph(sheet(6, 100)), graph(sheet(30, 101))
    expected = save(given.folder / "stock", net(small), small)
    found = save(given.folder / "small", compiled(small), small)
    difference = max(abs(found[image] - expected[image]).max() for image in expected)
    start = time.perf_counter()
    matrices = save(given.folder / "large", compiled(large), large)
    if distcompile.is_first():
        print(f"largest difference from the stock model, 72 atoms: {difference:.1e} eV")
        print(f"{len(large['point_types'])} atoms in {time.perf_counter() - start:.1f} s, saved and read again")
        print(f"{len(matrices)} matrices of shape {matrices[0, 0, 0].shape}, one for each image of the cell")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
