"""Make the structure of the demo: a 7 x 7 x 1 supercell of LiCoO2 (588 atoms) with displaced atoms."""

from pathlib import Path

from ase.io import read, write

HERE = Path(__file__).parent

atoms = read(HERE / "LiCoO2.cif").repeat((7, 7, 1))
atoms.rattle(0.05, seed=7)  # a standard deviation of 0.05 A
atoms.info, atoms.arrays = {}, {name: atoms.arrays[name] for name in ("numbers", "positions")}
write(HERE / "LiCoO2_supercell.extxyz", atoms)
print(f"{len(atoms)} atoms of {atoms.get_chemical_formula()}")
