"""Stock models on devices that stand for accelerators: results are those of the CPU."""

from __future__ import annotations

import pytest
import structures
import torch
import zoo
from devices.stand_in import moved, on_the_device, stand_in

import distcompile
from distcompile import LocalWorld
from distcompile.ir.tree import flatten
from distcompile.passes.lower import lower

MODELS = {
    "MACE": ("MACE (MP-0 medium)", zoo.mace),
    **{name: (name, zoo.MODELS[name][1]) for name in ("CHGNet 0.3.0", "TensorNet", "SevenNet-0", "NequIP", "eSEN")},
}
"""The model of the same package in `zoo.MODELS`, and how to make this one."""


def _apart(name: str) -> list[tuple[str, float, float, bool]]:
    """For each result, its difference from the CPU's, the largest value, and if it is where the stock model has it."""
    stand_in()
    case = MODELS[name][1]()
    graph = case.graph(structures.crystal((2, 2, 1)))
    args = graph if isinstance(graph, tuple) else (graph,)
    expected = flatten(case.model(*moved(args, "cpu"), **case.kwargs))[0]
    model = case.model.to("sim")
    there = flatten(model(*moved(args, "sim"), **case.kwargs))[0]
    example = moved(args, "sim")
    compiled = distcompile.compile(
        model, example if len(args) > 1 else example[0], model_kwargs=case.kwargs,
        world=LocalWorld(devices=["sim:0", "sim:1"]), lowering="eager",
    )  # fmt: skip
    found = flatten(compiled(*moved(args, "sim")))[0]
    return [
        (e.path, float((f.tensor.detach().cpu() - e.tensor.detach()).abs().max()) if e.tensor.numel() else 0.0,
         float(e.tensor.detach().abs().max()) if e.tensor.numel() else 0.0, f.tensor.device == s.tensor.device)
        for e, f, s in zip(expected, found, there, strict=True)
        if isinstance(e.tensor, torch.Tensor)
    ]  # fmt: skip


@pytest.mark.skipif(lower.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("name", MODELS)
def test_results(name: str) -> None:
    """Every output, on a rank for each of two devices."""
    of_package = MODELS[name][0]
    if not zoo.is_installed(of_package):
        pytest.skip(f"{zoo.MODELS[of_package][0]} is not installed in this environment")
    exact = 1e-5 if name in ("TensorNet", "SevenNet-0") else 1e-9  # which are in float32
    for path, apart, largest, in_place in on_the_device(_apart, name):
        assert apart <= exact * max(largest, 1e-3), path
        assert in_place, f"{path} is on another device than the stock model's"
