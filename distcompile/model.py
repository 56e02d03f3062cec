"""A compiled model: it has the call of the stock model, and a program for each kind of graph that it was given."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import peek_interpreter_stack
from torch._subclasses import FakeTensor

from .capture.garbage import seldom_collected
from .capture.threads import is_inside, one_at_a_time, quiet
from .capture.trace import capture, told_in_words
from .default_device import as_the_user_has_it, on_the_host
from .errors import CaptureError, GuardError, NoIndexSpaceError, UnsupportedOp
from .few_rows import differs_in_few_rows, fitted, has_more_rows
from .ir import Normal, Runnable, Tiled, grown
from .ir.tree import Leaf, Tree, device_of, flatten
from .outside import Outside
from .passes import STAGES, Lowering, Stage, lowering, run, simplifying
from .passes.lower.lower import compiler, get_ready, lower
from .predict.account import stretches
from .predict.by_rank import costs, needs
from .predict.fit import Fit, free_here, memory_explained
from .runtime.execution.agreement import agree
from .runtime.execution.autograd import Lockstep
from .runtime.execution.executor import Executor
from .runtime.execution.precision import as_written, precision
from .runtime.execution.preparing import Prepared
from .runtime.world import LocalWorld, World, default_world
from .show.explain import explain
from .show.progress import compiling


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings by which a model is compiled and run; see `distcompile.compile`."""

    world: World = dataclasses.field(default_factory=default_world)
    memory: int | None = None
    lowering: Lowering = "auto"
    radial_error: float | None = None
    gather: bool = True
    """False if results with rows stay divided."""
    without: tuple[str, ...] = ()
    """Names of passes to leave out."""
    after: Callable[[str, Any], None] | None = None
    """Called with the name of each pass, and the program that it returned."""

    def __post_init__(self) -> None:
        if self.lowering not in get_args(Lowering):
            raise ValueError(f"unknown lowering {self.lowering!r}: choose {', '.join(map(repr, get_args(Lowering)))}")
        if not isinstance(self.world, World):
            raise TypeError(f"world must be LocalWorld(n) or ProcessGroupWorld(), not {self.world!r}")
        if not isinstance(self.memory, int | None):
            raise TypeError(f"memory must be a number of bytes (2 * 10**9), not {self.memory!r}")
        if not isinstance(self.radial_error, float | int | None):
            raise TypeError(f"radial_error must be a relative error (1e-6), not {self.radial_error!r}")
        if self.radial_error is not None and not 0 < self.radial_error < 1:
            raise ValueError(
                f"radial_error must be a relative error above zero and below one (1e-6), not {self.radial_error!r}"
            )
        if self.memory is not None and self.memory <= 0:
            raise ValueError(f"memory must be a number of bytes above zero (2 * 10**9), not {self.memory}")


@dataclasses.dataclass(frozen=True)
class _Example:
    """A graph that was captured, but in which there was nothing to divide."""

    leaves: tuple[Leaf, ...]
    kind: tuple[Any, ...]
    """Numbers and strings of the graph object, and the autocast settings."""
    why: str


