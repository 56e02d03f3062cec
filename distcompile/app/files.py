"""Files that the command line writes: with results of this run and of no other method."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

OTHER_NAMES = {"force", "virial", "virials", "total_energy", "potential_energy"}
"""The names that files have for results beside those of ASE."""


def unwritable(path: Path, replaced: bool = True) -> str:
    """The reason that a file cannot be written; empty if it can, as far as is known before it is tried.

    Args:
        path: the file.
        replaced: True if it is replaced; else lines are added, which devices take as well.
    """
    real = Path(os.path.realpath(path))
    if real.is_dir() or (replaced and real.exists() and not real.is_file()):
        return f"Results cannot be written to {path}: it is a {'folder' if real.is_dir() else 'device'}, not a file."
    if real.exists() and not os.access(real, os.W_OK):
        return f"Results cannot be written to {path}: the file that is there may not be changed."
    if not real.exists() and not (real.parent.is_dir() and os.access(real.parent, os.W_OK)):
        return f"Results cannot be written to {path}: {path.absolute().parent} is no folder that can be written to."
    return ""


def labelled(atoms: Any, results: Mapping[str, Any]) -> Any:
    """A copy of a structure with these results only, without those of another method that its file held."""
    from ase.calculators.calculator import all_properties
    from ase.calculators.singlepoint import SinglePointCalculator

    found = atoms.copy()
    for held in (found.info, found.arrays):
        for name in [name for name in held if str(name).lower() in {*all_properties, *OTHER_NAMES}]:
            del held[name]
    kept = {name: value for name, value in consistent(results).items() if name in all_properties}
    found.calc = SinglePointCalculator(found, **kept)
    found.calc.name = getattr(atoms.calc, "name", None) or "unknown"
    return found


def consistent(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results with the stress as six numbers: some calculators give nine."""
    from ase.stress import full_3x3_to_voigt_6_stress

    if np.shape(results.get("stress", 0)) == (3, 3):
        return {**results, "stress": full_3x3_to_voigt_6_stress(results["stress"])}
    return dict(results)
