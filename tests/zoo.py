"""Stock models as their users build them, and the graph objects that they take. Models are named only here."""

from __future__ import annotations

import dataclasses
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list


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
        with warnings.catch_warnings(), in_double(converter) if double else nullcontext():
            warnings.simplefilter("ignore")
            return [stock.graph_converter(AseAtomsAdaptor.get_structure(periodic(atoms)))]

    if not double:
        return Case(stock, graph, {"task": "efsm"}, double=False)
    running = InDouble(stock, (model,))
    stock.composition_model.float()  # it casts its input to float32
    return Case(running, graph, {"task": "efsm"})


@contextmanager
def chgnet_calculator() -> Iterator[Callable[[], Any]]:
    """A function that makes the stock CHGNetCalculator; inside, its package runs in float64."""
    from chgnet.graph import converter
    from chgnet.model import CHGNet, dynamics, model

    def make() -> Any:
        stock = CHGNet.load(use_device="cpu", verbose=False).double()
        stock.composition_model.float()  # it casts its input to float32
        return dynamics.CHGNetCalculator(stock, use_device="cpu")

    with in_double(converter, model):
        yield make


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


MATGL_ELEMENTS = ("H", "Li", "C", "O", "Mg", "Ti", "Co", "Cu", "Sr")


@cache
def matgl(name: str) -> Case:
    """A matgl architecture in float32 with random weights inside a Potential: TensorNet as in MatPES, or another."""
    import matgl.models
    from matgl.apps.pes import Potential
    from matgl.ext.ase import Atoms2Graph

    torch.manual_seed(0)
    options: dict[str, Any] = {
        "TensorNet": {"units": 128, "nblocks": 2, "max_n": 3, "max_l": 3, "cutoff": 5.0, "rbf_type": "SphericalBessel"},
        "M3GNet": {"is_intensive": False, "cutoff": 5.0, "threebody_cutoff": 3.2},
        "SO3Net": {"is_intensive": False, "cutoff": 4.0, "lmax": 2, "nmax": 3, "dim_embedding": 32, "units": 32},
        "CHGNet": {"cutoff": 5.0, "threebody_cutoff": 3.0},
    }[name]
    net = getattr(matgl.models, name)(element_types=MATGL_ELEMENTS, **options)
    potential = Potential(net, calc_stresses=True, calc_magmom=name == "CHGNet").eval()
    converter = Atoms2Graph(MATGL_ELEMENTS, net.cutoff)

    def graph(atoms: Atoms) -> Any:
        found, lattice, _ = converter.get_graph(periodic(atoms))
        return found, lattice

    return Case(potential, graph, {}, double=False)


@cache
def esen(layers: int = 2, channels: int = 32) -> Case:
    """fairchem's eSEN with random weights in float64: forces and stress are gradients, edges come with the graph."""
    from fairchem.core.models.uma.escn_md import MLP_EFS_Head

    backbone = esen_backbone(layers, channels, 2, 5.0, True)
    model = BackboneAndHead(backbone, MLP_EFS_Head(backbone, wrap_property=False)).double().eval()
    return Case(model, lambda atoms: esen_graph(atoms, 5.0))


@cache
def esen_blocks(layers: int = 2, channels: int = 16, lmax: int = 2, cutoff: float = 5.0) -> Case:
    """fairchem's eSEN without forces, and a head that gives each atom and each edge a block of a Hamiltonian."""
    backbone = esen_backbone(layers, channels, lmax, cutoff, False)
    model = BackboneAndHead(backbone, EdgeBlocks(channels, lmax, cutoff)).double().eval()
    return Case(model, lambda atoms: esen_graph(atoms, cutoff))


def esen_backbone(layers: int, channels: int, lmax: int, cutoff: float, forces: bool) -> Any:
    from fairchem.core.models.uma.escn_md import eSCNMDBackbone

    torch.manual_seed(0)
    return eSCNMDBackbone(
        max_num_elements=100,
        sphere_channels=channels,
        hidden_channels=channels,
        edge_channels=channels,
        num_layers=layers,
        lmax=lmax,
        mmax=2,
        cutoff=cutoff,
        num_distance_basis=64,
        otf_graph=False,
        direct_forces=not forces,
        regress_forces=forces,
        regress_stress=forces,
        use_dataset_embedding=False,
        chg_spin_emb_type="rand_emb",
        always_use_pbc=False,
    )


