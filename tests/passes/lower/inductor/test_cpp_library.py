"""The kernels of a body are one library of C++."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toys

import distcompile
from distcompile import LocalWorld
from distcompile.passes.lower import lower
from distcompile.passes.lower.inductor import cpp_library
from distcompile.torch_versions import TORCH

pytestmark = pytest.mark.skipif(lower.compiler() is None, reason="no C++ compiler")


def test_kernels_of_a_body_are_one_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops before and after a matrix product are two kernels, which each find their own arguments."""
    from torch._inductor.compile_fx import compile_fx

    libraries = []
    build = cpp_library._library

    def counted(kernels: list[cpp_library.Kernel]) -> object:
        libraries.append([k.place for k in kernels])
        return build(kernels)

    monkeypatch.setattr(cpp_library, "_library", counted)

    def body(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        product = (x.sin() + 1) @ y
        return (product.cos() * 2, y + x.sum())

    x, y = torch.rand(7, 7, dtype=torch.float64), torch.rand(7, 7, dtype=torch.float64)
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True), cpp_library.compiled_together():
        graph = torch.fx.experimental.proxy_tensor.make_fx(body)(x, y)
        compiled = compile_fx(graph, [x, y])
        results = compiled(x, y)
    assert len(libraries) == 1
    assert libraries[0] in ([0, 1], [0, 1, 2])
    for found, expected in zip(results, body(x, y), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


def test_generated_code_is_optimised_as_asked_for() -> None:
    """Inductor's own O3 is replaced while bodies are compiled, and only then."""
    from torch._inductor import cpp_builder

    def flags() -> set[str]:
        return set(cpp_builder._get_optimization_cflags("g++")[0])

    assert "O3" in flags()
    with cpp_library.compiled_together():
        assert cpp_library.OPTIMIZATION in flags()
        assert "O3" not in flags()
    assert "O3" in flags()


def test_python_runs_beside_generated_code_and_errors_come_through() -> None:
    """A kernel waits for what another thread does under Python's lock; an error takes the lock back on its way."""
    source = """
        #include <stdexcept>
        extern "C" void kernel(int64_t* word, const int64_t fails)
        {
            if (fails) throw std::runtime_error("this kernel fails");
            std::atomic_ref<int64_t> seen(*word);
            for (double start = omp_get_wtime(); seen == 0 && omp_get_wtime() < start + 20;) {}
            seen = seen == 0 ? 3 : 2;
        }
    """
    with cpp_library.compiled_together():
        library = cpp_library._library([cpp_library.Kernel(["int64_t*", "const int64_t"], source, 0)])
    word = torch.zeros(1, dtype=torch.int64)
    waiting = threading.Thread(target=library, args=(0, (word, 0)), daemon=True)
    waiting.start()
    word.fill_(1)
    waiting.join(timeout=60)
    assert word.item() == 2
    with pytest.raises(RuntimeError, match="this kernel fails"):
        library(0, (word, 1))
    library(0, (word, 0))  # which would end the process had the lock not been taken back
    assert word.item() == 2


def test_headers_are_compiled_beside_the_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, in another process, for which compilation waits."""
    started = []

    def beside(work: Callable[[], None]) -> Callable[[], None]:
        started.append(work)
        return lambda: started.append(None)

    monkeypatch.setattr(cpp_library, "beside", beside)
    cpp_library.getting_ready.cache_clear()
    compiled = distcompile.compile(toys.Gnn().eval(), toys.random_graph(14, 1), lowering="inductor", validate=False)
    assert started == [cpp_library._compile_nothing, None]
    compiled.on(LocalWorld(2))
    assert started[2:] == []
    cpp_library.getting_ready.cache_clear()


def test_processes_that_try_instructions_are_started_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What loaded once is remembered beside the library that did; without the memory, each try is a process."""
    from torch._inductor import cpu_vec_isa

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    tries = []

    class Counted(subprocess.Popen[Any]):
        def __init__(self, args: Any, **kwargs: Any) -> None:
            tries.extend([args] if args[0] == sys.executable else [])  # others are the compiler's
            super().__init__(args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", Counted)
    instructions = cpu_vec_isa.VecAVX2()
    instructions._arch_flags = ""  # as any processor has them
    code = 'extern "C" void nothing() {}'
    counts = []
    for _ in range(2):
        with cpp_library.compiled_together():
            assert instructions.check_build(code)
        counts.append(len(tries))
    assert instructions.check_build(code)
    assert counts == [1, 1]
    assert len(tries) == (1 if TORCH >= (2, 14) else 2)  # where torch does not remember it by itself
