"""Cut the whole graph's values into one rank's rows, and put its results together again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor

from ...ir import Dim, Input, Placement, Space
from ..world import Communicator
from .plan import SpacePlan

Order = tuple[Tensor, list[int]]
"""The global numbers of all ranks' owned rows, by rank, and the number that each rank owns."""


@dataclasses.dataclass(frozen=True)
class DividedRows:
    """The rows of a result that are on this process; on virtual ranks, those of all, one rank after the other."""

    values: Tensor
    """Those rows.  # Shape: that of the whole tensor, but for dimension `dim`"""
    numbers: Tensor
    """Their places along dimension `dim` of the whole tensor.  # Shape: [rows here], int64"""
    rows: int
    """Rows of the whole tensor."""
    dim: int = 0


def own_rows(value: Tensor, place: Placement, orders: Mapping[str, Order], rank: int) -> DividedRows | None:
    """A rank's rows of a value as a result; None if it is whole, or divided along several dimensions."""
    divided = [at for at, dim in enumerate(place.dims) if dim and any(isinstance(f, Space) for f in dim)]
    if len(divided) != 1:
        return None
    (at,) = divided
    factors = place.dims[at]
    position, space = next((i, f) for i, f in enumerate(factors) if isinstance(f, Space))
    order, counts = orders[space.name]
    lengths = [len(order) if isinstance(f, Space) else int(f) for f in factors]  # type: ignore[arg-type]
    every = torch.arange(math.prod(lengths)).reshape(lengths)
    mine = every.index_select(position, rows_of((order, counts), rank))
    return DividedRows(value, mine.reshape(-1), every.numel(), at)


def rows_of(order: Order, rank: int) -> Tensor:
    """The global numbers of the rows that a rank owns.  # Shape: [n_owned], int64"""
    numbers, counts = order
    return numbers[sum(counts[:rank]) : sum(counts[: rank + 1])]


def joined(parts: Sequence[DividedRows]) -> DividedRows:
    """The rows of several ranks as those of one process."""
    values = torch.cat([p.values for p in parts], parts[0].dim)
    return dataclasses.replace(parts[0], values=values, numbers=torch.cat([p.numbers for p in parts]))


def local_numbers(plan: SpacePlan, rows: int) -> Tensor:
    """Global row number -> local number (owned rows first, then halo rows); -1 for rows not on this rank."""
    numbers = torch.full((rows,), -1, dtype=torch.int64)
    numbers[plan.owned] = torch.arange(len(plan.owned))
    numbers[plan.halo] = torch.arange(len(plan.owned), len(plan.owned) + len(plan.halo))
    return numbers


def shard_inputs(
    inputs: Sequence[Input],
    shapes: Sequence[tuple[sympy.Expr, ...]],
    values: Sequence[Any],
    spaces: Mapping[sympy.Symbol, Space],
    plans: Mapping[str, SpacePlan],
    sizes: Mapping[str, int],
    orders: Mapping[str, Order],
    to: torch.device | None = None,
) -> list[Any]:
    """The values that one rank passes to the program, one for each placeholder.

    Args:
        inputs: the program's inputs.
        shapes: per input, its shape in the symbols of the spaces.
        values: the outputs of the index program, whole.
        spaces: all spaces by symbol.
        plans: this rank's plan of every sharded space, and of every choice of some rows of one.
        sizes: rows of every space.
        orders: for every sharded space, the rows that all ranks own.
        to: the device that the rank computes on; by default that of the values.
    """
    numbers = {name: local_numbers(plans[name], n) for name, n in sizes.items() if name in plans}
    device = to or next((v.device for v in values if isinstance(v, Tensor)), torch.device("cpu"))
    given = zip(inputs, shapes, strict=True)
    return [_input(i, shape, values, spaces, plans, sizes, numbers, orders, device, to) for i, shape in given]


def _input(
    given: Input,
    shape: tuple[sympy.Expr, ...],
    values: Sequence[Any],
    spaces: Mapping[sympy.Symbol, Space],
    plans: Mapping[str, SpacePlan],
    sizes: Mapping[str, int],
    numbers: Mapping[str, Tensor],
    orders: Mapping[str, Order],
    device: torch.device,
    to: torch.device | None,
) -> Any:
    name = given.space.name if given.space is not None else ""
    match given.kind:
        case "size":
            return len(plans[name].owned) if name in plans else sizes[name]
        case "halo_size":
            return len(plans[name].halo)
        case "interior":
            return plans[name].interior
        case "send_rows":
            return plans[name].send_rows.to(device)
        case "splits":
            return plans[name].splits
        case "places":
            assert given.space is not None and given.space.some_of is not None
            whole = given.space.some_of.name
            return (numbers[whole][plans[name].halo] - len(plans[whole].owned)).to(device)
        case "owned":
            assert given.space is not None
            return _rows_here(given.space, plans).to(device)
        case "order":
            return orders[name][0].to(device)
        case "counts":
            return torch.tensor(orders[name][1])
        case "number":
            return values[given.source]
    value: Tensor = values[given.source]
    for dim, size in enumerate(shape):
        space = spaces.get(size)
        if space is not None and space.sharded:
            value = value.index_select(dim, _rows_here(space, plans).to(value.device))
    if given.kind == "pointer":
        value = numbers[name].to(value.device)[value.long()].to(value.dtype)
        if value.device.type == "cpu":  # torch would count row -1 from the end and go on; an accelerator is not asked
            assert not bool((value < 0).any()), f"{given.name} points at rows of {name} that are not here"
    return value if to is None else value.to(to, non_blocking=True)


def _rows_here(space: Space, plans: Mapping[str, SpacePlan]) -> Tensor:
    """The global numbers of the rows of a space, or of halo rows, on this rank."""
    return plans[space.name].owned if space.halo_of is None else plans[space.halo_of.name].halo


def gather_output(value: Tensor, place: Placement, orders: Mapping[str, Order], comm: Communicator) -> Tensor:
    """Put the rows of every rank together, in the order of the whole graph.

    Args:
        value: this rank's rows.
        place: the division of the value.
        orders: per space, the rows that the ranks hold.
        comm: the collectives of this rank.
    """
    for at, dim in enumerate(place.dims):
        if dim:
            value = _gather_dim(value, at, dim, orders, comm)
    return value


def _gather_dim(value: Tensor, at: int, dim: Dim, orders: Mapping[str, Order], comm: Communicator) -> Tensor:
    (position,) = [i for i, f in enumerate(dim) if isinstance(f, Space)]
    space = dim[position]
    assert isinstance(space, Space)
    order, counts = orders[space.name]
    factors = [counts[comm.rank] if isinstance(f, Space) else f for f in dim]
    split = value.reshape(*value.shape[:at], *factors, *value.shape[at + 1 :]).movedim(at + position, 0)
    rows = comm.all_gather(split.contiguous(), counts)
    whole = torch.empty_like(rows).index_copy_(0, order.to(rows.device), rows).movedim(0, at + position)
    return whole.reshape(*value.shape[:at], -1, *value.shape[at + 1 :])