def esen_graph(atoms: Atoms, cutoff: float) -> Any:
    from fairchem.core.datasets.atomic_data import AtomicData

    boxed = atoms.copy()
    boxed.calc = None
    if boxed.cell.rank < 3:
        boxed.set_cell(np.diag(np.ptp(boxed.positions, axis=0) + 15.0))
    data = AtomicData.from_ase(boxed, r_edges=False, target_dtype=torch.float64)
    boxed.positions = data.pos.numpy()  # wrapped
    receiver, sender, image = neighbor_list("ijS", boxed, cutoff)
    data.edge_index = torch.tensor(np.stack([sender, receiver]))
    data.cell_offsets = torch.tensor(image, dtype=torch.float64)
    data.nedges = torch.tensor([len(sender)])
    return data


class EdgeBlocks(torch.nn.Module):
    """Blocks of a Hamiltonian, [(lmax + 1)^2, (lmax + 1)^2], of atoms and of edges, from the features of both ends."""

    def __init__(self, channels: int, lmax: int, cutoff: float) -> None:
        super().__init__()
        self.size, self.cutoff = (lmax + 1) ** 2, cutoff
        self.ends = torch.nn.Linear(2 * channels, channels)
        self.radial = torch.nn.Sequential(
            torch.nn.Linear(16, channels), torch.nn.SiLU(), torch.nn.Linear(channels, channels)
        )
        self.edge = torch.nn.Linear(channels, self.size)
        self.atom = torch.nn.Linear(channels, self.size)

    def forward(self, data: Any, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        h = found["node_embedding"]  # [n_atoms, (lmax + 1)^2, channels]
        first, second = data.edge_index
        shifts = torch.einsum("ni,nij->nj", data.cell_offsets, data.cell[data.batch[first]])
        lengths = (data.pos[second] - data.pos[first] + shifts).norm(dim=1, keepdim=True)
        centres = torch.linspace(0.0, self.cutoff, 16, dtype=lengths.dtype)
        radial = self.radial(torch.exp(-((lengths - centres) ** 2)))
        edges = torch.nn.functional.silu(self.ends(torch.cat([h[first], h[second]], -1))) * radial[:, None]
        return {"atoms": self.atom(h), "edges": self.edge(edges)}


class BackboneAndHead(torch.nn.Module):
    """fairchem's models are a backbone and a head that is given the graph and the backbone's result."""

    def __init__(self, backbone: torch.nn.Module, head: torch.nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, data: Any) -> Any:
        return self.head(data, self.backbone(data))


def save_uma(path: Path) -> None:
    """Write what fairchem's calculator reads: UMA's backbone with four experts and a head for a data set, untrained."""
    import hydra
    from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint

    models, unit = "fairchem.core.models.uma", "fairchem.core.units.mlip_unit.mlip_unit"
    datasets = {"omat": "omat", "omol": "omol"}
    backbone = {
        "model": f"{models}.escn_moe.eSCNMDMoeBackbone", "num_experts": 4, "use_composition_embedding": True,
        "moe_layer_type": "pytorch", "max_num_elements": 100, "sphere_channels": 8, "hidden_channels": 8,
        "edge_channels": 8, "num_layers": 1, "lmax": 2, "mmax": 2, "cutoff": 5.0, "num_distance_basis": 16,
        "otf_graph": True, "direct_forces": False, "regress_forces": True, "regress_stress": True,
        "use_dataset_embedding": True, "dataset_mapping": datasets, "chg_spin_emb_type": "pos_emb",
        "always_use_pbc": False,
    }  # fmt: skip
    head = {
        "module": f"{models}.escn_moe.DatasetSpecificMoEWrapper", "head_cls": f"{models}.escn_md.MLP_EFS_Head",
        "wrap_property": True, "head_kwargs": {"wrap_property": False}, "dataset_mapping": datasets,
    }  # fmt: skip
    config = {
        "_target_": "fairchem.core.models.base.HydraModel", "backbone": backbone, "heads": {"head": head},
        "otf_graph": True, "pass_through_head_outputs": True, "model_id": "untrained",
    }  # fmt: skip
    levels = {"energy": ("system", [1]), "forces": ("atom", [3]), "stress": ("system", [1, 9])}
    scale = {"_target_": "fairchem.core.modules.normalization.normalizer.Normalizer", "mean": 0.0, "rmsd": 1.0}
    tasks = [
        {
            "_target_": f"{unit}.Task", "name": f"{dataset}_{name}", "level": level, "property": name,
            "datasets": [dataset], "normalizer": scale,
            "out_spec": {"_target_": f"{unit}.OutputSpec", "dim": size, "dtype": "float64"},
        }
        for dataset in datasets
        for name, (level, size) in levels.items()
    ]  # fmt: skip
    torch.manual_seed(0)
    model = hydra.utils.instantiate(config)
    averaged = torch.optim.swa_utils.AveragedModel(model).state_dict()
    torch.save(MLIPInferenceCheckpoint(config, model.state_dict(), averaged, tasks), path)


@cache
def sevennet() -> Case:
    """The pretrained SevenNet-0, as its own calculator calls it: differentiated by edge vectors, in float32."""
    import sevenn._keys as keys
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import unlabeled_atoms_to_graph
    from sevenn.util import load_checkpoint

    model = load_checkpoint("7net-0").build_model()
    model.set_is_batch_data(False)
    model.eval_type_map = torch.tensor(True)
    model.eval()
    assert keys.EDGE_VEC

    def graph(atoms: Atoms) -> Any:
        return AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(periodic(atoms), 5.0, with_shift=False))

    return Case(model, graph, {}, double=False)


