"""Make the body of each region ready to run.

    region body: 40 operators, each a pass over memory    =>    one function that computes a row at a time in registers

Bodies become component code (`components`). What has no form in it (random numbers, an operator that it does not know)
is left to Inductor, torch's own generator, body by body. `explain` says which ran how. Code is kept on disk.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import torch

from ...ir import Runnable, Tiled, copy_tiled, grown
from ...ir.constants import Constants
from ...ir.tree import device_of
from ...runtime.execution.kernels import Kernel
from ...runtime.execution.tiles import Region
from .beside import piece_by_piece
from .cache import cache_folder
from .components import library
from .components.elements import Unsupported
from .components.gpu.cuda import Cuda
from .components.gpu.target import GPU
from .components.kernel import Body as ComponentBody
from .components.library import compiler as compiler
from .components.target import PROCESSOR, Target
from .inductor.body import Body as InductorBody
from .inductor.cpp_library import getting_ready
from .inductor.generate import settings
from .inductor.side_by_side import fill_cache

Lowering = Literal["auto", "eager", "inductor", "kernels"]
"""The way to run the body of a region: PyTorch, operator by operator; C++ that Inductor generates; component code, and
Inductor for what has no form in it; or operators at first, and component code once it is compiled."""

TARGETS: dict[str, Target] = {"cpu": PROCESSOR, "cuda": GPU}
"""What component code is written for, by the type of the device."""

Notify = Callable[[int, int], None]
"""Called with (bodies done, bodies in all)."""


def get_ready(how: Lowering) -> None:
    """Start the work that `lower` would wait for, beside other work."""
    if how == "inductor" and compiler() is not None:
        getting_ready()


def lower(program: Tiled, how: Lowering | Literal["components"] = "eager", notify: Notify | None = None) -> Runnable:
    """Return `program` with regions that are ready to run.

    Args:
        program: a tiled program.
        how: the way to run the bodies; with "components", those that have no form in component code stay operators.
        notify: called as compilation goes on.
    """
    regions = {name: m for name, m in program.tiled.named_children() if isinstance(m, Region)}
    device = device_of(program.captured.leaves)
    target = TARGETS.get(device.type)
    if how in ("auto", "eager") or not regions or (how != "inductor" and target is None):
        return grown(program, Runnable)
    if compiler() is None:
        warnings.warn(
            "No C++ compiler was found, so regions run operator by operator (lowering='eager'). "
            "Install g++ for several times the speed.",
            stacklevel=3,
        )
        return grown(program, Runnable)
    found: dict[str, Region] = {}
    read: dict[int, tuple[torch.Tensor, int]] = {}
    if target is not None and how in ("kernels", "components"):
        bodies = _followed(program, regions, target)
        for name, kernel in _kernels(bodies, device, notify).items():
            found[name] = regions[name].running(kernel)
            read |= {id(buffer): (buffer, buffer._version) for buffer in bodies[name].buffers}
    if how != "components":
        left = {name: region for name, region in regions.items() if name not in found}
        found |= _generated(program, left, notify)
    with piece_by_piece():
        module = copy_tiled(program)
        for name, region in found.items():
            module.add_module(name, region)
        return grown(program, Runnable, tiled=module, compiled_in=(*program.compiled_in, *read.values()))


def _followed(program: Tiled, regions: dict[str, Region], target: Target) -> dict[str, ComponentBody]:
    """The bodies that have a form in component code."""
    with piece_by_piece():
        cache_folder()  # what it imports is imported here, not in the threads that wait for compilers
        constants = Constants(program.tiled)
    found = {}
    for name, region in regions.items():
        if not region.spec.in_turn:
            try:
                with piece_by_piece():
                    found[name] = ComponentBody(program, name, constants, target)
            except Unsupported:
                continue
    return found


def _kernels(bodies: dict[str, ComponentBody], device: torch.device, notify: Notify | None) -> dict[str, Kernel]:
    """Kernels of bodies, compiled side by side; those that the compiler takes."""
    done = 0

    def compiled(name: str) -> Kernel | None:
        nonlocal done
        try:
            body = bodies[name]
            return body.kernel() if device.type == "cpu" else body.launched(Cuda(body.program, device))
        except Unsupported:
            return None
        finally:
            done += 1
            if notify is not None:
                notify(done, len(bodies))

    by_size = sorted(bodies, key=lambda name: -bodies[name].program.statements)  # the last ones are short
    kernels = library.each(compiled, by_size)
    return {name: kernel for name, kernel in kernels.items() if kernel is not None}


def _generated(program: Tiled, regions: dict[str, Region], notify: Notify | None) -> dict[str, Region]:
    """Regions whose bodies Inductor compiled; bodies that compute the same are compiled once."""
    if not regions:
        return {}
    getting_ready()()
    same: dict[str, list[InductorBody]] = {}
    under = settings()
    bodies = {name: InductorBody(program, region, under) for name, region in regions.items()}
    for body in bodies.values():
        same.setdefault(body.key, []).append(body)

    def report(done: int) -> None:
        if notify is not None:
            notify(done, len(same))

    by_size = sorted(same, key=lambda key: -len(same[key][0].graph_module.graph.nodes))
    fill_cache({key: same[key][0].compile for key in by_size}, report)
    found = {name: regions[name].running(body.called(same[body.key][0].compile())) for name, body in bodies.items()}
    report(len(same))
    return found
