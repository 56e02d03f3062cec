"""``distcompile.compile``: a model becomes a `DistributedModel` with the same call."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import peek_interpreter_stack
from torch._subclasses import FakeTensor

from .capture.garbage import seldom_collected
from .capture.threads import is_inside, one_at_a_time, quiet
from .capture.trace import capture, told_in_words
from .check.against_stock import check
from .check.validate import CHECKED
from .errors import CaptureError, GuardError, NoIndexSpaceError, OutOfMemory, RankError, UnsupportedOp
from .few_rows import differs_in_few_rows, fitted, has_more_rows
from .ir import Program
from .ir.tree import Leaf, Tree, flatten
from .passes import PIPELINE
from .passes.lower.lower import get_ready, lower
from .predict.account import collectives, stretches
from .predict.fit import Fit, free_here, needs, rows_of_ranks
from .runtime.execution.autograd import Lockstep
from .runtime.execution.executor import Executor, Prepared, agree, device_of, fingerprint
from .runtime.execution.precision import as_written, precision
from .runtime.world import LocalWorld, World, default_world
from .show.explain import explain
from .show.printer import show_program
from .show.progress import compiling

Lowering = Literal["eager", "inductor"]
"""Who runs the body of a region: PyTorch, operator by operator, or C++ code that Inductor generates."""


def compile(
    model: nn.Module | Callable[..., Any],
    example_graph: Any,
    *,
    model_kwargs: dict[str, Any] | None = None,
    world: World | None = None,
    lowering: Lowering = "eager",
    memory: int | None = None,
    validate: bool = True,
) -> DistributedModel:
    """Compile a model's call for any number of ranks.

    Args:
        model: a module (or a callable that runs one) that takes a graph object.
        example_graph: a graph object as `model` takes it; a tuple for a model with several positional inputs. Later
            graphs may have any sizes, species and cells. In a graph of a few atoms there is nothing to divide: the
            stock model runs on every rank, and the first larger graph is compiled for.
        model_kwargs: keyword arguments of every call (``compute_stress=True``); constants of the program.
        world: who executes; the default process group if there is one, else one rank.
        lowering: how the row-local stretches of the program run: ``"eager"`` calls each operator of PyTorch,
            ``"inductor"`` generates C++ code for them (compiled once, cached on disk), which is faster to run and takes
            a minute to make. Without a C++ compiler there is a warning and operators are called.
        memory: bytes that a rank may use for one evaluation; what they hold is not computed again, which is faster.
            By default little is held, of what is free, divided among the ranks of a machine. A graph that would need
            more than there is stores less and computes more again; if that does not suffice, it is refused before it
            starts.
        validate: compare the program with the stock model on the example (if it has at most 128 atoms) and on a
            smaller graph cut out of it.

    Returns:
        A callable that returns what ``model(graph, **model_kwargs)`` returns, whole, on every rank.

    Raises:
        TypeError, ValueError: an argument is none of what it may be.
        CaptureError: the call cannot become one graph, or a size was baked in.
        UnsupportedOp: an operator touches a distributed dimension in a way that no rule covers.
        ValidationError: the program does not reproduce the stock model.
    """
    compiled, executor = compiled_for(
        model, example_graph, model_kwargs=model_kwargs, world=world, lowering=lowering, memory=memory
    )
    args = arguments(example_graph)
    with _normally():
        if executor is None:
            _warn_of_nothing(compiled, args)
        elif validate:
            check(compiled.stock, compiled.module, executor, *compiled._flatten(args))
    return compiled


def compiled_for(
    model: nn.Module | Callable[..., Any],
    example_graph: Any,
    *,
    model_kwargs: dict[str, Any] | None = None,
    world: World | None = None,
    lowering: Lowering = "eager",
    memory: int | None = None,
) -> tuple[DistributedModel, Executor | None]:
    """What `compile` returns, not checked, with the program of the example; None if there is nothing to divide in it.

    Arguments and errors as of `compile`.
    """
    if lowering not in ("eager", "inductor"):
        raise ValueError(f"unknown lowering {lowering!r}: choose 'eager' or 'inductor'")
    if not callable(model):
        raise TypeError(f"model must be a module or a function that takes a graph, not {type(model).__name__}")
    if not isinstance(world, World | None):
        raise TypeError(f"world must be LocalWorld(n) or ProcessGroupWorld(), not {world!r}")
    if not isinstance(memory, int | None):
        raise TypeError(f"memory must be a number of bytes (2 * 10**9), not {memory!r}")
    if memory is not None and memory <= 0:
        raise ValueError(f"memory must be a number of bytes above zero (2 * 10**9), not {memory}")
    call = functools.partial(model, **(model_kwargs or {}))
    module = model if isinstance(model, nn.Module) else _module_of(model)
    compiled = DistributedModel(call, module, world or default_world(), memory, lowering)
    with _normally():
        return compiled, _compile_everywhere(compiled, arguments(example_graph))


@dataclasses.dataclass(frozen=True)
class _Example:
    """A graph that was captured, and in which there was nothing to divide."""

    leaves: tuple[Leaf, ...]
    kind: tuple[Any, ...]
    """Numbers and strings of the graph object, and autocast."""
    why: str


class DistributedModel:
    """A compiled model. Call it as the stock model is called: ``dmodel(graph)``."""

    def __init__(
        self, call: Callable[..., Any], module: nn.Module | None, world: World, memory: int | None, lowering: Lowering
    ) -> None:
        self._call, self._module = call, module
        self.world, self.memory, self.lowering = world, memory, lowering
        self._executors: list[Executor] = []
        self._undividable: list[_Example] = []
        """Graphs in which there was nothing to divide: of a few atoms, or for a branch of the model without edges."""
        self._undivided_calls = 0
        self._names = _parameter_names(call)
        self._lock = threading.RLock()
        """Of several threads, one evaluates: programs keep the division of the last graph for the next."""
        self.trains = True
        """Whether gradients are expected to be taken of what a module in training mode returns."""
        self.captures = 0
        """How many programs were captured: one, and one more for each branch of the model that graphs made it take."""
        self.derived: dict[Any, DistributedModel] = {}
        """Functions of the model that were compiled for it, such as its derivatives."""

    def __call__(self, *graph: Any) -> Any:
        """Evaluate the model on a whole graph object; the result is whole on every rank.

        Raises:
            InputError: the graph does not fit the model (dtype, shape, pointer range, species, NaN).
            RankError: the ranks were given different graphs.
            OutOfMemory: this rank could not get the memory it needs.
        """
        if peek_interpreter_stack() is not None:
            return self._transformed(graph)
        with _normally() as finished:
            leaves, tree = self._flatten(graph)
            with self._lock:
                return finished(self._result(graph, leaves, tree))

    def _transformed(self, graph: tuple[Any, ...]) -> Any:
        """A call within ``torch.func.grad``, ``jvp``, ``vmap`` and their like: one step, given plain tensors."""
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
                return self._evaluate(executor, fitted(executor.program, leaves))
            except GuardError:
                continue
        try:
            executor = self._capture(graph)
        except NoIndexSpaceError:
            return self._undivided(graph)
        return self._evaluate(executor, leaves)

    def _undivided(self, graph: tuple[Any, ...]) -> Any:
        """What the stock model gives, on every rank: for a graph in which there is nothing to divide."""
        self._undivided_calls += 1
        agree(self.world, self._undivided_calls, self._flatten(graph)[0])
        leaves, tree = flatten(graph)
        copies = [leaf.tensor.clone() if leaf.tensor.requires_grad else leaf.tensor.detach().clone() for leaf in leaves]
        return self._call(*tree.unflatten(copies))

    def executor_for(self, *graph: Any) -> Executor:
        """The program that serves this graph object, captured now if none does."""
        return self._serving(graph)[0]

    def prepared(self, *graph: Any) -> tuple[Executor, Prepared]:
        """The program that serves this graph object, and what its index program makes of it."""
        executor, leaves, found = self._serving(graph)
        return executor, found or executor.prepare(leaves)

    def _serving(self, graph: tuple[Any, ...]) -> tuple[Executor, list[Leaf], Prepared | None]:
        """A program, the graph object's leaves, and what was made of them to see that the program serves."""
        leaves, tree = self._flatten(graph)
        with self._lock:
            for executor in self._matching(leaves, tree):
                given = fitted(executor.program, leaves)
                try:
                    return executor, given, executor.prepare(given)
                except GuardError:
                    continue
            return self._capture(graph), leaves, None

    def on(self, world: World) -> DistributedModel:
        """The same programs on another world; nothing is captured again."""
        other = DistributedModel(self._call, self._module, world, self.memory, self.lowering)
        other.captures, other._undividable = self.captures, list(self._undividable)
        other._executors = [other._executor(e.program) for e in self._executors]
        return other

    @property
    def stock(self) -> Callable[..., Any]:
        """The call that was compiled, as it was given."""
        return self._call

    @property
    def module(self) -> nn.Module | None:
        """The module that it runs, if that is known."""
        return self._module

    @property
    def program(self) -> Program:
        """The rewritten program of the example, tiled as it last ran.

        Raises:
            NoIndexSpaceError: in no graph so far was there anything to divide.
        """
        if not self._executors:
            raise NoIndexSpaceError(self._undividable[-1].why if self._undividable else "Nothing was compiled yet.")
        return self._executors[0].running

    @property
    def graph_module(self) -> fx.GraphModule:
        """The rewritten graph that every rank runs."""
        return self.program.graph

    def explain(self) -> str:
        """The index spaces, pointers and collectives that were found, and why; or why there are none so far."""
        if not self._executors and self._undividable:
            return f"The stock model runs whole on every rank.\n{self._undividable[-1].why}\n"
        return explain(self.program)

    def stats(self, *graph: Any) -> list[dict[str, Any]]:
        """Per rank, what an evaluation of this graph object takes, without running it.

        Returns:
            One dict per rank: ``owned`` and ``halo`` rows per space, ``bytes`` received in halo exchanges and
            reductions, ``peak_memory`` in bytes (predicted, without parameters), ``partition``. None for a graph in
            which there is nothing to divide.
        """
        try:
            executor, leaves, found = self._serving(graph)
        except NoIndexSpaceError:
            return []
        prepared = found or executor.prepare(leaves)
        free = free_here(self.world, device_of(leaves))
        assert isinstance(executor.fit, Fit)  # which keeps the tilings that it made
        with self._lock:
            division = executor.layout(prepared).division
            program, _ = executor.fit.choose(prepared.sizes, division, free)
        moved = [c for c in collectives(program) if c.space]
        predicted = needs(program, prepared.sizes, division)
        return [
            {
                "rank": rank,
                "owned": rows,
                "halo": halos,
                "bytes": sum(c.row_bytes * c.rows(rows, halos, prepared.sizes) for c in moved),
                "peak_memory": predicted[rank],
                "partition": division.partition.method,
            }
            for rank, (rows, halos) in enumerate(rows_of_ranks(division))
        ]

    def _flatten(self, graph: tuple[Any, ...]) -> tuple[list[Leaf], Tree]:
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
        """Programs captured with the same numbers and strings, not from an example too small to tell rows by."""
        self._executors = [e for e in self._executors if e.program.is_current]
        return [
            e
            for e in self._executors
            if e.program.capture.numbers == tree.numbers
            and set(e.program.capture.texts) <= set(tree.texts)
            and e.program.capture.precision == precision()
            and not differs_in_few_rows(leaves, e.program.capture.leaves)
        ]

    def _capture(self, graph: tuple[Any, ...]) -> Executor:
        """A new program, for graphs like this one.

        Raises:
            NoIndexSpaceError: there is nothing to divide in it, nor was there in one with as many rows of all.
        """
        leaves, tree = self._flatten(graph)
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
        if self.lowering == "inductor":
            with one_at_a_time():
                get_ready()
        with one_at_a_time(), seldom_collected():  # garbage is collected as seldom in other threads, and that is all
            captured = capture(self._call, self._module, graph, [leaf.path for leaf in leaves])
            program = Program(captured, captured.graph_module)
            with as_written(), quiet(), told_in_words():
                for compiler_pass in PIPELINE:
                    program = compiler_pass(program)
            self.captures += 1
            _warn_of_whole(program)
            if self.memory is None:  # else the first graph says how much of it is held
                program = self._lowered(program)
        self._executors.append(self._executor(program))
        return self._executors[-1]

    def _executor(self, program: Program) -> Executor:
        return Executor(program, self.world, Fit(program, self.memory, self._lowered))

    def _evaluate(self, executor: Executor, leaves: list[Leaf]) -> Any:
        carry, capture = self._carry(executor, leaves), executor.program.capture
        later = capture.differentiates and not (self.trains and self._is_training)
        try:
            results = executor(leaves, any(carry), later)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise OutOfMemory(self._explain_memory(executor, leaves)) from error
        given = zip(results, carry, strict=True)
        return capture.result.unflatten([r.detach() if isinstance(r, Tensor) and not c else r for r, c in given])

    @property
    def _is_training(self) -> bool:
        return self._module is not None and self._module.training

    def _carry(self, executor: Executor, leaves: list[Leaf]) -> list[bool]:
        """Which results carry gradients: those that do in the stock model, if it is in the mode of the capture.

        In the other mode, a model that takes its gradients itself has results that carry gradients for training only.
        """
        capture = executor.program.capture
        if not torch.is_grad_enabled():
            return [False] * len(capture.origins)
        if self._is_training is not capture.training:
            return [self._is_training or not capture.differentiates] * len(capture.origins)
        return [o is not None and o.carry(leaves) for o in capture.origins]

    def _explain_memory(self, executor: Executor, leaves: list[Leaf]) -> str:
        """What an evaluation that ran out of memory was predicted to need, and what to do."""
        prepared = executor.prepare(leaves)
        predicted = needs(executor.running, prepared.sizes, executor.layout(prepared).division)
        mine = getattr(self.world, "rank", None)
        who = f"Rank {mine} of {self.world.size}" if mine is not None else "A rank"
        need, most = predicted[mine] if mine is not None else max(predicted), max(predicted)
        return (
            f"{who} ran out of memory: its share of this graph needs about {need / 1e9:.2f} GB beside parameters and "
            f"the graph itself. Use more ranks, or machines with more memory. memory={most} accepts this graph "
            "as it is; set it to what a rank really has, and graphs that need more store less, or are refused before "
            "they start."
        )

    def _lowered(self, program: Program) -> Program:
        if self.lowering == "inductor":
            with one_at_a_time(), compiling() as notify, as_written():
                lower(program, notify)
        return program


