"""Tables that the command line prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from ..show.tables import show


def report_results(
    atoms: Any,
    results: dict[str, Any],
    rows: list[dict[str, Any]],
    how: Sequence[tuple[str, str]],
    first: float,
    seconds: float,
) -> None:
    """Print energy, forces, stress and moments of a structure, and its division."""
    table = Table(title=f"{atoms.get_chemical_formula()}: {len(atoms)} atoms", show_header=False)
    table.add_row(
        "energy", f"{float(results['energy']):.6f} eV", f"{float(results['energy']) / len(atoms):.6f} eV/atom"
    )
    if "forces" in results:
        norms = np.linalg.norm(results["forces"], axis=1)
        table.add_row("largest force", f"{norms.max():.6f} eV/A", f"atom {int(norms.argmax())}")
    if "stress" in results:
        table.add_row("stress (xx yy zz yz xz xy)", " ".join(f"{s:.5f}" for s in results["stress"]), "eV/A^3")
    if "magmoms" in results:
        table.add_row("largest moment", f"{float(np.abs(results['magmoms']).max()):.4f} muB", "")
    table.add_row("time", f"{seconds:.2f} s", f"first call, compiling: {first:.1f} s")
    show(table)
    report_ranks(rows, how)


def record_of(
    atoms: Any, results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], how: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """What the tables of a structure say, as numbers: eV, A, muB, bytes."""
    found: dict[str, Any] = {"formula": atoms.get_chemical_formula(), "atoms": len(atoms)}
    found["energy"] = float(results["energy"])
    if "forces" in results:
        found["largest_force"] = float(np.linalg.norm(results["forces"], axis=1).max())
    if "stress" in results:
        found["stress"] = np.asarray(results["stress"])
    if "magmoms" in results:
        found["largest_moment"] = float(np.abs(results["magmoms"]).max())
    if atoms.has("momenta"):
        found["temperature"] = atoms.get_temperature()
    if atoms.cell.rank == 3:
        found["volume"] = atoms.get_volume()
    return {**found, "how": dict(how), "ranks": list(rows)}


def differences(results: Mapping[str, Any], stock: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """For each result, its largest difference from the stock model's, and the largest value of that."""
    pairs = {name: (results[name], stock[name]) for name in COMPARED if name in results and name in stock}
    both = {name: tuple(map(np.asarray, pair)) for name, pair in pairs.items()}
    return {name: (float(np.abs(a - b).max()), float(np.abs(b).max())) for name, (a, b) in both.items()}


COMPARED = ("energy", "forces", "stress", "magmoms")


def report_ranks(rows: list[dict[str, Any]], how: Sequence[tuple[str, str]]) -> None:
    """Print rows owned, halo rows and bytes of every rank, and how they ran."""
    if how:
        table = Table(title="How it ran", show_header=False)
        for what, said in how:
            table.add_row(what, said)
        if rows:
            most = max(row["peak_memory"] for row in rows)
            table.add_row("memory", f"{most / 1e9:.3f} GB on the fullest rank, predicted, beside the model")
        show(table)
    if rows:
        spaces = list(rows[0]["owned"])
        table = Table("rank", *[f"{s} owned + halo" for s in spaces], "MB exchanged", title="Ranks")
        for row in rows:
            counts = [f"{row['owned'][s]} + {row['halo'][s]}" for s in spaces]
            table.add_row(str(row["rank"]), *counts, f"{row['bytes'] / 1e6:.2f}")
        show(table)


def report_check(results: dict[str, Any], stock: dict[str, Any], stock_time: float, seconds: float) -> None:
    """Print the differences of results from those of the stock model."""
    table = Table("", "largest difference", "largest value", title="Against the stock model")
    for name, (apart, largest) in differences(results, stock).items():
        table.add_row(name, f"{apart:.2e}", f"{largest:.4f}")
    table.add_row("time", f"{seconds:.2f} s", f"stock: {stock_time:.2f} s")
    show(table)


def report_end(atoms: Any, title: str, rows: list[dict[str, Any]], how: Sequence[tuple[str, str]]) -> None:
    """Print the end of a relaxation or a trajectory."""
    energy = float(atoms.get_potential_energy())
    table = Table(title=f"{atoms.get_chemical_formula()}: {title}", show_header=False)
    table.add_row("energy", f"{energy:.6f} eV", f"{energy / len(atoms):.6f} eV/atom")
    forces = np.linalg.norm(atoms.get_forces(), axis=1)
    table.add_row("largest force", f"{forces.max():.6f} eV/A", f"atom {int(forces.argmax())}")
    if atoms.has("momenta"):
        table.add_row("temperature", f"{atoms.get_temperature():.1f} K", "")
    if atoms.cell.rank == 3:
        table.add_row("volume", f"{atoms.get_volume():.4f} A^3", f"{atoms.get_volume() / len(atoms):.4f} A^3/atom")
    show(table)
    report_ranks(rows, how)


def report_doctor(
    machine: Sequence[tuple[str, str]], models: Sequence[tuple[str, str]], mistakes: Sequence[tuple[str, str]]
) -> None:
    """Print the findings of ``distcompile doctor``."""
    found = mistakes or [("mistakes", "none of the usual ones")]
    for title, rows in (("This machine", machine), ("Models", models), ("What to change", found)):
        table = Table(title=title, show_header=False)
        for row in rows:
            table.add_row(*row)
        show(table)
