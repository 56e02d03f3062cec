"""Code for bodies: what Inductor is given, and what is kept of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from distcompile.ir.graphs import writes
from distcompile.passes.lower import lower
from distcompile.passes.lower.inductor import generate
from distcompile.passes.lower.inductor.body import _Symbols

pytestmark = pytest.mark.skipif(lower.compiler() is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing was generated before."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path


def body(run: Callable[..., Any]) -> torch.fx.GraphModule:
    """One operator after the other, as a region's body is."""
    return torch.fx.symbolic_trace(run)


def examples(*tensors: torch.Tensor) -> Callable[[], generate.Examples]:
    """Fake inputs of the same shapes."""

    def make() -> generate.Examples:
        mode = FakeTensorMode(shape_env=ShapeEnv())
        return mode, [mode.from_tensor(x, static_shapes=True) for x in tensors]

    return make


def test_an_operator_whose_decomposition_writes() -> None:
    """A diagonal that is scattered is written into a copy by torch; what the body is given stays as it is."""
    x, y = torch.rand(5, 5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    before = x.clone()

    def run(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.ops.aten.diagonal_scatter.default(x, torch.ops.aten.sin.default(y)),)

    assert not any(writes(n.target) for n in generate._decomposed(body(run), *examples(x, y)()).graph.nodes)
    (found,) = generate.generate("scattered", body(run), examples(x, y))([x, y])
    torch.testing.assert_close(found, run(x, y)[0], rtol=1e-14, atol=1e-14)
    assert torch.equal(x, before)


def test_a_body_without_inputs() -> None:
    """Of constants only."""

    def run() -> tuple[torch.Tensor, ...]:
        return (torch.ops.aten.sin.default(torch.ops.aten.full.default([3, 2], 0.5)),)

    (found,) = generate.generate("constants", body(run), examples())([])
    torch.testing.assert_close(found, run()[0])


def test_a_body_of_random_numbers() -> None:
    """Of as many as there are rows; a seed fixes them."""

    def run(rows: int) -> tuple[torch.Tensor, ...]:
        return (torch.ops.aten.rand.default([rows, 3], dtype=torch.float64),)

    def rows() -> generate.Examples:
        symbols = _Symbols()
        return symbols.mode, [symbols("rows", 64)]

    code = generate.generate("random", body(run), rows)
    drawn = []
    for n in (40, 40, 50):
        torch.manual_seed(3)
        drawn += code([n])
    assert torch.equal(drawn[0], drawn[1])
    assert drawn[2].shape == (50, 3)
    assert drawn[2].unique().numel() == 150
    assert drawn[2].min() >= 0
    assert drawn[2].max() < 1


def test_code_is_generated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another call, as of another process, reads what the first has kept; another name does not."""
    calls = []
    stock = generate._generate
    monkeypatch.setattr(generate, "_generate", lambda *args: (calls.append(args), stock(*args))[1])

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.ops.aten.silu.default(x),)

    x = torch.rand(7, dtype=torch.float64)
    for name in ("one", "one", "two"):
        (found,) = generate.generate(name, body(run), examples(x))([x])
        torch.testing.assert_close(found, torch.nn.functional.silu(x), rtol=1e-14, atol=1e-14)
    assert len(calls) == 2


def test_settings_name_what_code_depends_on() -> None:
    """The same at any time; another if Inductor is told otherwise."""
    here = generate.settings()
    assert here == generate.settings()
    with torch._inductor.config.patch({"cpp.max_horizontal_fusion_size": 3}):
        assert generate.settings() != here
