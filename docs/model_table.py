"""Make the table of models: run every model of the test zoo that this environment has, or join such tables.

python docs/model_table.py --run > part      rows of this environment
python docs/model_table.py --run eSEN        one row
python docs/model_table.py part1 part2       the page
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

RANKS = (1, 2, 3)
HEAD = """# Models

Stock from their wheels, with no code for any of them. Each was captured once, then run on a crystal with a vacancy, a
film in vacuum and a cell smaller than the cutoff, on 1, 2 and 3 ranks, and every output compared with the stock model.
The difference is relative to the largest value of the output (outputs below 1e-3 are taken as 1e-3). Made by
`make models`.

| model | package | outputs | precision | largest difference | capture s | operators | collectives | index spaces |
|---|---|---|---|---|---|---|---|---|"""

TAIL = """
## Tried by hand

Random weights, results compared with the stock model on 1, 2 and 3 ranks. Equal to 2e-14, or as said:

- DimeNet++, DimeNet and ViSNet of PyTorch Geometric
- SchNet, FieldSchNet, PaiNN and SO3net of schnetpack
- the equivariant transformer, TensorNet and graph networks of TorchMD-Net
- Orb v2 and v3 (3e-14)
- AIMNet2 without its long-range terms, NewtonNet, and ALIGNN-FF with all three of its convolutions (5e-15)
- ANI of torchani, molecules, with its own neighbour search (4e-16)
- So3krates and SO3LR (1.5e-13), GotenNet (2.3e-13), AlphaNet (1.1e-14)
- UMA's mixture of experts, merged or not, gradient or direct forces, one structure at a time (5e-14)
- MACE's models of dipoles and polarizabilities, its interactions, radial functions and several heads (4e-14)
- matgl's QET and MEGNet (2e-14)
- the backend of PET (9e-15)
- DeePMD's se_e2_a, DPA1, DPA2 and DPA3 on atoms with their images given (5e-15)
- graph-pes' pair potentials, SchNet, PaiNN, TensorNet and NequIP (3e-13)
- torch-sim's pair potentials, one system at a time (3e-15)
- Ewald, PME and P3M sums of torch-pme behind a network of charges (2e-14)
- HIP-NN, its vectors and quadrupoles, and HIP-HOP-NN of hippynn (8e-15)
- NEP of torchnep with ZBL (1e-14)
- Nequix (4e-15)
- FlashCart (2e-14)
- TACE (3e-15)
- MatRIS (4e-15)
- FAENet (8e-14)
- CliffordIP (9e-15)
- in float32, MatterSim's M3GNet (6e-7), fairchem's EScAIP with direct forces (2e-6), Eqnorm (2e-6), HIENet (3e-6)
  and the PaiNN of pyiann (9e-7)"""

DISTRIBUTIONS = {"mace": "mace-torch", "allegro": "nequip-allegro", "fairchem": "fairchem-core"}
"""Packages that are installed by another name than they are imported by."""


def rows(names: list[str]) -> list[str]:
    """One line of the table for each model whose package is installed; of these, if any are named."""
    import zoo

    return [row(name) for name in names or zoo.MODELS if zoo.is_installed(name)]


def row(name: str) -> str:
    """The line of one model, from a run on three structures."""
    import structures
    import zoo

    from distcompile.testing import check_model

    package, make = zoo.MODELS[name]
    case, package = make(), DISTRIBUTIONS.get(package, package)
    first, *others = [case.graph(s()) for s in (structures.crystal, structures.film, structures.small_cell)]
    report = check_model(case.model, first, others, RANKS, model_kwargs=case.kwargs)
    outputs = len({d.output for d in report.differences})
    version = importlib.metadata.version(package)
    return (
        f"| {name} | {package} {version} | {outputs} | {report.dtype} | {report.worst:.0e} | "
        f"{report.capture_seconds:.0f} | {report.operators} | {report.collectives} | {', '.join(report.spaces)} |"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        print("\n".join(rows(sys.argv[2:])))
    else:
        lines = [line for path in sys.argv[1:] for line in Path(path).read_text().splitlines() if line.startswith("|")]
        by_model = {line.split("|")[1]: line for line in reversed(lines)}  # both environments may have its package
        print("\n".join([HEAD, *reversed(by_model.values()), TAIL]))
