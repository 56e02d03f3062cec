"""Other releases of torch are refused in one line; where supported ones differ, results have what torch gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import distcompile
from distcompile import VersionError, torch_versions
from distcompile.capture.trace import capture

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("version", ["2.12.0", "2.12.1+cu130", "2.13.0+cpu", "2.14.1", "2.14.0a0+git1234"])
def test_supported_versions(version: str) -> None:
    torch_versions.check(version)


@pytest.mark.parametrize("version", ["1.13.1", "2.11.0", "2.15.0+cu130", "2.15.0.dev20260901", "3.0.0"])
def test_others_are_refused_in_one_line(version: str) -> None:
    with pytest.raises(VersionError) as refused:
        torch_versions.check(version)
    assert str(refused.value) == (
        f"torch {version} is installed, and distcompile is tested on 2.12 to 2.14, whose inside it relies on: "
        "pip install 'torch>=2.12,<2.15'"
    )


def test_the_import_refuses_before_it_takes_anything_else() -> None:
    """The error is the last line, and of a torch without its inside nothing else was missed before."""
    code = "import sys, types; torch = types.ModuleType('torch'); torch.__version__ = '2.11.0'; torch.Tensor = object; "
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.modules['torch'] = torch; import distcompile"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("distcompile.errors.VersionError: torch 2.11.0 is installed, and ")


def test_an_import_that_is_refused_is_an_import_error() -> None:
    """So that ``except ImportError`` around an optional import holds."""
    assert issubclass(distcompile.VersionError, ImportError)


def test_the_range_is_that_of_the_package() -> None:
    """What pip installs is what the import accepts."""
    (line,) = [x for x in (ROOT / "pyproject.toml").read_text().splitlines() if x.strip().startswith('"torch>')]
    (oldest, newest), after = (torch_versions.OLDEST, torch_versions.NEWEST), torch_versions.NEWEST[1] + 1
    assert line.strip() == f'"torch>={oldest[0]}.{oldest[1]},<{newest[0]}.{after}",'


@pytest.mark.parametrize("weights", [None, torch.float32, torch.float64, torch.int32], ids=str)
def test_counts_have_the_type_that_they_have_when_they_are_counted(weights: torch.dtype | None) -> None:
    """Of 32-bit species, as CHGNet counts them."""

    class Counts(nn.Module):
        def forward(self, graph: dict[str, Tensor]) -> Tensor:
            return torch.bincount(graph["species"], graph.get("weights"), minlength=9)

    species = torch.tensor([1, 4, 4, 8, 6], dtype=torch.int32)
    graph: dict[str, Any] = {"species": species}
    if weights is not None:
        graph["weights"] = torch.ones(5, dtype=weights)
    model = Counts()
    found = capture(model, model, (graph,)).graph_module.graph
    (counts,) = [node for node in found.nodes if node.target is torch.ops.aten.bincount.default]
    assert counts.meta["val"].dtype == model(graph).dtype


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("form", ["matrices", "matrix", "vector", "turned", "linear", "biased"])
def test_products_keep_the_sizes_of_their_operands(form: str, gradients: bool) -> None:
    """Of a table of matrices for each row: its sizes stay symbols, whatever it is multiplied by."""
    forms: dict[str, Any] = {
        "matrices": lambda m, x: x @ (x.transpose(1, 2) @ x),
        "matrix": lambda m, x: torch.matmul(x, m),
        "vector": lambda m, x: x.matmul(m[0]),
        "turned": lambda m, x: m @ x.transpose(1, 2),
        "linear": lambda m, x: nn.functional.linear(x, m),
        "biased": lambda m, x: nn.functional.linear(x[..., None, :], m, bias=m[0]),
    }

    class Product(nn.Module):
        def forward(self, graph: dict[str, Tensor]) -> Tensor:
            return forms[form](*[x.clone().requires_grad_(gradients) for x in graph.values()])

    model, graph = Product(), {"m": torch.rand(3, 3), "x": torch.rand(11, 7, 3)}
    captured = capture(model, model, (graph,))
    assert [[n.is_Symbol for n in size] for size in captured.sizes] == [[False, False], [True, True, False]]
    other = {"m": torch.rand(3, 3), "x": torch.rand(5, 6, 3)}
    torch.testing.assert_close(captured.graph_module(*other.values())[0], model(other))