def _warn_of_whole(program: Program) -> None:
    """Say, once for a program, that some of it does not scale."""
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


def _warn_of_nothing(compiled: DistributedModel, args: tuple[Any, ...]) -> None:
    """Say that the stock model runs whole on every rank, unless the example is a few atoms."""
    if max((n for leaf in compiled._flatten(args)[0] for n in leaf.tensor.shape), default=0) > CHECKED:
        warnings.warn(
            "The stock model runs whole on every rank, for graphs like the example: the results are right, but they "
            f"come neither faster nor in less memory with more ranks. {compiled.explain().splitlines()[1]}",
            stacklevel=3,
        )


@contextmanager
def _normally() -> Iterator[Callable[[Any], Any]]:
    """Leave inference mode, in which nothing could be kept for later calls; what is given back is as made in it."""
    if not torch.is_inference_mode_enabled():
        yield lambda result: result
        return

    def finished(result: Any) -> Any:
        leaves, tree = flatten(result)
        with torch.inference_mode():
            return tree.unflatten([x.clone() if isinstance(x, Tensor) else x for x in (leaf.tensor for leaf in leaves)])

    with torch.inference_mode(False), torch.no_grad():
        yield finished


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error is one of the several that Python and torch have for memory that is not to be had."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def arguments(graph: Any) -> tuple[Any, ...]:
    """The positional arguments that a graph object stands for: a tuple is several, a named tuple is one."""
    return graph if isinstance(graph, tuple) and not hasattr(graph, "_fields") else (graph,)


