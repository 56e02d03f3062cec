"""Structures that are read: the frame that is meant, every species right; what no potential describes is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import structures
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixSymmetry
from ase.io import read, write

from distcompile.app.reading import read_structure
from distcompile.errors import StructureError

ONCE = (1, 1, 1)

CIF = """data_x
_cell_length_a 4.0
_cell_length_b 4.0
_cell_length_c 4.0
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_symmetry_equiv_pos_as_xyz
 'x,y,z'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
{sites}
O1 O 0.5 0.5 0.25 1.0
"""

LAMMPS = """made by hand

2 atoms
2 atom types
0 4.21 xlo xhi
0 4.21 ylo yhi
0 2.98 zlo zhi
{section}
Atoms # atomic

1 1 0 0 0
2 2 2.1 0 0.1
"""

MASSES = "\nMasses\n\n1 24.305 # the metal\n2 15.9994\n"

DUMP = """ITEM: TIMESTEP
0
ITEM: NUMBER OF ATOMS
2
ITEM: BOX BOUNDS pp pp pp
0 4.21
0 4.21
0 2.98
ITEM: ATOMS id type {column}x y z
1 1 {}0 0 0
2 2 {}2.1 0 0.1
"""


def refusal(named: Path, repeat: tuple[int, int, int] = ONCE) -> str:
    """The one line that is said about a structure."""
    with pytest.raises(StructureError) as caught:
        read_structure(named, repeat)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- sites that are filled in part


@pytest.mark.parametrize(
    ("sites", "held"),
    [("Mg1 Mg 0 0 0 0.6\nCa1 Ca 0 0 0 0.4", "0.6 Mg and 0.4 Ca"), ("Mg1 Mg 0 0 0 0.75", "0.75 Mg")],
)
@pytest.mark.parametrize("suffix", ["cif", "traj", "extxyz"])
def test_partly_filled_sites(tmp_path: Path, sites: str, held: str, suffix: str) -> None:
    """Several species at one site, or a vacancy: in the file that says so, and in what ASE made of it."""
    path = tmp_path / "mixed.cif"
    path.write_text(CIF.format(sites=sites))
    if suffix != "cif":
        atoms = read(path)
        del atoms.info["spacegroup"]  # which not every format takes
        path = tmp_path / f"mixed.{suffix}"
        write(path, atoms)
    site = "site 0" if suffix == "traj" else r"the site of atom 0, at 0\.000 0\.000 0\.000 A,"  # traj: no arrays
    assert re.search(rf"mixed\.{suffix}: {site} is filled in part or by several species: {held}\. ", refusal(path))


def test_sites_that_are_filled(tmp_path: Path) -> None:
    """Occupancies of one, or that a file leaves open, are no reason to refuse it."""
    path = tmp_path / "full.cif"
    for occupancy in ("1", "0.9999", "?", "."):
        path.write_text(CIF.format(sites=f"Mg1 Mg 0 0 0 {occupancy}"))
        assert read_structure(path, ONCE)[0].get_chemical_formula() == "MgO"


def test_occupancies_by_atom(tmp_path: Path) -> None:
    """As files of proteins have them."""
    path = tmp_path / "half.pdb"
    write(path, Atoms("CO", [[0, 0, 0], [2, 0, 0]]))
    path.write_text(path.read_text().replace("  1.00  0.00           O", "  0.50  0.00           O"))
    said = refusal(path)
    assert "the site of atom 1, at 2.000 0.000 0.000 A, is filled in part or by several species: 0.5 O." in said
    path.write_text(path.read_text().replace("0.50", "1.00"))
    assert read_structure(path, ONCE)[0].get_chemical_formula() == "CO"


# ---- LAMMPS


@pytest.mark.parametrize("name", ["usual.data", "usual.lmp", "data.usual", "usual.lammps-data"])
def test_lammps_data(tmp_path: Path, name: str) -> None:
    """By whatever name: species from masses or from labels; without both they are not made up."""
    path = tmp_path / name
    path.write_text(LAMMPS.format(section=MASSES))
    found, note = read_structure(path, ONCE)
    assert found.get_chemical_symbols() == ["Mg", "O"]
    np.testing.assert_allclose(found.positions[1], [2.1, 0, 0.1])
    assert note == ""
    path.write_text(LAMMPS.format(section="\nAtom Type Labels\n\n1 Mg\n2 O\n"))
    assert read_structure(path, ONCE)[0].get_chemical_symbols() == ["Mg", "O"]
    path.write_text(LAMMPS.format(section=""))
    assert "neither masses nor labels of its types of atoms" in refusal(path)
    path.write_text(LAMMPS.format(section=MASSES.replace("15.9994", "500")))
    assert "type 2 has the mass 500, which no species has" in refusal(path)


def test_lammps_dumps(tmp_path: Path) -> None:
    """Types are no species there either."""
    path = tmp_path / "dump.lammpstrj"
    path.write_text(DUMP.format("Mg ", "O ", column="element "))
    assert read_structure(path, ONCE)[0].get_chemical_symbols() == ["Mg", "O"]
    path.write_text(DUMP.format("", "", column=""))
    assert "it numbers the types of atoms and does not say their species" in refusal(path)


# ---- frames


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A file with a frame of 8 and one of 16 atoms."""
    path = tmp_path / "two.extxyz"
    write(path, [bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat((n, 1, 1)) for n in (1, 2)])
    return path


