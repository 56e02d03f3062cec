"""Stock models as their users build them, and the graph objects that they take. Models are named only here."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch
from ase import Atoms


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and what its forward takes for a structure."""

    model: Any
    graph: Callable[[Atoms], Any]
    """From a structure to the positional argument of the model (a tuple for several)."""
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    double: bool = True
    """Whether the package runs in float64."""


class InDouble(torch.nn.Module):
    """Runs a model of a package that takes its precision from globals in float64."""

    def __init__(self, model: torch.nn.Module, modules: tuple[Any, ...]) -> None:
        super().__init__()
        self.model, self._modules_with_dtype = model.double(), modules

    def forward(self, graph: Any, **kwargs: Any) -> Any:
        with in_double(*self._modules_with_dtype):
            return self.model(graph, **kwargs)


@contextmanager
def in_double(*modules: Any) -> Iterator[None]:
    """Float64 as default, and as the ``TORCH_DTYPE`` of some Python modules."""
    before = torch.get_default_dtype(), [m.TORCH_DTYPE for m in modules]
    torch.set_default_dtype(torch.float64)
    for module in modules:
        module.TORCH_DTYPE = torch.float64
    try:
        yield
    finally:
        torch.set_default_dtype(before[0])
        for module, dtype in zip(modules, before[1], strict=True):
            module.TORCH_DTYPE = dtype


@cache
def chgnet(double: bool = True) -> Case:
    """The pretrained CHGNet 0.3.0 of the chgnet wheel; its package is written for float32."""
    from chgnet.graph import converter
    from chgnet.model import CHGNet, model
    from pymatgen.io.ase import AseAtomsAdaptor

    stock = CHGNet.load(use_device="cpu", verbose=False)

    def graph(atoms: Atoms) -> Any:
        boxed = atoms.copy()
        if boxed.cell.rank < 3:
            boxed.set_cell(np.diag(np.ptp(boxed.positions, axis=0) + 15.0))
        boxed.pbc = True
        with warnings.catch_warnings(), in_double(converter) if double else nullcontext():
            warnings.simplefilter("ignore")
            return [stock.graph_converter(AseAtomsAdaptor.get_structure(boxed))]

    if not double:
        return Case(stock, graph, {"task": "efsm"}, double=False)
    running = InDouble(stock, (model,))
    stock.composition_model.float()  # it casts its input to float32
    return Case(running, graph, {"task": "efsm"})


@cache
def mace(size: str = "small") -> Case:
    """A MACE in float64 with random weights: small, or of the published MP-0 medium architecture."""
    import mace  # noqa: F401  before e3nn: it sets how e3nn 0.4.4 may load its constants
    from e3nn import o3
    from mace import data, modules
    from mace.tools import AtomicNumberTable, torch_geometric

    torch.manual_seed(0)
    table = AtomicNumberTable(list(range(1, 90)))
    medium = size == "medium"
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = modules.ScaleShiftMACE(
            r_max=6.0 if medium else 4.0,
            num_bessel=10 if medium else 6,
            num_polynomial_cutoff=5,
            max_ell=3 if medium else 2,
            interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            num_interactions=2,
            num_elements=89,
            hidden_irreps=o3.Irreps("128x0e + 128x1o" if medium else "8x0e + 8x1o"),
            MLP_irreps=o3.Irreps("16x0e"),
            gate=torch.nn.functional.silu,
            atomic_energies=np.linspace(-5, 5, 89),
            avg_num_neighbors=30.0,
            atomic_numbers=table.zs,
            correlation=3 if medium else 2,
            atomic_inter_scale=0.8,
            atomic_inter_shift=0.1,
        )
    finally:
        torch.set_default_dtype(dtype)
    r_max = float(model.r_max)

    def graph(atoms: Atoms) -> Any:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            config = data.config_from_atoms(atoms)
            item = data.AtomicData.from_config(config, z_table=table, cutoff=r_max)
            loader = torch_geometric.dataloader.DataLoader([item], batch_size=1)
            return next(iter(loader)).to_dict()
        finally:
            torch.set_default_dtype(before)

    return Case(model, graph, {"compute_stress": True})
