"""Run a rewritten program on the ranks of a world.

    whole graph object -> checks -> index program -> (partition, plan) -> shards -> graph on every rank -> whole result

The plan is kept while the pointers stay the same, as they do between two neighbour lists; the partition longer, while
it is nearly as good as it was.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from ...errors import DistcompileError
from ...ir import Output, Placement, Pointer, Space, Tiled, placement
from ...ir.graphs import runnable
from ...ir.operators import facts
from ...ir.tree import Leaf, device_of
from ..division.partition import Partition
from ..division.plan import Division, SpacePlan, Tally, divide, follow
from ..division.shard import DividedRows, Order, gather_output, joined, own_rows, shard_inputs
from ..world import Communicator, World, active, communicator
from .agreement import Report, compare, fingerprint
from .autograd import Lockstep, enter, leave
from .devices import Elsewhere
from .grouping import grouped
from .memory import free, share
from .precision import as_written
from .preparing import Layout, Preparation, Prepared
from .tables import refuse_gradients_of_tables, weights_of_tables, within_tables
from .tiles import OfNothing


class Fitting(Protocol):
    """Chooses the tiling that runs, see `Executor`."""

    def __call__(self, sizes: dict[str, int], division: Division | Tally, free: int | None, /) -> Tiled:
        """The tiling for a division (sizes of all spaces, bytes free for each rank), the same on every rank."""

    def took(self, seconds: float) -> None:
        """An evaluation took so long."""

    @property
    def is_faster_ready(self) -> bool:
        """True if what runs has a faster form by now."""

    def switch(self) -> Tiled:
        """That form."""


class Outside(Protocol):
    """Another way to the gradients of an evaluation than to differentiate it."""

    def pays(self, program: Tiled, sizes: Mapping[str, int], /) -> bool:
        """True if it is to be taken for so many rows."""

    def __call__(
        self, inputs: Sequence[Tensor], wanted: Sequence[int], gradients: Sequence[Tensor | None], /
    ) -> list[Tensor | None] | None:
        """Gradients, see `autograd.Gradients`."""


class Executor:
    """Runs one program on one world."""

    def __init__(
        self,
        program: Tiled,
        world: World,
        fit: Fitting | None = None,
    ) -> None:
        """
        Args:
            program: a program that went through all passes.
            world: the ranks that execute.
            fit: chooses a tiling for a division (sizes of all spaces, division, bytes free for each rank), the same on
                every rank, or refuses it.
        """
        self.program, self.world = program, world
        self.running = program
        """The program in the tiling that runs."""
        self.fit = fit
        self.calls = 0
        self._preparation = Preparation.of(program)
        self.inputs, self._shapes = self._preparation.inputs, self._preparation.shapes
        self._has_limits = any(facts(n).finds_extremes for n in program.graph.graph.nodes)
        (output,) = [n for n in program.graph.graph.nodes if n.op == "output"]
        self.places = [placement(n) for n in output.args[0]]
        self._devices = [getattr(n.meta["val"], "device", None) for n in output.args[0]]
        self._spaces = {s.symbol: s for s in program.row_spaces}
        self.steps = grouped(program)
        """The graph that ranks run: regions, groups of them that run in step, and what is between."""
        self._constants = _constants(program, self.steps)
        self._elsewhere: dict[torch.device, Elsewhere] = {}
        (output,) = [n for n in program.index_program.graph.nodes if n.op == "output"]
        leaf_of = {n: i for i, n in enumerate(n for n in program.index_program.graph.nodes if n.op == "placeholder")}
        self._leaf_of = {i: leaf_of[n] for i, n in enumerate(output.args[0]) if n in leaf_of}
        self._layout: Layout | None = None
        self._fitted: Layout | None = None
        self._standing: Partition | None = None

    def __call__(
        self,
        leaves: Sequence[Leaf],
        differentiable: bool = False,
        later: bool = False,
        outside: Outside | None = None,
        gather: bool = True,
    ) -> list[Any]:
        """Evaluate the program on a whole graph object, given as its leaves; return the result's tensors, whole.

        With `differentiable`, they carry gradients to the leaves and parameters that require them, to any order. With
        `later`, the work for gradients is done when they are asked for, which suits results that hardly ever need them.
        `outside` has another way to gradients, which is taken where it pays. Without `gather`, results that have rows
        stay divided: they are `DividedRows`, and carry no gradients.

        Raises:
            InputError: the graph object does not fit the program, or needs more memory than there is.
            GuardError: it takes another branch of the model than the example did.
            RankError: ranks were given different graph objects, or another rank failed.
        """
        begun = time.perf_counter()
        results = self._called(leaves, differentiable and gather, later, outside, gather)
        if self.fit is not None:
            self.fit.took(time.perf_counter() - begun)
        return results

    def _called(
        self, leaves: Sequence[Leaf], differentiable: bool, later: bool, outside: Outside | None, gather: bool
    ) -> list[Any]:
        self.calls += 1
        problem: DistcompileError | None = None
        prepared: Prepared | None = None
        home = device_of(leaves)
        try:
            prepared = self.prepare(leaves)
        except DistcompileError as error:
            problem = error
        numbers = repr((self.program.captured.numbers, self.program.captured.precision))
        graph = ""
        if self.world.size > 1:
            graph = (prepared.digest if prepared is not None else fingerprint(leaves)) + numbers
        held = prepared.held if prepared is not None else None
        fits = self.fit is None or (held is not None and held is self._fitted)
        ready = fits and self.fit is not None and self.fit.is_faster_ready
        report = Report(self.calls, graph, str(problem or ""), None, ready)
        layouts: list[Layout] = []
        wanted = self._differentiated(leaves) if differentiable and problem is None else {}

        def work(comm: Communicator, values: Sequence[Tensor] = ()) -> list[Any]:
            left = None if fits or problem is not None else free(comm.device or home)
            everyone = dataclasses.replace(report, free=left).exchanged(comm)
            compare(comm.rank, everyone)
            if problem is not None:
                raise problem
            assert prepared is not None
            if not layouts:  # virtual ranks share the layout that the first one made
                layouts.append(held or self._laid_out_anew(prepared))
                self._standing = layouts[0].division.partition
                if self.fit is not None and not fits:
                    free_for_each = share([r.free for r in everyone])
                    self.run_as(self.fit(prepared.sizes, layouts[0].division, free_for_each))
                    self._fitted = layouts[0]
                elif self.fit is not None and all(r.ready for r in everyone):  # all ranks switch at the same call
                    self.run_as(self.fit.switch())
            given = dict(zip(wanted, values, strict=False)) if torch.is_grad_enabled() else {}
            return self._run(comm, prepared, layouts[0], given, gather)

        if not wanted:
            ranks = self.world.run(work)
            return [
                joined(parts) if isinstance(parts[0], DividedRows) else parts[0] for parts in zip(*ranks, strict=True)
            ]
        if outside is not None and (prepared is None or not outside.pays(self.program, prepared.sizes)):
            outside = None
        known_later = self.world.virtual or later or outside is not None
        if known_later or weights_of_tables(self.program):
            inputs = list(wanted.values())
            gradients = None if outside is None else lambda _, *asked: outside(inputs, *asked)
            return Lockstep(self.world, work, gradients)(inputs)
        return self.world.run(lambda comm: work(comm, list(wanted.values())))[0]

    def on(self, world: World) -> Executor:
        """The same program, as it runs, on another world."""
        other = Executor(self.program, world, self.fit)
        other.run_as(self.running)
        return other

    def run_as(self, program: Tiled) -> None:
        """Run this tiling of the program from now on."""
        if program is not self.running:
            self.running, self.steps = program, grouped(program)
            self._constants = _constants(program, self.steps)
            self._elsewhere = {}

    def inputs_without_rows(self) -> list[int]:
        """Outputs of the index program that inputs of the graph are, and that have no rows: numbers, fixed shapes."""
        given = zip(self.inputs, self._shapes, strict=True)
        return [
            i.source
            for i, shape in given
            if i.kind == "number" or (i.kind == "rows" and not any(s.free_symbols for s in shape))
        ]

    @property
    def device(self) -> torch.device:
        """The device of the example."""
        return device_of(self.program.captured.leaves)

    def _on(self, device: torch.device) -> Elsewhere:
        """The program that runs, on another device than the graph object's."""
        if device not in self._elsewhere:
            self._elsewhere[device] = Elsewhere(self.running, self.device, device)
        return self._elsewhere[device]

    def at_home(self, results: Sequence[Any]) -> list[Any]:
        """Results on the devices on which the stock model has them, from a rank on another one."""

        def moved(result: Any, output: Output) -> Any:
            device = self._devices[output.position] if output.source == "graph" else None
            if isinstance(result, DividedRows):
                return dataclasses.replace(result, values=moved(result.values, output))
            return result.to(device) if isinstance(result, Tensor) and device is not None else result

        return [moved(r, o) for r, o in zip(results, self.program.outputs, strict=False)]

    def constants(self) -> list[Leaf]:
        """Parameters and constant tensors of the program, by name."""
        return [Leaf(name, value) for name, value in sorted(self._constants.items()) if isinstance(value, Tensor)]

    def _differentiated(self, leaves: Sequence[Leaf]) -> dict[str | int, Tensor]:
        """The inputs to which results carry gradients: parameters by name, inputs of the program by position."""
        found: dict[str | int, Tensor] = {
            name: p for name, p in self.program.graph.named_parameters() if p.requires_grad
        }
        found |= weights_of_tables(self.program)
        for position, leaf in self._leaf_of.items():
            if leaves[leaf].tensor.requires_grad:
                found[position] = leaves[leaf].tensor
        return found

    def _run(
        self,
        comm: Communicator,
        prepared: Prepared,
        layout: Layout,
        given: Mapping[str | int, Tensor],
        gather: bool = True,
    ) -> list[Any]:
        """One rank's part; `given` are the values of `_differentiated`, empty if there is nothing to differentiate."""
        refuse_gradients_of_tables(given)
        plans = layout.division.for_rank(comm.rank)
        values = list(prepared.values)
        for position, tensor in given.items():
            if isinstance(position, int):
                values[position] = enter(tensor)
        finish = leave if given else _gather
        found: list[Any] = []
        here = self.results_here(values, plans, layout.sizes, layout.orders, given, comm.device)
        for value, place in zip(here, self.places, strict=True):
            mine = None
            if not gather and isinstance(place, Placement):
                mine = own_rows(value, place, layout.orders, comm.rank)
            found.append(mine or (finish(value, place, layout.orders) if isinstance(place, Placement) else value))
        everywhere = Placement()  # an input that is a result, too, is the caller's: its gradient counts once
        handed_back = {o.position for o in self.program.outputs if o.source == "index"} & given.keys()
        for position in handed_back:
            values[position] = leave(values[position], everywhere, layout.orders)
        results = [found[o.position] if o.source == "graph" else values[o.position] for o in self.program.outputs]
        results = within_tables(self.program, results)
        return results if comm.device is None else self.at_home(results)

    def results_here(
        self,
        values: Sequence[Any],
        plans: Mapping[str, SpacePlan],
        sizes: Mapping[str, int],
        orders: Mapping[str, Order],
        given: Mapping[str | int, Tensor],
        device: torch.device | None = None,
    ) -> Sequence[Any]:
        """What the graph returns on this rank: its rows of each result.

        Args:
            values: the outputs of the index program.
            plans: this rank's rows.
            sizes: rows that `values` have, of every space.
            orders: as for `runtime.division.shard.shard_inputs`.
            given: see `_run`.
            device: the device that this rank computes on; by default that of the graph object.
        """
        parameters = {name: enter(tensor) for name, tensor in given.items() if isinstance(name, str)}
        # Virtual ranks take turns within the graph, so none may set its parameters on the module that all share.
        constants, tiled, differentiated = self._constants, self.steps, self.running.differentiated
        if device not in (None, self.device):
            elsewhere = self._on(device)
            constants, tiled, differentiated = elsewhere.constants(constants), elsewhere.tiled, elsewhere.differentiated
            parameters = {name: tensor.to(device) for name, tensor in parameters.items()}
        graph = runnable(differentiated if given else tiled)
        module = SimpleNamespace(**{**constants, **parameters})
        with torch.set_grad_enabled(bool(given) and torch.is_grad_enabled()), as_written():
            local = shard_inputs(self.inputs, self._shapes, values, self._spaces, plans, sizes, orders, device)
            # Regions handle a rank without rows. Values of all rows are empty only if no rank has any.
            some = sizes.values() if graph is tiled else (len(p.owned) for p in plans.values())
            if self._has_limits and not all(some):
                return OfNothing(graph, vars(module)).run(*local)  # type: ignore[no-any-return]
            return type(graph).forward(module, *local)  # type: ignore[no-any-return, arg-type]

    def layout(self, prepared: Prepared) -> Layout:
        """The division of a graph object among the ranks; the last one if its pointers still hold.

        It depends on this graph object and on those that were evaluated, which are the same on all ranks. A graph
        object that was only asked about, perhaps on one rank, leaves no trace.
        """
        is_last = prepared.held is not None and prepared.held is self._layout
        return prepared.held if is_last and prepared.held is not None else self._laid_out_anew(prepared)

    def _laid_out_anew(self, prepared: Prepared) -> Layout:
        division = self.divide(prepared, self.world.size, self._standing)
        self._layout = self.laid_out(prepared, division)
        return self._layout

    def laid_out(self, prepared: Prepared, division: Division) -> Layout:
        """The layout of a division, with the order in which results are put together."""
        orders = {name: (division.order(name), division.counts(name)) for name in division.ranks}
        return Layout(prepared.pointers, prepared.sizes, division, orders)

    def divide(self, prepared: Prepared, parts: int, last: Partition | None = None) -> Division:
        """The division of a graph object among any number of ranks; `last` as for `runtime.division.plan.divide`."""
        spaces, pointers, values = self._to_divide(prepared)
        coordinates = [x.cpu() for x in prepared.coordinates]
        return divide(spaces, pointers, prepared.sizes, values, coordinates, parts, last, self.program.thinned_spaces)

    def divide_as(self, prepared: Prepared, found: Partition, parts: int) -> Division:
        """The division of a graph object among ranks that own these atoms."""
        spaces, pointers, values = self._to_divide(prepared)
        return follow(spaces, pointers, prepared.sizes, values, found, parts, self.program.thinned_spaces)

    def _to_divide(self, prepared: Prepared) -> tuple[list[Space], list[Pointer], dict[str, Tensor]]:
        """The spaces whose rows are divided, the pointers between them, and their values."""
        spaces = [s for s in self.program.spaces if s.sharded]
        pointers = [p for p in self.program.pointers if p.source.sharded and p.target.sharded]
        return spaces, pointers, {name: pointer.cpu() for name, pointer in prepared.pointers.items()}

    def run_rank(self, comm: Communicator, prepared: Prepared, layout: Layout) -> list[Tensor]:
        """One rank's part of an evaluation in a given layout."""
        with active(comm):
            return self._run(comm, prepared, layout, {})

    def prepare(self, leaves: Sequence[Leaf], whole: bool = True) -> Prepared:
        """Check a graph object and run the index program on it.

        With `whole` false, it is one rank's rows of one: how many rows there are altogether is checked elsewhere.
        """
        last = self._layout if whole else None
        return self._preparation(leaves, last, whole, digested=whole and self.world.size > 1)


def _constants(program: Tiled, steps: fx.GraphModule) -> dict[str, Any]:
    """Parameters, constant tensors, regions and groups of them, by their names in the generated code."""
    graphs = (program.graph, program.differentiated, steps)
    nodes = [(g, str(n.target)) for g in graphs for n in g.graph.nodes if n.op in ("get_attr", "call_module")]
    return {name: getattr(g, name) for g, name in nodes}


def _gather(value: Tensor, place: Placement, orders: Mapping[str, Order]) -> Tensor:
    return gather_output(value, place, orders, communicator())