def _module_of(call: Any) -> nn.Module | None:
    """The module behind a bound method or a partial."""
    while isinstance(call, functools.partial):
        call = call.func
    owner = call if isinstance(call, nn.Module) else getattr(call, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def _parameter_names(call: Callable[..., Any]) -> list[str]:
    """What the model calls its positional inputs, for messages."""
    try:
        function = call.func if isinstance(call, functools.partial) else call
        parameters = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters.values() if p.kind in kinds]


def _compile_everywhere(compiled: DistributedModel, args: tuple[Any, ...]) -> Executor | None:
    """The program of the example, the same on every rank; a rank that fails, or differs, would leave others waiting.

    None if there is nothing to divide in the example.
    """
    executor: Executor | None = None
    problem: Exception | None = None
    try:
        executor = compiled.executor_for(*args)
    except NoIndexSpaceError:
        pass
    except Exception as error:  # whatever it is, the other ranks must hear of it
        problem = error
    report = (str(problem or ""), _digest(executor) if executor is not None else "")
    everyone = compiled.world.run(lambda comm: comm.all_gather_objects(report))[0]
    if problem is not None:
        raise problem
    failed = [(rank, reason) for rank, (reason, _) in enumerate(everyone) if reason]
    if failed:
        raise RankError(f"Rank {failed[0][0]} could not compile the model: {failed[0][1]}")
    if len({digest for _, digest in everyone}) > 1:
        raise RankError(
            "The ranks compiled different programs or hold different weights. Every rank must compile the same model "
            "on the same example, with the same random seed and the same versions of the packages."
        )
    return executor


def _digest(executor: Executor) -> str:
    """Different for different programs, numbers or weights."""
    program = executor.program
    weights = fingerprint(executor.constants()) if executor.world.size > 1 else ""
    return hashlib.sha256(
        f"{show_program(program)}{program.capture.numbers}{program.capture.texts}{weights}".encode()
    ).hexdigest()[:16]
