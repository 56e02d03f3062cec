"""``distcompile.compile``: a model becomes a `DistributedModel` with the same call."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from .check.against_stock import check
from .check.validate import CHECKED
from .errors import NoIndexSpaceError, RankError
from .model import DistributedModel, Settings, arguments, normally
from .passes import Lowering
from .runtime.execution.agreement import fingerprint
from .runtime.execution.executor import Executor
from .runtime.world import World, default_world
from .show.printer import show_program


def compile(
    model: nn.Module | Callable[..., Any],
    example_graph: Any,
    *,
    model_kwargs: dict[str, Any] | None = None,
    world: World | None = None,
    lowering: Lowering = "auto",
    memory: int | None = None,
    radial_error: float | None = None,
    gather: bool = True,
    validate: bool = True,
) -> DistributedModel:
    """Compile a model's call for any number of ranks.

    Args:
        model: a module (or a callable that runs one) that takes a graph object.
        example_graph: a graph object as `model` takes it; a tuple for a model with several positional inputs. Later
            graphs may have any sizes, species and cells. In a graph of a few atoms there is nothing to divide: the
            stock model runs on every rank, and the first larger graph is compiled for.
        model_kwargs: keyword arguments of every call (``compute_stress=True``); constants of the program.
        world: the ranks that execute; the default process group if there is one, else one rank.
        lowering: how the row-local stretches of the program run. ``"eager"`` calls each operator of PyTorch.
            ``"kernels"`` makes C++ code of them, several times faster, which takes up to a minute to compile (once: it
            is kept on disk); for a CUDA device, CUDA C++, which no GPU has run yet. ``"auto"`` calls operators at
            first. Once evaluations on a processor have taken two seconds, the code is compiled beside them, and all
            ranks switch at the same call: results change by rounding there.
            ``"inductor"`` takes the code of torch's own generator. Without a C++ compiler there is a warning for
            ``"kernels"`` and ``"inductor"``, and operators are called.
        memory: bytes that a rank may use for one evaluation; what they hold is not computed again, which is faster.
            By default little is held, of what is free, divided among the ranks of a machine. A graph that would need
            more than there is stores less and computes more again; if that does not suffice, it is refused before it
            starts.
        radial_error: let functions of one number a row (the radial networks that edge lengths go through) be looked up
            in tables that are made when the model is compiled, and whose error, of values and of slopes relative to the
            largest, is tested to be below this: 1e-6. None, the default, computes them. Tables hold from half of the
            shortest distance of the example to the cutoff; graphs with others are refused. They are made of weights:
            if these change, the next call compiles again, and gradients by them are refused.
        gather: put results together on every rank. With False, a result that has a row for each atom or edge stays
            divided: it is a `DividedRows`, the rows of this process and their numbers in the whole result (on virtual
            ranks, those of all). It carries no gradients. What the model returns as it was given is whole.
            `save_blocks` writes matrices of edges in pieces.
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
    settings = Settings(default_world() if world is None else world, memory, lowering, radial_error, gather)
    compiled, executor = compiled_for(model, example_graph, settings, model_kwargs)
    checked(compiled, executor, arguments(example_graph), validate)
    return compiled


def checked(compiled: DistributedModel, executor: Executor | None, args: tuple[Any, ...], validate: bool) -> None:
    """Compare the program of an example with the stock model, if asked to; without a program, warn that there is none.

    Raises:
        ValidationError: the program does not reproduce the stock model.
    """
    with normally():
        if executor is None:
            _warn_of_nothing(compiled, args)
        elif validate:
            check(compiled.stock, compiled.module, executor, *compiled.flatten(args))


def compiled_for(
    model: nn.Module | Callable[..., Any],
    example_graph: Any,
    settings: Settings,
    model_kwargs: dict[str, Any] | None = None,
    module: nn.Module | None = None,
) -> tuple[DistributedModel, Executor | None]:
    """A compiled model that was not checked, and the program of the example (None if there is nothing to divide in it).

    `module` holds the weights of a function that is no module and no method of one. Errors as of `compile`.
    """
    if not callable(model):
        raise TypeError(f"model must be a module or a function that takes a graph, not {type(model).__name__}")
    call = functools.partial(model, **(model_kwargs or {}))
    module = module or (model if isinstance(model, nn.Module) else _module_of(model))
    compiled = DistributedModel(call, module, settings)
    with normally():
        return compiled, _compile_everywhere(compiled, arguments(example_graph))


def _module_of(call: Any) -> nn.Module | None:
    """The module behind a bound method or a partial."""
    while isinstance(call, functools.partial):
        call = call.func
    owner = call if isinstance(call, nn.Module) else getattr(call, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def _warn_of_nothing(compiled: DistributedModel, args: tuple[Any, ...]) -> None:
    """Say that the stock model runs whole on every rank, unless the example is a few atoms."""
    if max((n for leaf in compiled.flatten(args)[0] for n in leaf.tensor.shape), default=0) > CHECKED:
        warnings.warn(
            "The stock model runs whole on every rank, for graphs like the example: the results are right, but they "
            f"come neither faster nor in less memory with more ranks. {compiled.explain().splitlines()[1]}",
            stacklevel=3,
        )


def _compile_everywhere(compiled: DistributedModel, args: tuple[Any, ...]) -> Executor | None:
    """The program of the example, the same on every rank.

    All ranks raise if one fails or differs, so that none waits.

    None if there is nothing to divide in the example.
    """
    executor: Executor | None = None
    problem: Exception | None = None
    try:
        executor = compiled.executor_for(*args)
    except NoIndexSpaceError:
        pass
    except Exception as error:  # the other ranks must hear of any error
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
    """A text that differs for different programs, numbers or weights."""
    program = executor.program
    weights = fingerprint(executor.constants()) if executor.world.size > 1 else ""
    return hashlib.sha256(
        f"{show_program(program)}{program.captured.numbers}{program.captured.texts}{weights}".encode()
    ).hexdigest()[:16]