class DistributedModel:
    """A compiled model. Call it as the stock model is called: ``dmodel(graph)``."""

    def __init__(self, call: Callable[..., Any], module: nn.Module | None, settings: Settings) -> None:
        self._call, self._module = call, module
        self.settings = settings
        self._executors: list[Executor] = []
        self._undividable: list[_Example] = []
        """Graphs in which there was nothing to divide: of a few atoms, or for a branch of the model without edges."""
        self._undivided_calls = 0
        self._names = parameter_names(call)
        self.lock = threading.RLock()
        """Lets one thread evaluate at a time: programs keep the division of the last graph for the next."""
        self.trains = True
        """True if gradients are expected to be taken of the results of a module in training mode."""
        self.made_of = ""
        """How the graph objects of a calculator are made, for `explain`."""
        self.captures = 0
        """The number of captured programs: one, and one more for each other branch of the model that graphs took."""
        self.derived: dict[Any, Any] = {}
        """Functions of the model that were compiled for it, such as its derivatives; None for those that cannot be."""

    def __call__(self, *graph: Any) -> Any:
        """Evaluate the model on a whole graph object; the result is whole on every rank.

        Raises:
            InputError: the graph does not fit the model (dtype, shape, pointer range, species, NaN).
            RankError: the ranks were given different graphs.
            OutOfMemory: this rank could not get the memory it needs.
        """
        if peek_interpreter_stack() is not None:
            return self._transformed(graph)
        with normally() as finished:
            leaves, tree = self.flatten(graph)
            with self.lock:
                return finished(self._result(graph, leaves, tree))

    def on_leaves(self, leaves: list[Leaf], tree: Tree) -> Any:
        """Evaluate the model on the tensors of a graph object, and the tree that they belong to."""
        with normally() as finished, self.lock:
            return finished(self._result(tree.unflatten([leaf.tensor for leaf in leaves]), leaves, tree))

    def _transformed(self, graph: tuple[Any, ...]) -> Any:
        """A call within ``torch.func.grad``, ``jvp``, ``vmap`` and their like.

        It is one step, which is given plain tensors.
        """
        leaves, tree = flatten(graph)
        weights = [p for p in self._module.parameters() if p.requires_grad] if self._module is not None else []
        trees: list[Tree] = []

        def evaluation(_: Any, values: Sequence[Tensor]) -> list[Tensor]:
            if any(w.requires_grad for w in values[len(leaves) :]):
                raise UnsupportedOp(
                    "Weights are not differentiated through a compiled model that is called within torch.func. Use "
                    "torch.autograd.grad, or compile the function that transforms the model."
                )
            results, found = flatten(self(*tree.unflatten(values[: len(leaves)])))
            trees.append(found)
            return [result.tensor for result in results]

        outputs = Lockstep(LocalWorld(1), evaluation)([*(leaf.tensor for leaf in leaves), *weights])
        return trees[0].unflatten(outputs)

    def _result(self, graph: tuple[Any, ...], leaves: list[Leaf], tree: Tree) -> Any:
        for executor in self._matching(leaves, tree):
            try:
                return self._evaluate(executor, graph, fitted(executor.program, leaves))
            except GuardError:
                continue
        try:
            executor = self._capture(graph)
        except NoIndexSpaceError:
            return self._undivided(graph)
        return self._evaluate(executor, graph, leaves)

    def _undivided(self, graph: tuple[Any, ...]) -> Any:
        """The stock model's result, on every rank, for a graph in which there is nothing to divide."""
        self._undivided_calls += 1
        agree(self.world, self._undivided_calls, self.flatten(graph)[0])
        leaves, tree = flatten(graph)
        copies = [leaf.tensor.clone() if leaf.tensor.requires_grad else leaf.tensor.detach().clone() for leaf in leaves]
        with as_the_user_has_it():
            return self._call(*tree.unflatten(copies))

    def executor_for(self, *graph: Any) -> Executor:
        """The program that serves this graph object, captured now if none does."""
        return self._serving(graph)[0]

    def prepared(self, *graph: Any) -> tuple[Executor, Prepared]:
        """The program that serves this graph object, and the results of its index program."""
        executor, leaves, found = self._serving(graph)
        return executor, found or executor.prepare(leaves)

    def _serving(self, graph: tuple[Any, ...]) -> tuple[Executor, list[Leaf], Prepared | None]:
        """A program, the graph object's leaves, and the results of the index program if the choice needed them."""
        leaves, tree = self.flatten(graph)
        with self.lock:
            for executor in self._matching(leaves, tree):
                given = fitted(executor.program, leaves)
                try:
                    return executor, given, executor.prepare(given)
                except GuardError:
                    continue
            return self._capture(graph), leaves, None

    def on(self, world: World) -> DistributedModel:
        """The same programs on another world; nothing is captured again."""
        other = DistributedModel(self._call, self._module, dataclasses.replace(self.settings, world=world))
        other.captures, other._undividable = self.captures, list(self._undividable)
        other._executors = [executor.on(world) for executor in self._executors]
        return other

    def derive(self, function: Callable[..., Any]) -> DistributedModel:
        """A function that calls this model's stock model, to be compiled in the same way."""
        return DistributedModel(function, self._module, dataclasses.replace(self.settings, gather=True))

    @property
    def world(self) -> World:
        """The ranks that execute."""
        return self.settings.world

    @property
    def stock(self) -> Callable[..., Any]:
        """The call that was compiled, as it was given."""
        return self._call

    @property
    def module(self) -> nn.Module | None:
        """The module that the call runs, if it is known."""
        return self._module

    @property
    def program(self) -> Tiled:
        """The rewritten program of the example, tiled as it last ran.

        Raises:
            NoIndexSpaceError: there was nothing to divide in any graph so far.
        """
        if not self._executors:
            raise NoIndexSpaceError(self._undividable[-1].why if self._undividable else "Nothing was compiled yet.")
        return self._executors[0].running

    @property
    def graph_module(self) -> fx.GraphModule:
        """The rewritten graph that every rank runs."""
        return self.program.graph

    def explain(self, detail: bool = False) -> str:
        """The index spaces, pointers and collectives that were found, and why; or why there are none so far.

        With `detail`, every operator of the graph that ranks run, too: the pass that made it, and the model's line.
        """
        if not self._executors and self._undividable:
            return f"The stock model runs whole on every rank.\n{self._undividable[-1].why}\n"
        return explain(self.program, detail) + (f"\n{self.made_of}\n" if self.made_of else "")

    def stats(self, *graph: Any) -> list[dict[str, Any]]:
        """The cost of an evaluation of this graph object for each rank, without running it.

        Returns:
            For each rank a dict of ``owned`` and ``halo`` rows per space, ``bytes`` received in halo exchanges and
            reductions, ``peak_memory`` in bytes (predicted, without parameters), ``partition``. Empty for a graph in
            which there is nothing to divide.
        """
        with normally():
            return self._stats(graph)

    def _stats(self, graph: tuple[Any, ...]) -> list[dict[str, Any]]:
        try:
            executor, leaves, found = self._serving(graph)
        except NoIndexSpaceError:
            return []
        prepared = found or executor.prepare(leaves)
        free = free_here(self.world, device_of(leaves))
        assert isinstance(executor.fit, Fit)  # it keeps the tilings that it made
        with self.lock:
            division = executor.layout(prepared).division
            program = executor.fit.tiling(executor.fit.choose(prepared.sizes, division, free)[0])
        return costs(program, prepared.sizes, division, division.partition.method)

    def flatten(self, graph: tuple[Any, ...]) -> tuple[list[Leaf], Tree]:
        """The tensors of what the model is called with, named by its arguments, and the tree that they belong to.

        Raises:
            CaptureError: they are those of a capture under way.
        """
        leaves, tree = flatten(graph, counts=True)
        if is_inside() or any(isinstance(leaf.tensor, FakeTensor | torch.SymInt) for leaf in leaves):
            raise CaptureError(
                "The model that is to be captured is a compiled one already, or calls one (distribute() changes a "
                "calculator's model in place). Compile the stock model, or use the compiled one as it is."
            )
        named = []
        for leaf in leaves:
            position, _, rest = leaf.path.removeprefix("[").partition("]")
            name = self._names[int(position)] if int(position) < len(self._names) else f"input {position}"
            named.append(Leaf(name + rest, leaf.tensor))
        return named, tree

    def _matching(self, leaves: list[Leaf], tree: Tree) -> list[Executor]:
        """Programs captured with the same numbers and strings, except from an example too small to tell rows by."""
        self._executors = [e for e in self._executors if e.program.is_current and e.running.is_current]
        return [
            e
            for e in self._executors
            if e.program.captured.numbers == tree.numbers
            and set(e.program.captured.texts) <= set(tree.texts)
            and e.program.captured.precision == precision()
            and not differs_in_few_rows(leaves, e.program.captured.leaves)
        ]

    def _capture(self, graph: tuple[Any, ...]) -> Executor:
        """A new program, for graphs like this one.

        Raises:
            NoIndexSpaceError: there is nothing to divide in it, or in a graph with as many rows of everything.
        """
        leaves, tree = self.flatten(graph)
        kind = (tree.numbers, tree.texts, precision())
        for known in self._undividable:
            if known.kind == kind and not has_more_rows(leaves, known.leaves):
                raise NoIndexSpaceError(known.why)
        try:
            return self._captured(graph, leaves)
        except NoIndexSpaceError as error:
            self._undividable.append(_Example(tuple(leaves), kind, str(error)))
            raise

    def _captured(self, graph: tuple[Any, ...], leaves: list[Leaf]) -> Executor:
        settings = self.settings
        with one_at_a_time():
            get_ready(settings.lowering)
        with one_at_a_time(), seldom_collected():  # the setting of garbage collection holds for all threads
            captured = capture(self._call, self._module, graph, [leaf.path for leaf in leaves])
            normal = Normal(captured, captured.graph_module)
            with as_written(), quiet(), told_in_words():
                stages = self._stages([leaf.tensor for leaf in leaves])
                program: Tiled = run(normal, stages, without=settings.without, after=settings.after)
            self.captures += 1
            _warn_of_whole(program)
            # Kernels for other devices are made when asked for: no GPU has shown yet that they are faster.
            beside = settings.lowering == "auto" and device_of(leaves).type == "cpu"
            faster = self._faster if beside else None
            fit = Fit(program, settings.memory, self._lowered, settings.without, faster, self.world.size == 1)
            executor = Executor(program, self.world, fit)
            if settings.memory is None:  # else the first graph decides how much memory is used
                executor.run_as(fit.runnable())
        self._executors.append(executor)
        return executor

    def _stages(self, leaves: Sequence[Tensor]) -> list[Stage]:
        """The stages before lowering, for an example with these tensors."""
        tables = simplifying(self.settings.radial_error, leaves)
        return [tables if stage.name == tables.name else stage for stage in STAGES[:-1]]

    def history(self, executor: Executor) -> list[tuple[str, Normal]]:
        """The program of one of this model's executors after the capture and after each pass, by name.

        Passes run once more for it, but for the last one, which makes the program ready to run.
        """
        captured = executor.program.captured
        found = [("capture", Normal(captured, captured.graph_module))]
        stages = self._stages([leaf.tensor for leaf in captured.leaves])
        with one_at_a_time(), as_written(), quiet(), told_in_words():
            run(
                found[0][1],
                stages,
                without=self.settings.without,
                after=lambda name, program: found.append((name, program)),
            )
        return [*found, (lower.__name__, executor.running)]

    def _lowered(self, program: Tiled) -> Runnable:
        """A program in the form in which it runs."""
        with one_at_a_time(), compiling() as notify, as_written():
            runnable: Runnable = run(program, (lowering(self.settings.lowering, notify),))
        return runnable

    @staticmethod
    def _faster(program: Tiled) -> Runnable:
        """The same with component code for bodies; called beside evaluations."""
        return lower(program, "components") if compiler() is not None else grown(program, Runnable)

    def _evaluate(self, executor: Executor, graph: tuple[Any, ...], leaves: list[Leaf]) -> Any:
        carry, capture = self._carry(executor, leaves), executor.program.captured
        later = capture.differentiates and not (self.trains and self._is_training)

        outside = Outside(self, graph, leaves, self.world.size, self.settings.memory) if any(carry) else None

        def predicted() -> list[int]:
            prepared = executor.prepare(leaves)
            return needs(executor.running, prepared.sizes, executor.layout(prepared).division)

        with memory_explained(self.world, predicted):
            results = executor(leaves, any(carry), later, outside, self.settings.gather)
        given = zip(results, carry, strict=True)
        return capture.result.unflatten([r.detach() if isinstance(r, Tensor) and not c else r for r, c in given])

    @property
    def _is_training(self) -> bool:
        return self._module is not None and self._module.training

    def _carry(self, executor: Executor, leaves: list[Leaf]) -> list[bool]:
        """True for each result that carries gradients: as in the stock model, if it is in the mode of the capture.

        In the other mode, a model that takes its gradients itself has results that carry gradients for training only.
        """
        capture = executor.program.captured
        if not torch.is_grad_enabled():
            return [False] * len(capture.origins)
        if self._is_training is not capture.training:
            return [self._is_training or not capture.differentiates] * len(capture.origins)
        return [o is not None and o.carry(leaves) for o in capture.origins]