@pytest.mark.parametrize(("index", "atoms"), [("@0", 8), ("@1", 16), ("@-1", 16), ("@-2", 8), ("@1:", 16)])
def test_a_frame_by_its_number(two: Path, index: str, atoms: int) -> None:
    found, note = read_structure(Path(f"{two}{index}"), ONCE)
    assert len(found) == atoms
    assert note == ""


def test_a_frame_that_nobody_named(two: Path) -> None:
    """The last, as ASE takes it; it is said, in other formats too, unless there is one only."""
    found, note = read_structure(two, ONCE)
    assert len(found) == 16
    assert note == f"{two} holds several frames: the last is taken. Name another as {two}@0."
    write(two.with_suffix(".traj"), read(two, ":"))
    assert "the last is taken" in read_structure(two.with_suffix(".traj"), ONCE)[1]
    for suffix in (".extxyz", ".traj", ".cif", ".vasp"):
        write(two.with_name(f"one{suffix}"), read(two, 0))
        assert read_structure(two.with_name(f"one{suffix}"), ONCE)[1] == ""


def test_frames_that_are_none(two: Path) -> None:
    assert "two.extxyz has no frame 7" in refusal(Path(f"{two}@7"))
    assert "two.extxyz@: names 2 frames: name one" in refusal(Path(f"{two}@:"))
    assert "There is no file" in refusal(two.with_name("three.extxyz@0"))


def test_a_file_with_an_at_in_its_name(tmp_path: Path) -> None:
    write(tmp_path / "run@300K.extxyz", structures.crystal((1, 1, 1)))
    write(tmp_path / "run@1", structures.crystal((2, 1, 1)), format="extxyz")
    assert len(read_structure(tmp_path / "run@300K.extxyz", ONCE)[0]) == 7
    assert len(read_structure(tmp_path / "run@300K.extxyz@0", ONCE)[0]) == 7
    assert len(read_structure(tmp_path / "run@1", ONCE)[0]) == 15


# ---- cells and repeats


def test_constraints_that_cannot_be_repeated(tmp_path: Path) -> None:
    """Need not be where nothing is repeated; else they are named."""
    atoms = bulk("MgO", "rocksalt", a=4.3)
    atoms.set_constraint(FixSymmetry(atoms))
    write(tmp_path / "symmetric.traj", atoms)
    found, _ = read_structure(tmp_path / "symmetric.traj", ONCE)
    assert isinstance(found.constraints[0], FixSymmetry)
    assert len(found) == 2
    said = refusal(tmp_path / "symmetric.traj", (1, 2, 1))
    assert "--repeat 1 2 1 cannot repeat what holds the atoms (FixSymmetry). Leave out --repeat" in said


def test_repeats(tmp_path: Path) -> None:
    """Along the vectors that there are."""
    slab = Atoms("MgO", [[0, 0, 0], [2.1, 0.2, 0.9]], cell=[[4.2, 0, 0], [0, 4.2, 0], [0, 0, 0]], pbc=(1, 1, 0))
    write(tmp_path / "slab.extxyz", slab)
    assert len(read_structure(tmp_path / "slab.extxyz", (3, 2, 1))[0]) == 12
    said = refusal(tmp_path / "slab.extxyz", (1, 1, 2))
    assert said.startswith("--repeat 1 1 2 repeats along the third cell vector, and the structure has none.")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pbc": True, "cell": np.zeros((3, 3))}, "periodic along its first cell vector, which is zero. Give the cell"),
        ({"pbc": (0, 0, 1), "cell": [4, 4, 0]}, "periodic along its third cell vector, which is zero"),
        ({"cell": [[4, 0, 0], [0, 4, 0], [4, 4, 0]]}, "its cell vectors lie in one plane"),
        ({"numbers": [12, 0]}, r"atom 1 is of no species \(X\)"),
        ({"positions": [[0, 0, 0], [0, np.nan, 1]]}, r"the position of atom 1 is \[ 0\. nan  1\.\]"),
        ({"numbers": [], "positions": np.zeros((0, 3))}, "it holds no atoms"),
    ],
)
def test_structures_that_are_none(tmp_path: Path, change: dict[str, object], said: str) -> None:
    given = {"numbers": [12, 8], "positions": [[0, 0, 0], [0, 0, 2.0]], "cell": [4.0] * 3, **change}
    write(tmp_path / "s.traj", Atoms(**given))
    assert re.search(rf"s\.traj: .*{said}", refusal(tmp_path / "s.traj"))


def test_files_that_are_none(tmp_path: Path) -> None:
    for name, content in (("empty.cif", b""), ("noise.traj", bytes(range(256))), ("words.xyz", b"not a structure\n")):
        (tmp_path / name).write_bytes(content)
        assert refusal(tmp_path / name).startswith(f"ASE cannot read {tmp_path / name}: ")
    assert refusal(tmp_path).startswith(f"ASE cannot read {tmp_path}: it is a folder.")
