"""The pretrained CHGNet: four index spaces, energy, forces, stress and magnetic moments on N ranks."""

from __future__ import annotations

import numpy as np
import pytest
import structures
import zoo

from distcompile.testing import check_model

pytest.importorskip("chgnet")


def test_in_double_precision_on_every_kind_of_structure() -> None:
    """The package is written for float32; run in float64 it shows that nothing but rounding differs."""
    case = zoo.chgnet()
    shapes = (structures.film, structures.cluster, structures.small_cell, structures.oxide)
    report = check_model(
        case.model,
        case.graph(structures.crystal()),
        [case.graph(shape()) for shape in shapes],
        ranks=(1, 2, 3, 4, 7),
        model_kwargs=case.kwargs,
    )
    assert report.captures == 1
    assert set(report.spaces) == {"atoms", "edges", "bonds", "angles"}
    assert report.worst < 1e-12, report


def test_in_single_precision_within_what_users_notice() -> None:
    """Energy 1e-6 eV/atom, forces 1e-4 eV/A, stress 1e-3 GPa, moments 1e-5 muB."""
    case = zoo.chgnet(double=False)
    report = check_model(
        case.model, case.graph(structures.oxide()), ranks=(1, 3), model_kwargs=case.kwargs, relative=1e-3
    )
    allowed = {"['e']": 1e-6, "['f'][0]": 1e-4, "['s'][0]": 1e-3, "['m'][0]": 1e-5}
    found = {d.output: d.absolute for d in report.differences if d.output in allowed}
    assert found.keys() == allowed.keys()
    for output, difference in found.items():
        assert difference < allowed[output], report


def test_stress_is_the_derivative_of_the_energy() -> None:
    """Finite differences of the energy with respect to a strain of the cell, on two ranks."""
    import distcompile

    case = zoo.chgnet()
    atoms = structures.small_cell()
    model = distcompile.compile(case.model, case.graph(structures.oxide()), model_kwargs=case.kwargs,
                                world=distcompile.LocalWorld(2), validate=False)  # fmt: skip

    def energy(strain: float) -> float:
        strained = atoms.copy()
        strained.set_cell(atoms.cell.array @ (np.eye(3) + strain * np.diag([1.0, 0, 0])), scale_atoms=True)
        return float(model(case.graph(strained))["e"]) * len(atoms)

    h = 1e-4
    derivative = (energy(h) - energy(-h)) / (2 * h) / atoms.get_volume()
    stress = model(case.graph(atoms))["s"][0][0, 0].item() / 160.21766208  # GPa -> eV/A^3
    assert derivative == pytest.approx(stress, rel=1e-3)
