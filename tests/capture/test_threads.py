"""One thread captures while others do what they like; two that capture take turns; none sees what another replaced."""

from __future__ import annotations

import logging
import math
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from at_once import in_threads
from torch import Tensor, nn
from toys import Eam, Gnn, Graph, Pair, Potential, ThreeBody, gaussians, random_graph

import distcompile
from distcompile import CaptureError, LocalWorld
from distcompile.capture.threads import one_at_a_time, quiet, replaced


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11)


MODELS: list[tuple[Callable[[], Potential], dict[str, bool]]] = [
    (Gnn, {}),
    (ThreeBody, {"angles": True}),
    (Pair, {}),
    (Eam, {"half": True}),
]


@pytest.mark.parametrize("ranks", [1, 2])
def test_four_models_are_compiled_at_once(ranks: int) -> None:
    def work(make: Callable[[], Potential], options: dict[str, bool]) -> None:
        model, graphs = make().eval(), [random_graph(n, n, **options) for n in (12, 19)]
        compiled = distcompile.compile(model, graphs[0], world=LocalWorld(ranks))
        for graph in graphs:
            assert_equal(compiled(graph), model(graph))

    in_threads(*[lambda m=make, o=options: work(m, o) for make, options in MODELS])


def test_one_model_is_called_by_four_threads_at_once() -> None:
    """On two virtual ranks each; the graphs differ, so that the division of one is wrong for the others."""
    model = Gnn().eval()
    compiled = distcompile.compile(model, random_graph(12, 1), world=LocalWorld(2))

    def work(seed: int) -> None:
        for n in (11, 20, 14, 17):
            graph = random_graph(n + seed, seed)
            assert_equal(compiled(graph), model(graph))

    in_threads(*[lambda s=seed: work(s) for seed in range(4)])
    assert compiled.captures == 1


class Converting(Gnn):
    """Turns numbers of rows into Python's numbers, in this module, and calls what a capture has its own ways for."""

    def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        energy, energies = super().energy(graph, vectors, lengths)
        n, rows = len(graph["positions"]), int(lengths.shape[0])
        heads = gaussians(lengths).reshape(-1, 1, 2, 3)
        attended = nn.functional.scaled_dot_product_attention(heads, heads, heads).sum((1, 2))
        product = torch.einsum("ei,ej,ij->e", attended, vectors, torch.ones(3, 3, dtype=vectors.dtype))
        return energy + product.sum() / float(rows) * math.sqrt(n), energies


