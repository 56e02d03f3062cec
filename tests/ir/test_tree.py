"""Flattening graph objects of every kind that models take, and building them again around other tensors."""

from __future__ import annotations

import collections
import copy
import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from distcompile.ir.tree import device_of, flatten


class Named(NamedTuple):
    positions: Tensor
    edges: Tensor
    name: str = "MgO"


@dataclasses.dataclass
class Data:
    positions: Tensor
    edges: Tensor
    cutoff: float = 3.0


@dataclasses.dataclass(frozen=True)
class Frozen:
    positions: Tensor
    edges: Tensor


class Plain:
    """An object with attributes, as CHGNet's CrystalGraph is one."""

    def __init__(self, positions: Tensor, edges: Tensor) -> None:
        self.positions, self.edges, self.history = positions, edges, ["made"]

    def n_atoms(self) -> int:
        return len(self.positions)


class Mapping:
    """Behaves as a dict without being one, as batches of some packages do."""

    def __init__(self, **values: Any) -> None:
        self.store = values

    def keys(self) -> Any:
        return self.store.keys()

    def __getitem__(self, key: str) -> Any:
        return self.store[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.store[key] = value


POSITIONS, EDGES = torch.zeros(5, 3), torch.zeros(2, 7, dtype=torch.int64)


def doubled(obj: Any, **options: Any) -> tuple[list[str], Any]:
    """The paths of an object's tensors, and the object with tensors of twice the values plus one in their places."""
    leaves, tree = flatten(obj, **options)
    return [leaf.path for leaf in leaves], tree.unflatten([2 * leaf.tensor + 1 for leaf in leaves])


KINDS = {
    "dict": ({"positions": POSITIONS, "edges": EDGES}, ["['positions']", "['edges']"], lambda g: list(g.values())),
    "list": ([POSITIONS, EDGES], ["[0]", "[1]"], list),
    "tuple": ((POSITIONS, EDGES), ["[0]", "[1]"], list),
    "named tuple": (Named(POSITIONS, EDGES), [".positions", ".edges"], lambda g: [g.positions, g.edges]),
    "dataclass": (Data(POSITIONS, EDGES), [".positions", ".edges"], lambda g: [g.positions, g.edges]),
    "frozen dataclass": (Frozen(POSITIONS, EDGES), [".positions", ".edges"], lambda g: [g.positions, g.edges]),
    "attributes": (Plain(POSITIONS, EDGES), [".positions", ".edges"], lambda g: [g.positions, g.edges]),
    "ordered dict": (
        collections.OrderedDict(positions=POSITIONS, edges=EDGES),
        ["['positions']", "['edges']"],
        lambda g: list(g.values()),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str) -> None:
    """Paths are as a user writes them; the result is of the same type and holds the new tensors; the input is kept."""
    graph, paths, tensors = KINDS[kind]
    found, new = doubled(graph)
    assert sorted(found) == sorted(paths)
    assert type(new) is type(graph)
    assert new is not graph
    assert [t.shape for t in tensors(new)] == [(5, 3), (2, 7)]
    assert all(bool((t == 1).all()) for t in tensors(new))
    assert tensors(graph)[0] is POSITIONS
    assert tensors(graph)[1] is EDGES
    assert not POSITIONS.any()


def test_a_tensor_alone() -> None:
    paths, new = doubled(POSITIONS)
    assert paths == ["input"]
    assert bool((new == 1).all())


def test_mappings_that_are_no_dicts() -> None:
    graph = Mapping(positions=POSITIONS, pbc=True)
    paths, new = doubled(graph)
    assert paths == ["['positions']"]
    assert isinstance(new, Mapping)
    assert new.store["pbc"] is True
    assert bool((new["positions"] == 1).all())
    assert graph["positions"] is POSITIONS


def test_what_is_no_tensor_is_kept() -> None:
    """Names, numbers, methods and other attributes come along."""
    _, named = doubled(Named(POSITIONS, EDGES))
    assert named.name == "MgO"
    _, data = doubled(Data(POSITIONS, EDGES, 2.5))
    assert data.cutoff == 2.5
    _, plain = doubled(Plain(POSITIONS, EDGES))
    assert plain.history == ["made"]
    assert plain.n_atoms() == 5


def test_nesting() -> None:
    """Containers in containers of other kinds; the path is the expression that reaches the tensor."""
    lattice = torch.eye(3)
    graph = ({"graphs": [Plain(POSITIONS, EDGES), Frozen(POSITIONS + 1, EDGES)], 7: lattice}, Named(lattice, EDGES))
    leaves, tree = flatten(graph, root="graph")
    assert {leaf.path for leaf in leaves} == {
        "graph[0]['graphs'][0].positions",
        "graph[0]['graphs'][0].edges",
        "graph[0]['graphs'][1].positions",
        "graph[0]['graphs'][1].edges",
        "graph[0][7]",
        "graph[1].positions",
        "graph[1].edges",
    }
    assert len(leaves) == 7
    for leaf in leaves:
        assert eval(leaf.path, {"graph": graph}) is leaf.tensor
    new = tree.unflatten([leaf.tensor.clone() for leaf in leaves])
    assert [type(x) for x in (new, new[0], new[0]["graphs"], *new[0]["graphs"], new[1])] == [
        tuple, dict, list, Plain, Frozen, Named,
    ]  # fmt: skip
    assert torch.equal(new[0]["graphs"][1].positions, POSITIONS + 1)
    assert graph[0]["graphs"][0].positions is POSITIONS
    assert new[0]["graphs"][0] is not graph[0]["graphs"][0]


def test_a_model_that_writes_to_its_graph_does_not_write_to_the_users() -> None:
    """Models put results into their graph; they get containers of their own."""
    inner = Plain(POSITIONS, EDGES)
    graph = {"inner": inner, "cell": torch.eye(3)}
    leaves, tree = flatten(graph)
    new = tree.unflatten([leaf.tensor for leaf in leaves])
    new["energy"] = torch.zeros(1)
    new["inner"].positions = None
    assert list(graph) == ["inner", "cell"]
    assert inner.positions is POSITIONS


@pytest.mark.parametrize("kind", [dict, Mapping])
def test_the_order_of_keys_does_not_matter(kind: Any) -> None:
    """Two loaders may fill a dict in two orders, and PyG lists its keys in another order in each process.

    A program takes its inputs by position, and ranks compare theirs in order.
    """
    one, two = kind(positions=POSITIONS, edges=EDGES), kind(edges=EDGES, positions=POSITIONS)
    leaves, _ = flatten(one)
    others, tree = flatten(two)
    assert [leaf.path for leaf in leaves] == [leaf.path for leaf in others]
    assert [tuple(leaf.tensor.shape) for leaf in leaves] == [tuple(leaf.tensor.shape) for leaf in others]
    new = tree.unflatten([leaf.tensor for leaf in others])
    assert list(new.keys()) == ["edges", "positions"]  # as the user made it
    assert new["positions"] is POSITIONS


def test_containers_without_tensors_are_copied_too() -> None:
    """A model that appends to a list of its graph, or notes something in a dict of it, does so in its own copy."""
    graph = {"atoms": Plain(POSITIONS, EDGES), "info": {"name": "MgO"}, "positions": POSITIONS}
    leaves, tree = flatten(graph)
    new = tree.unflatten([leaf.tensor for leaf in leaves])
    new["atoms"].history.append("changed")
    new["info"]["energy"] = torch.zeros(1)
    assert graph["atoms"].history == ["made"]
    assert graph["info"] == {"name": "MgO"}


def test_one_tree_serves_many_graphs() -> None:
    leaves, tree = flatten({"positions": POSITIONS, "name": "MgO"})
    assert len(leaves) == 1
    one, two = tree.unflatten([torch.zeros(2, 3)]), tree.unflatten([torch.zeros(9, 3)])
    assert (one["positions"].shape, two["positions"].shape) == ((2, 3), (9, 3))


def test_numbers_are_noted_as_constants() -> None:
    """A program is captured for the Python numbers of its graph, so they are part of the tree."""
    graph = {"positions": POSITIONS, "charge": -1.5, "spin": 2, "periodic": True, "name": "MgO", "nothing": None}
    _, tree = flatten(graph)
    assert tree.numbers == (("['charge']", -1.5), ("['periodic']", True), ("['spin']", 2))
    assert flatten(Data(POSITIONS, EDGES, 2.5))[1].numbers == ((".cutoff", 2.5),)


def test_counts_are_sizes() -> None:
    """An integer that may count rows is a leaf of that length: it must not become a constant of the program."""
    graph = {"positions": POSITIONS, "num_nodes": 5, "spin": 3, "big": 10**9, "ratio": 5.0, "flag": True}
    leaves, tree = flatten(graph, counts=True)
    assert [(leaf.path, tuple(leaf.tensor.shape)) for leaf in leaves] == [
        ("['num_nodes']", (5,)),
        ("['positions']", (5, 3)),
    ]
    assert leaves[0].tensor.dtype == torch.bool
    assert leaves[0].tensor.untyped_storage().nbytes() == 1  # its length is all that it holds
    assert [path for path, _ in tree.numbers] == ["['big']", "['flag']", "['ratio']", "['spin']"]
    new = tree.unflatten([torch.zeros(8), torch.zeros(8, 3)])
    assert new == {**graph, "positions": new["positions"], "num_nodes": 8}
    assert type(new["num_nodes"]) is int


def test_counts_stay_numbers_unless_asked_for() -> None:
    leaves, tree = flatten({"positions": POSITIONS, "num_nodes": 5})
    assert len(leaves) == 1
    assert tree.numbers == (("['num_nodes']", 5),)


def test_a_tensor_used_twice_is_two_inputs() -> None:
    leaves, tree = flatten([POSITIONS, POSITIONS])
    assert [leaf.path for leaf in leaves] == ["[0]", "[1]"]
    one, two = tree.unflatten([torch.zeros(1), torch.ones(1)])
    assert (float(one), float(two)) == (0.0, 1.0)


def test_cycles_end() -> None:
    """A graph whose atoms refer back to it, as linked structures do."""
    graph = Plain(POSITIONS, EDGES)
    graph.parent = {"graph": graph}
    paths, _ = doubled(graph)
    assert paths == [".positions", ".edges"]


def test_modules_are_not_searched() -> None:
    """A module inside a graph object is not data: its parameters are constants of the program."""
    module = nn.Linear(2, 2)
    paths, new = doubled({"positions": POSITIONS, "model": module})
    assert paths == ["['positions']"]
    assert new["model"] is module


def test_objects_without_tensors_are_kept_as_they_are() -> None:
    """Only what holds a tensor is copied."""
    settings = Plain.__new__(Plain)
    settings.names = ["Mg", "O"]
    _, new = doubled({"positions": POSITIONS, "settings": settings, "empty": {}})
    assert new["settings"] is settings
    assert new["empty"] == {}


def test_gradients_pass_through() -> None:
    """A tensor that requires grad is the same tensor in the rebuilt object."""
    positions = POSITIONS.clone().requires_grad_()
    leaves, tree = flatten({"positions": positions})
    assert tree.unflatten([leaf.tensor for leaf in leaves])["positions"] is positions


def test_a_graph_is_evaluated_on_the_accelerator_that_holds_some_of_it() -> None:
    """Also if its first tensor is one that people leave on the CPU: a cell, a number of atoms."""
    there = torch.device("meta")
    assert device_of(flatten({"cell": torch.eye(3), "positions": POSITIONS.to(there)})[0]) == there
    assert device_of(flatten({"cell": torch.eye(3)})[0]) == torch.device("cpu")
    assert device_of([]) == torch.device("cpu")


def test_pyg_data() -> None:
    """PyG's Data keeps its tensors in stores of its own."""
    data = pytest.importorskip("torch_geometric.data")
    graph = data.Data(pos=POSITIONS, edge_index=EDGES, name="MgO")
    before = copy.copy(graph.to_dict())
    paths, new = doubled(graph)
    assert sorted(paths) == ["['edge_index']", "['pos']"]
    assert type(new) is type(graph)
    assert bool((new.pos == 1).all())
    assert bool((new["edge_index"] == 1).all())
    assert new.name == "MgO"
    new.energy = torch.zeros(1)
    assert graph.to_dict().keys() == before.keys()
    assert graph.pos is POSITIONS
    assert graph.edge_index is EDGES


def test_pyg_batch() -> None:
    """A batch of two graphs flattens to the tensors of the batch, and can be taken apart again afterwards."""
    data = pytest.importorskip("torch_geometric.data")
    one = data.Data(pos=torch.zeros(2, 3), edge_index=torch.zeros(2, 1, dtype=torch.int64))
    batch = data.Batch.from_data_list([one, one])
    paths, new = doubled(batch)
    assert sorted(paths) == ["['batch']", "['edge_index']", "['pos']", "['ptr']"]
    assert new.num_graphs == 2
    assert new.pos.shape == (4, 3)
    assert not batch.pos.any()
