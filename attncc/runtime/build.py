"""From a generated text to a compiled launch function."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from attncc.ir.attention import Attention
from attncc.runtime import cache, load
from attncc.runtime.fakes import fake_arguments

_COMPILER = threading.Lock()
"""cute.compile is not thread safe: two at once abort the process."""


@dataclass(frozen=True)
class Built:
    """A kernel ready to launch. `function` takes the arguments that the file's ARGUMENTS lists, in order, as torch tensors
    and numbers, and launches on torch's current stream of their device; `path` is the generated file."""

    function: object
    path: Path
    arguments: tuple[tuple, ...]


def options(chip: str) -> str:
    """Compiler options for one chip, such as `sm_90a`."""
    return f"--gpu-arch {chip} --enable-tvm-ffi"


def build(text: str, attention: Attention, chip: str) -> Built:
    """Compiles a generated file for `chip`, or takes the result from the cache. No GPU is needed to compile."""
    path = load.store(text, attention.name)
    generated = load.module(path)
    signature = repr((generated.ARGUMENTS, attention.heads_q, attention.heads_kv, attention.dim_qk, attention.dim_v))
    name = cache.key(text, options(chip), signature)
    function = cache.fetch(name, lambda: compile_module(generated, attention, options(chip)))
    return Built(function, path, tuple(generated.ARGUMENTS))


def compile_module(generated, attention: Attention, how: str):
    """`cute.compile` of the module's `launch` with stand-ins for its arguments; never from the cache."""
    import cutlass.cute as cute

    fakes = fake_arguments(generated.ARGUMENTS, attention, generated.launch)
    with _COMPILER:
        return cute.compile(generated.launch, *fakes, options=how)
