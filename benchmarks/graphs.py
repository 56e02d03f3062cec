"""Graph objects of the package beside those that were learned of it: results along dynamics, and seconds of a step.

    python benchmarks/graphs.py --models mace chgnet matgl:TensorNet --structures crystal film cluster --steps 200

Each model's stock ASE calculator moves a structure by Langevin dynamics (NPT where all directions are periodic). The
distributed one evaluates the same structures, on virtual ranks. Printed are the largest differences of the energy (eV
an atom), forces (eV/A) and stress (eV/A^3) from the stock calculator's along the way, how many steps went around the
package, and milliseconds of a step of each.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import units
from ase.md.langevin import Langevin
from ase.md.nptberendsen import NPTBerendsen
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

sys.path[:0] = [str(Path(__file__).parent.parent / "tests"), str(Path(__file__).parent.parent / "tests" / "models")]

import distcompile  # noqa: E402
from distcompile import LocalWorld  # noqa: E402


def calculator(name: str, dtype: str = "float64") -> Any:
    """A stock ASE calculator, by the name of its model in tests/zoo.py; with a dtype where a package takes one."""
    import zoo

    family, _, rest = name.partition(":")
    if family == "mace":
        from mace.calculators import MACECalculator

        path = Path(tempfile.mkdtemp()) / "mace.model"
        torch.save(zoo.mace(rest or "small").model, path)
        return MACECalculator(model_paths=str(path), default_dtype=dtype, device="cpu")
    if family == "chgnet":
        from chgnet.model.dynamics import CHGNetCalculator

        return CHGNetCalculator(use_device="cpu")
    if family == "matgl":
        from matgl.ext.ase import PESCalculator

        return PESCalculator(copy.deepcopy(zoo.matgl(rest).model), stress_unit="eV/A3")
    if family == "sevennet":
        from sevenn.calculator import SevenNetCalculator

        return SevenNetCalculator("7net-0", device="cpu")
    if family == "nequip":
        from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
        from nequip.integrations.ase import NequIPCalculator

        model = copy.deepcopy(zoo.nequip(rest or "NequIP").model).eval()
        transforms = [ChemicalSpeciesToAtomTypeMapper(list(zoo.MATGL_ELEMENTS)), NeighborListTransform(r_max=4.5)]
        return NequIPCalculator(model, device="cpu", transforms=transforms)
    if family == "fairchem":
        from fairchem.core.calculate.ase_calculator import FAIRChemCalculator
        from fairchem.core.units.mlip_unit.api.inference import InferenceSettings
        from fairchem.core.units.mlip_unit.predict import MLIPPredictUnit

        path = Path(tempfile.mkdtemp()) / "uma.pt"
        zoo.save_uma(path)
        settings = InferenceSettings(base_precision_dtype="float64", external_graph_gen=rest == "edges")
        return FAIRChemCalculator(
            MLIPPredictUnit(str(path), device="cpu", inference_settings=settings), task_name="omat"
        )
    raise SystemExit(f"There is no calculator for {name} here.")


def structure(name: str, known: set[str]) -> Any:
    """A structure of the tests, of species that all models here know."""
    import structures

    atoms = getattr(structures, name.replace(" ", "_"))()
    atoms.symbols = [s if s in known else "Mg" for s in atoms.get_chemical_symbols()]
    return atoms


def compare(name: str, structure_names: list[str], steps: int, ranks: int) -> None:
    """Print a line for each structure."""
    import zoo

    stock, ours = calculator(name), calculator(name)
    distcompile.distribute(ours, LocalWorld(ranks), lowering="eager")
    for which in structure_names:
        atoms = structure(which, set(zoo.MATGL_ELEMENTS))
        atoms.calc = stock
        has_stress = bool(atoms.pbc.all()) and "stress" in stock.implemented_properties
        MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=np.random.default_rng(1))
        settings: dict[str, Any] = {"timestep": 1.0 * units.fs, "temperature_K": 600.0}
        if has_stress:
            motion = NPTBerendsen(
                atoms, **settings, pressure_au=0.0, taut=50 * units.fs, taup=200 * units.fs, compressibility_au=0.1
            )
        else:
            motion = Langevin(atoms, **settings, friction=0.02, rng=np.random.default_rng(2))
        worst, around, seconds = np.zeros(3), 0, [0.0, 0.0]
        start_positions = atoms.positions.copy()
        try:
            atoms.get_forces()
        except Exception as error:  # a package may raise anything
            print(f"{name:<18} {which:<11} {len(atoms):>5} the package does not take it: {error}", flush=True)
            continue
        for _ in range(steps):
            motion.run(1)
            other = atoms.copy()
            other.calc = ours
            start = time.perf_counter()
            other.get_forces()
            seconds[0] += time.perf_counter() - start
            start = time.perf_counter()
            stock.calculate(atoms, ["energy", "forces", "stress"] if has_stress else ["energy", "forces"])
            seconds[1] += time.perf_counter() - start
            around += ours.calculate.graphs.last is not None
            apart = [
                abs(other.get_potential_energy() - stock.results["energy"]) / len(atoms),
                np.abs(other.get_forces() - stock.results["forces"]).max(),
                np.abs(other.get_stress(voigt=False) - atoms.get_stress(voigt=False)).max() if has_stress else 0.0,
            ]
            worst = np.maximum(worst, apart)
        moved = np.abs(atoms.positions - start_positions).max()
        why = next(iter(ours.calculate.graphs._failed.values()), "")
        whole = {e.why_whole for e in ours.calculate.graphs._learned if e.why_whole}
        print(
            f"{name:<18} {which:<11} {len(atoms):>5} {around:>5}/{steps} {worst[0]:>9.1e} {worst[1]:>9.1e} "
            f"{worst[2]:>9.1e} {moved:>6.2f} {1e3 * seconds[1] / steps:>9.1f} {1e3 * seconds[0] / steps:>9.1f} "
            f"{why[:60]}{' '.join(whole)[:60]}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mace", "chgnet", "matgl:TensorNet", "matgl:M3GNet"])
    parser.add_argument("--structures", nargs="+", default=["crystal", "film", "cluster", "small cell"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    titles = ("model", "structure", "atoms", "around", "energy", "forces", "stress", "moved", "ms stock", "ms ours")
    print("{:<18} {:<11} {:>5} {:>9} {:>9} {:>9} {:>9} {:>6} {:>9} {:>9}".format(*titles))
    for name in options.models:
        compare(name, options.structures, options.steps, options.ranks)


if __name__ == "__main__":
    main()
