"""Twenty optimiser steps: how far loss, gradients and weights are from those of the stock model.

    python benchmarks/optimiser_steps.py --models MACE NequIP --ranks 1 2 3
    torchrun --nproc-per-node 2 benchmarks/optimiser_steps.py --models MACE     # two processes over gloo

Models of tests/models/test_training.py, in float64 where the package runs in it; forces in the loss. Gradients are
relative to the largest of all, weights to the largest of their tensor.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import warnings
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
    kwargs = {**case.kwargs, **ARGUMENTS.get(name, {})}
    stock, ours = copy.deepcopy(case.model).train(), copy.deepcopy(case.model).train()
    graph, targets = given(case, structures.crystal((2, 2, 1)), "blocks" in name)
    step = training_step(
        ours, loss, copied(graph), targets, model_kwargs=kwargs, world=world, lowering="eager", validate=False
    )
    optimizers = [torch.optim.Adam(model.parameters(), 1e-3) for model in (stock, ours)]
    first: dict[str, float] = {}
    for _ in range(STEPS):
        for optimizer in optimizers:
            optimizer.zero_grad()
        expected = loss(stock(*copied(graph), **kwargs), targets)
        expected.backward()
        found = step(copied(graph), targets)
        if not first:
            pairs = [(a.grad, b.grad) for a, b in zip(stock.parameters(), ours.parameters(), strict=True)]
            both = [(a, b) for a, b in pairs if a is not None and b is not None]
            largest = max(float(a.abs().max()) for a, _ in both)
            first["loss"] = abs(float(found) / float(expected) - 1)
            first["gradients"] = max(float((a - b).abs().max()) for a, b in both) / largest
        for optimizer in optimizers:
            optimizer.step()
    pairs = list(zip(stock.parameters(), ours.parameters(), strict=True))
    weights = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-3)) for a, b in pairs if a.numel())
    return {**first, "weights": weights}


if __name__ == "__main__":
    main()
