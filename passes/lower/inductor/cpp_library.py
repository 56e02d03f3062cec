"""How the C++ that Inductor generates for one body is compiled and called.

    kernel, kernel, kernel    =>    one library, compiled at O2, called without Python's lock

Inductor compiles each kernel by itself, and most of what a small one takes is the same for all: reading headers and
linking. Here the kernels of a body are compiled together. It also starts six processes, each time, to find out whether
libraries with the instructions of this processor load: here those that did are remembered, beside the library.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from .... import torch_versions
from ....capture.threads import replaced
from ..cache import cache_folder
from .side_by_side import beside

INDUCTOR: dict[str, Any] = {
    "assert_indirect_indexing": False,  # pointers were checked on the whole graph
    "size_asserts": torch_versions.SIZES_ARE_READ_WITH_ASSERTS,
    "nan_asserts": False,
    "cpp.threads": 1,  # blocks run side by side instead
    "cpp_cache_precompile_headers": True,  # most of a library is headers
    **torch_versions.NO_LINE_TABLES,  # for debuggers
}
OPTIMIZATION = "O2"
"""The optimisation level of the C++ compiler. Loops are written out in vectors already, and what Inductor's O3 adds
takes several times as long on kernels of thousands of lines."""

UNLOCKED = """
struct Unlocked {{  // so that blocks run side by side
    PyThreadState* thread = PyEval_SaveThread();
    ~Unlocked() {{ PyEval_RestoreThread(thread); }}  // an error on its way out needs the lock too
}};
"""

HEADER = "#include <torch/csrc/inductor/cpp_prefix.h>\n"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A loop nest of a body."""

    arguments: Sequence[str]
    """The types of its arguments in C++."""
    source: str
    place: int
    """Its place in the library of the body."""

    def renamed(self) -> str:
        """Its source, in which ``kernel`` is another name."""
        return f"#define kernel kernel{self.place}\n{self.source.replace(HEADER, '')}\n#undef kernel\n"

    def called(self) -> str:
        """C++ code that calls it with the tuple ``given``; arguments are read while Python's lock is held."""
        read = (f"parse_arg<{kind.replace('const ', '')}>(given, {i})" for i, kind in enumerate(self.arguments))
        return (
            f"case {self.place}: [](auto... a) {{ Unlocked now; kernel{self.place}(a...); }}({', '.join(read)}); break;"
        )


@contextmanager
def compiled_together() -> Iterator[None]:
    """Compile, or load, all code that Inductor generates inside: one library for each body."""
    import torch._inductor.config as inductor_config  # takes seconds to import
    from torch._inductor import codecache, cpp_builder
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.cpu_vec_isa import VecISA

    def loads(instructions: Any, code: str) -> bool:
        known = noted(instructions, code)
        if not known.exists() and try_to_load(instructions, code):
            known.touch()
        return known.exists()

    def flags(compiler: str, min_optimize: bool = False) -> tuple[list[str], list[str]]:
        compile_flags, link_flags = optimization(compiler, min_optimize)
        return [OPTIMIZATION if flag == "O3" else flag for flag in compile_flags], link_flags

    def collect(generated: Any, arguments: Sequence[str], source: str) -> Kernel:
        kernels = vars(generated).setdefault("kernels", [])
        kernels.append(Kernel(arguments, source, len(kernels)))
        return kernels[-1]  # type: ignore[no-any-return]

    def finish(generated: Any, names: dict[str, Any]) -> None:
        wait(generated, names)
        if kernels := vars(generated).get("kernels"):
            library = _library(kernels)
            names |= {name: _function(library, k) for name, k in names.items() if isinstance(k, Kernel)}

    tries, noted = torch_versions.tries_of_instructions()
    optimization, wait, try_to_load = (
        cpp_builder._get_optimization_cflags,
        AsyncCompile.wait,
        getattr(VecISA, tries),
    )
    headers = str(cache_folder().parents[1] / "headers")  # Inductor keeps them where other users may put files
    with ExitStack() as replacements:
        replacements.enter_context(inductor_config.patch(INDUCTOR))
        replacements.enter_context(replaced(cpp_builder, "_get_optimization_cflags", flags))
        replacements.enter_context(replaced(VecISA, tries, loads))
        replacements.enter_context(replaced(codecache, "_HEADER_DIR", headers))
        replacements.enter_context(replaced(codecache, "_HEADER_LOCK_DIR", f"{headers}/locks"))
        replacements.enter_context(replaced(codecache, "_precompile_header", _precompile_header(headers)))
        replacements.enter_context(replaced(AsyncCompile, "cpp_pybinding", collect))
        replacements.enter_context(replaced(AsyncCompile, "wait", finish))
        yield


@functools.cache
def _precompile_header(_: str) -> Callable[..., str]:
    """Inductor's function that compiles a header, which does not remember those of another folder."""
    from torch._inductor import codecache

    return functools.cache(codecache._precompile_header.__wrapped__)


def _library(kernels: Sequence[Kernel]) -> Callable[[int, tuple[Any, ...]], None]:
    """Compile kernels as one library: a function of the place of a kernel and its arguments."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache as Bindings

    call = (
        "PyObject* given = PyTuple_GET_ITEM(args, 1); switch (parse_arg<int64_t>(args, 0)) {{"
        + "".join(k.called() for k in kernels).replace("{", "{{").replace("}", "}}")
        + "}} Py_RETURN_NONE;"
    )
    # What Inductor defines around kernels has the one entry ``kernel``.
    with replaced(Bindings, "call_entry_function", call), replaced(Bindings, "extra_parse_arg", UNLOCKED):
        library: Any = Bindings.load_pybinding(["int64_t", "tuple"], HEADER + "".join(k.renamed() for k in kernels))
    return library  # type: ignore[no-any-return]


def _function(library: Callable[[int, tuple[Any, ...]], None], kernel: Kernel) -> Callable[..., None]:
    return lambda *args: library(kernel.place, args)


@functools.cache
def getting_ready() -> Callable[[], None]:
    """Start the work that every library waits for: headers are compiled, and the processor's instructions tried."""
    return beside(_compile_nothing)


def _compile_nothing() -> None:
    with compiled_together():
        _library([Kernel([], HEADER + 'extern "C" void kernel() {}', 0)])