@cache
def nequip(name: str = "NequIP", dtype: str = "float64", layers: int = 2, features: int = 8) -> Case:
    """NequIP or Allegro with random weights."""
    import e3nn
    from nequip.data import AtomicDataDict, from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
    from nequip.utils.global_state import set_global_state

    species = list(MATGL_ELEMENTS)
    options: dict[str, Any] = {
        "seed": 0, "model_dtype": dtype, "r_max": 4.5, "type_names": species, "avg_num_neighbors": 20.0,
        "per_type_energy_shifts": {name: 0.1 * i for i, name in enumerate(species)},
    }  # fmt: skip
    jit_mode = e3nn.get_optimization_defaults()["jit_mode"]
    with in_double():  # the package sets defaults of its own, for good: of torch, and of e3nn below
        set_global_state()
        if name == "NequIP":
            from nequip.model import NequIPGNNModel

            model = NequIPGNNModel(num_layers=layers, l_max=2, num_features=features, **options)
        else:
            from allegro.model import AllegroModel

            model = AllegroModel(
                num_layers=layers, l_max=2, num_scalar_features=2 * features, num_tensor_features=features // 2,
                radial_chemical_embed={
                    "_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 8, "bessel_trainable": False,
                    "polynomial_cutoff_p": 6,
                }, **options,
            )  # fmt: skip
    e3nn.set_optimization_defaults(jit_mode=jit_mode)
    transforms = [ChemicalSpeciesToAtomTypeMapper(species), NeighborListTransform(r_max=4.5)]

    def graph(atoms: Atoms) -> Any:
        with in_double():
            data = from_ase(atoms.copy())
            for transform in transforms:
                data = transform(data)
        return AtomicDataDict.to_(data, "cpu")

    return Case(InDouble(model.eval(), ()), graph)


def energy_and_forces(result: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The energy and the forces in what a model returns for one structure."""
    if isinstance(result, tuple):
        return result[0], result[1]
    values = result if isinstance(result, dict) else vars(result) | dict(result)
    energy, forces = (next(values[name] for name in names if name in values) for names in (ENERGY, FORCES))
    return energy, forces[0] if isinstance(forces, list) else forces


ENERGY = ("energy", "total_energy", "inferred_total_energy", "e")
FORCES = ("forces", "inferred_force", "f")


def periodic(atoms: Atoms) -> Atoms:
    """In a box that is periodic along all axes, with vacuum where there was none, for packages that want it so."""
    boxed = atoms.copy()
    boxed.calc = None
    if boxed.cell.rank < 3:
        boxed.set_cell(np.diag(np.ptp(boxed.positions, axis=0) + 15.0))
    boxed.pbc = True
    return boxed


OTHERS: dict[str, tuple[str, Callable[[], Case]]] = {
    "TensorNet": ("matgl", lambda: matgl("TensorNet")),
    "M3GNet": ("matgl", lambda: matgl("M3GNet")),
    "SO3Net": ("matgl", lambda: matgl("SO3Net")),
    "CHGNet (matgl)": ("matgl", lambda: matgl("CHGNet")),
    "SevenNet-0": ("sevenn", sevennet),
    "NequIP": ("nequip", lambda: nequip("NequIP")),
    "Allegro": ("allegro", lambda: nequip("Allegro")),
    "eSEN": ("fairchem", esen),
}
"""Models that have no test module of their own: the package that each needs, and how to make it."""

MODELS: dict[str, tuple[str, Callable[[], Case]]] = {
    "MACE (MP-0 medium)": ("mace", lambda: mace("medium")),
    "CHGNet 0.3.0": ("chgnet", chgnet),
    **OTHERS,
}
"""All that docs/models.md lists."""


def is_installed(name: str) -> bool:
    """Whether this environment has the package of one of `MODELS`."""
    return importlib.util.find_spec(MODELS[name][0]) is not None
