"""The fastest path on a CPU that each package has itself, for `single.py`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from single import Way, in_single_precision, stock_case


def fastest(name: str) -> Way:
    """The fastest path of a model's package, by the model's name in tests/zoo.py."""
    family = name.split(":")[0]
    if family not in PATHS:
        raise SystemExit(f"{family} has no path of its own beside PyTorch's: see --modes compile")
    return PATHS[family](name)


def symmetrix(name: str) -> Way:
    """symmetrix-xl, C++ for MACE alone; neighbours are found in each evaluation."""
    from symmetrix import Symmetrix

    folder = Path(tempfile.mkdtemp())
    torch.save(stock_case(name).model.double(), folder / "m.model")
    script = "from symmetrix.cli.extract_mace import main; main()"
    arguments = ["-m", str(folder / "m.model"), "-o", str(folder / "m.json")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)
    calculator = Symmetrix(str(folder / "m.json"), dtype="float32")

    def call(atoms: Atoms) -> None:
        calculator.reset()
        calculator.calculate(atoms, ["energy", "forces", "stress"])

    return Way(lambda atoms: (atoms,), call)


def compiled_nequip(name: str) -> Way:
    """``compile_mode="compile"``. It runs PyTorch's operators one by one for a single structure, so two are given."""
    from nequip.data import AtomicDataDict
    from nequip.model.utils import override_model_compile_mode

    with override_model_compile_mode("compile"):
        case = stock_case(name)
    model = case.model.model.float()
    model.requires_grad_(False)

    def prepare(atoms: Atoms) -> tuple[Any, ...]:
        (graph,) = in_single_precision(case.graph(atoms))
        return (AtomicDataDict.batched_from_list([graph, graph]),)

    return Way(prepare, model, copies=2)


def fast_esen(name: str) -> Way:
    """``execution_mode="umas_fast_pytorch"``, under ``torch.compile``."""
    from unittest.mock import patch

    from fairchem.core.models.uma import escn_md
    from fairchem.core.models.uma.nn.execution_backends import get_execution_backend

    backend = get_execution_backend("umas_fast_pytorch")
    with patch.object(escn_md, "get_execution_backend", lambda mode: backend):
        case = stock_case(name)
    model = case.model.float().eval()
    model.requires_grad_(False)
    backend.prepare_model_for_inference(model.backbone)
    return Way(lambda atoms: in_single_precision(case.graph(atoms)), torch.compile(model, dynamic=True))


PATHS = {"mace": symmetrix, "nequip": compiled_nequip, "esen": fast_esen}
