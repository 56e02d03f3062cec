"""Twenty optimiser steps: how far loss, gradients and weights are from those of the stock model.

    python benchmarks/optimiser_steps.py --models MACE NequIP --ranks 1 2 3
    torchrun --nproc-per-node 2 benchmarks/optimiser_steps.py --models MACE     # two processes over gloo

Models of tests/models/test_training.py, in float64 where the package runs in it; forces in the loss. Gradients are
relative to the largest of all, weights to the largest of their tensor.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="all of this environment's, by default")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 3])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if "RANK" in os.environ:
        dist.init_process_group("gloo")

    import zoo
    from models.test_training import MODELS

    import distcompile

    for name, (of_package, _) in MODELS.items():
        if zoo.is_installed(of_package) and (not options.models or name in options.models):
            worlds = {f"{n} ranks": distcompile.LocalWorld(n) for n in options.ranks}
            if dist.is_initialized():
                worlds = {f"{dist.get_world_size()} processes": distcompile.ProcessGroupWorld()}
            for label, world in worlds.items():
                said = f"{name:<18} {label:<12} " + ", ".join(f"{k} {v:.1e}" for k, v in apart(name, world).items())
                if distcompile.is_first():
                    print(said, flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


def apart(name: str, world: Any) -> dict[str, float]:
    """Differences after one step, and of the weights after twenty."""
    import structures
    from models.test_training import ARGUMENTS, MODELS, copied, given, loss

    from distcompile import training_step

    case = MODELS[name][1]()
    kwargs, model = {**case.kwargs, **ARGUMENTS.get(name, {})}, case.model
    graph, targets = given(case, structures.crystal((2, 2, 1)), "blocks" in name)
    was_training, before = model.training, copy.deepcopy(model.state_dict())
    model.train()

    def stock() -> Any:
        found = loss(model(*copied(graph), **kwargs), targets)
        found.backward()
        return found.detach()

    expected = trained(model, stock)
    model.load_state_dict(before)
    step = training_step(
        model, loss, copied(graph), targets, model_kwargs=kwargs, world=world, lowering="eager", validate=False
    )
    found = trained(model, lambda: step(copied(graph), targets))
    model.load_state_dict(before)
    model.zero_grad()
    model.train(was_training)
    largest = max(float(g.abs().max()) for g in expected.gradients.values())
    return {
        "loss": abs(found.loss / expected.loss - 1),
        "gradients": max(float((found.gradients[n] - g).abs().max()) for n, g in expected.gradients.items()) / largest,
        "weights": max(
            float((found.weights[n] - w).abs().max() / w.abs().max().clamp(min=1e-3))
            for n, w in expected.weights.items()
            if w.numel()
        ),
    }


@dataclasses.dataclass(frozen=True)
class Trained:
    """What came of twenty steps."""

    loss: float
    gradients: dict[str, torch.Tensor]
    """Of the first step."""
    weights: dict[str, torch.Tensor]
    """After the last one."""


def trained(model: torch.nn.Module, step: Callable[[], Any]) -> Trained:
    """Take the optimiser's steps; `step` leaves gradients at the weights."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    first: tuple[float, dict[str, torch.Tensor]] | None = None
    for _ in range(STEPS):
        optimizer.zero_grad()
        found = float(step())
        if first is None:
            first = found, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
    assert first is not None
    return Trained(*first, {n: p.detach().clone() for n, p in model.named_parameters()})


if __name__ == "__main__":
    main()