def _warn_of_whole(program: Tiled) -> None:
    """Warn, once for a program, that some of it does not scale."""
    found = stretches(program)
    if not found:
        return
    first, others = found[0], f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    warnings.warn(
        f"{sum(s.operators for s in found)} operators run on all rows on every rank, since no rule divides them: the "
        f"results are right, but this part of the model gets neither faster nor smaller with more ranks. First: "
        f"{first.operator} at {first.line}, {first.why or 'given whole'}{others}. explain() lists them all.",
        stacklevel=2,
    )


@contextmanager
def normally() -> Iterator[Callable[[Any], Any]]:
    """Leave inference mode, in which nothing could be kept for later calls, and the user's default device.

    Results are given back as made in that mode.
    """
    if not torch.is_inference_mode_enabled():
        with on_the_host():
            yield lambda result: result
        return

    def finished(result: Any) -> Any:
        leaves, tree = flatten(result)
        with torch.inference_mode():
            return tree.unflatten([x.clone() if isinstance(x, Tensor) else x for x in (leaf.tensor for leaf in leaves)])

    with torch.inference_mode(False), torch.no_grad(), on_the_host():
        yield finished


def arguments(graph: Any) -> tuple[Any, ...]:
    """The positional arguments that a graph object stands for: a tuple is several, a named tuple is one."""
    return graph if isinstance(graph, tuple) and not hasattr(graph, "_fields") else (graph,)


def parameter_names(call: Callable[..., Any]) -> list[str]:
    """The model's names of its positional inputs, for messages."""
    try:
        function = call.func if isinstance(call, functools.partial) else call
        parameters = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters.values() if p.kind in kinds]