class Telling(Potential):
    """A stock model that notes the types that Python's functions give it; its last bits hang on what torch chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.gnn = Gnn()
        self.seen: set[Any] = set()

    def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        positions = graph["positions"]
        n, number, root = len(positions), int(graph["species"].sum()), math.sqrt(positions.shape[0])
        self.seen |= {("len", type(n)), ("int", type(number)), ("sqrt", type(root)), ("float", type(float(n)))}
        self.seen |= {isinstance(n, int), type(n) == int, torch.SymInt.__hash__, torch.SymInt.__int__}  # noqa: E721
        self.seen |= {
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.opt_einsum.enabled,
            is_traced(),
        }
        energy, energies = self.gnn.energy(graph, vectors, lengths)
        wide = torch.cat([positions, positions.sin(), positions[:, :2]], 1)
        h = nn.functional.scaled_dot_product_attention(wide[None], wide[None], wide[None])[0]
        product = torch.einsum("ni,nj,ij->n", h, wide, torch.ones(8, 8, dtype=h.dtype))
        return energy + 1e-3 * product.sum() * root / n, energies


def is_traced() -> str:
    return f"traced: {bool(torch.fx._symbolic_trace.is_fx_symbolic_tracing())}"


def test_a_stock_model_is_untouched_while_another_is_compiled() -> None:
    """To the last bit, and with the functions that it had."""
    model, graph, ended = Telling().eval(), random_graph(23, 5), threading.Event()
    expected, seen, calls = model(graph), set(model.seen), [0]

    def evaluate() -> None:
        while not ended.is_set():
            for name, value in model(graph).items():
                assert torch.equal(value, expected[name]), f"{name} differs"
            calls[0] += 1

    def compile_others() -> None:
        try:
            for make, options in [*MODELS, (Converting, {})]:
                distcompile.compile(make().eval(), random_graph(12, 1, **options))
        finally:
            ended.set()

    in_threads(evaluate, compile_others)
    assert calls[0] > 10
    assert model.seen == seen


def test_what_a_capture_writes_out_is_what_it_was() -> None:
    """Sizes, attention and products of three, at another size."""
    model, other = Converting().eval(), random_graph(21, 2)
    compiled = distcompile.compile(model, random_graph(12, 1), world=LocalWorld(2))
    assert_equal(compiled(other), model(other))


def test_a_function_by_torch_compile_runs_while_a_model_is_captured() -> None:
    """torch refuses to run it while anything is traced, in whatever thread."""
    doubled = torch.compile(lambda x: 2 * x, backend="eager")
    assert doubled(torch.ones(2)).tolist() == [2.0, 2.0]
    found: list[Any] = []

    class Asking(Gnn):
        def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
            if len(found) == 0:
                found.extend(in_threads(lambda: doubled(torch.ones(2)).tolist()))
            return super().energy(graph, vectors, lengths)

    distcompile.compile(Asking().eval(), random_graph(12, 1), validate=False)
    assert found == [[2.0, 2.0]]


def test_replacements_hold_for_one_thread() -> None:
    """Functions and flags of modules, methods of classes, those that are inherited, and those that there were not."""

    class Parent:
        def inherited(self) -> str:
            return "theirs"

    class Child(Parent):
        kind = "theirs"

    def state() -> tuple[Any, ...]:
        child = Child()
        return (
            child.inherited(),
            child.kind,
            Child.kind,
            hasattr(child, "new"),
            math.floor(1.5),
            bool(logging.raiseExceptions),
        )

    with (
        replaced(Child, "inherited", lambda self: "ours"),
        replaced(Child, "kind", "ours"),
        replaced(Child, "new", 1),
        replaced(math, "floor", lambda x: -1),
        replaced(logging, "raiseExceptions", False),
    ):
        assert state() == ("ours", "ours", "ours", True, -1, False)
        assert in_threads(state) == [("theirs", "theirs", "theirs", False, 1, True)]
    assert state() == ("theirs", "theirs", "theirs", False, 1, True)
    assert vars(Child).keys() & {"inherited", "new"} == set()


def test_only_the_capturing_thread_is_silenced(
    recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")

    def speak(who: str) -> None:
        warnings.warn(who, stacklevel=1)
        logger.warning(who)

    with quiet():
        speak("ours")
        in_threads(lambda: speak("theirs"))
    speak("after")
    assert [str(w.message) for w in recwarn] == ["theirs", "after"]
    assert [record.message for record in caplog.records] == ["theirs", "after"]


def test_captures_take_turns() -> None:
    inside, most = [0], [0]

    def work() -> None:
        with one_at_a_time(), one_at_a_time():
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            inside[0] -= 1

    in_threads(*[work] * 4)
    assert most == [1]


def test_a_compiled_model_is_not_evaluated_within_a_capture() -> None:
    """By a function that is one step of the program: it would wait for threads that wait for the capture."""
    inner = distcompile.compile(Gnn().eval(), random_graph(12, 1))

    class Outer(Gnn):
        def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
            return super().energy(graph, vectors, lengths)[0] + other_energy(graph), None

    def other_energy(graph: Graph) -> Tensor:
        return inner({name: torch.from_numpy(x.numpy()) for name, x in graph.items()})["energy"]

    with pytest.raises(CaptureError, match="captured"):
        distcompile.compile(Outer().eval(), random_graph(12, 1))


def test_lowering_takes_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code is generated while other models are captured."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def work(make: Callable[[], Potential], lowering: Any) -> None:
        model, graph = make().eval(), random_graph(19, 3)
        compiled = distcompile.compile(model, random_graph(12, 1), world=LocalWorld(2), lowering=lowering)
        assert_equal(compiled(graph), model(graph))

    in_threads(lambda: work(Eam, "inductor"), lambda: work(Pair, "inductor"), lambda: work(Gnn, "eager"))
