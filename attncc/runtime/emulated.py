"""A kernel's device code, run by the PTX emulator on CPU tensors."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from attncc.emulator import Result, emulate, keep_ptx
from attncc.runtime import build, load
from attncc.runtime.call import Caller
from attncc.runtime.kernel import BLOCKS, Kernel
from attncc.runtime.launch import Launcher, blocks_of, gpu_launcher, work_of
from attncc.targets import Target


@dataclass(frozen=True)
class Made:
    """A kernel compiled with its PTX kept: what `cute.compile` returned, the generated file and its module."""

    compiled: object
    path: Path
    generated: ModuleType


def compile_to_emulate(kernel: Kernel, chip: str | None = None, target: Target | None = None) -> Made:
    """Compiles `kernel` for `chip` (default: the usual one of `target`, the kernel's own by default), without the cache."""
    stages = kernel.stages(target)
    path = load.store(stages.source, stages.attention.name)
    generated = load.module(path)
    with keep_ptx():
        compiled = build.compile_module(generated, stages.attention, build.options(chip or stages.target.archs[0]))
    return Made(compiled, path, generated)


def emulate_calls(kernel: Kernel, chip: str | None = None, made: Made | None = None, **options) -> list[Result]:
    """From now on, calls of `kernel` with CPU tensors run its compiled device code in the emulator.

    Returns the list that every call appends its Result to. `made` is what compile_to_emulate gave, where it was called before;
    `options` are those of attncc.emulator.emulate: seeds, trace, clusters.
    """
    results: list[Result] = []
    made = made or compile_to_emulate(kernel, chip)
    launcher = _launcher(kernel, kernel.stages().target, chip, made, results, options)
    kernel.caller = Caller(kernel.attention, lambda device: launcher)
    return results


def _launcher(
    kernel: Kernel, target: Target, chip: str | None, made: Made, results: list[Result], options: dict
) -> Launcher:
    """What runs the device code for `target`."""
    stages, arguments = kernel.stages(target), made.generated.ARGUMENTS

    def launch(*arguments):
        results.append(emulate(made.compiled, *arguments, **options))

    @functools.cache
    def other() -> Launcher:
        plain = target.without(BLOCKS)
        return _launcher(kernel, plain, chip, compile_to_emulate(kernel, chip, plain), results, options)

    work = work_of(stages.schedule, arguments)
    return gpu_launcher(launch, stages.attention, work, blocks_of(arguments), other)
