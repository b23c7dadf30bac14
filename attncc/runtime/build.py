"""From a generated text to a compiled launch function."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attncc.ir.attention import Attention
from attncc.runtime import cache, load

_COMPILER = threading.Lock()
"""cute.compile is not thread safe: two at once abort the process."""

LESS_REORDERING = (" --opt-level 2", " --opt-level 1")
"""At the compiler's highest level it moves loads and constants up front; seen to spill where one level less does not. Where a thread owns whole
rows that level still fills all registers of the role with exponentials and reciprocals under way, and has no place left for a few words that live
through the loop (16 to 48 bytes, docs/performance-log.md); two levels less does not, with as many instructions."""

@dataclass(frozen=True)
class Built:
    """A kernel ready to launch. `function` takes the arguments that the file's ARGUMENTS lists, in order, as torch tensors
    and numbers, and launches on torch's current stream of their device; `path` is the generated file."""

    function: object
    path: Path
    arguments: tuple[tuple, ...]
    entry: cache.Entry | None = None
    """Where it lies in the cache."""


def options(chip: str) -> str:
    """Compiler options for one chip, such as `sm_90a`."""
    return f"--gpu-arch {chip} --enable-tvm-ffi"


def build(text: str, attention: Attention, chip: str) -> Built:
    """Compiles a generated file for `chip`, or takes the result from the cache. No GPU is needed to compile."""
    path = load.store(text, attention.name)
    with _no_collections():
        generated = load.module(path)
        signature = repr((generated.ARGUMENTS, attention.heads_q, attention.heads_kv, attention.dim_qk, attention.dim_v))
        name = cache.key(text, options(chip), signature)
        function, entry = cache.fetch(name, lambda: compile_module(generated, attention, options(chip)))
    return Built(function, path, tuple(generated.ARGUMENTS), entry)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Garbage is not collected meanwhile. The first import of CuTe DSL makes many objects that all stay, and every full collection looks at
    torch's as well: half of the import's time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def compile_module(generated, attention: Attention, how: str):
    """`cute.compile` of the module's `launch` with stand-ins for its arguments; never from the cache.

    Where registers spill it is compiled again with less reordering of instructions, and what spills least is taken.
    """
    best = _compile(generated, attention, how)
    for less in LESS_REORDERING:
        if not spilled(best):
            break
        best = min(best, _compile(generated, attention, how + less), key=spilled)
    return best


def spilled(compiled) -> int:
    """Bytes of stack of the kernels in what `cute.compile` returned."""
    from attncc.runtime import cubin

    return sum(r.frame for image in cubin.cubins(compiled) for r in cubin.resources(image).values())


def _compile(generated, attention: Attention, how: str):
    import cutlass.cute as cute

    from attncc.runtime.fakes import fake_arguments

    fakes = fake_arguments(generated.ARGUMENTS, attention, generated.launch)
    with _COMPILER:
        return cute.compile(generated.launch, *fakes, options=how)
