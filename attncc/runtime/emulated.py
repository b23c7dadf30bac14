"""A kernel's device code, run by the PTX emulator on CPU tensors."""

from __future__ import annotations

import functools

from attncc.emulator import Result, emulate, keep_ptx
from attncc.runtime import build, load
from attncc.runtime.call import Caller
from attncc.runtime.kernel import BLOCKS, Kernel
from attncc.runtime.launch import Launcher, blocks_of, gpu_launcher, work_of
from attncc.targets import Target


def emulate_calls(kernel: Kernel, chip: str | None = None, **options) -> list[Result]:
    """From now on, calls of `kernel` with CPU tensors run its compiled device code in the emulator.

    Returns the list that every call appends its Result to. `options` are those of attncc.emulator.emulate: seeds, trace,
    clusters.
    """
    results: list[Result] = []
    launcher = _launcher(kernel, kernel.stages().target, chip, results, options)
    kernel.caller = Caller(kernel.attention, lambda device: launcher)
    return results


def _launcher(kernel: Kernel, target: Target, chip: str | None, results: list[Result], options: dict) -> Launcher:
    """What runs the device code for `target`; compiled at once."""
    stages = kernel.stages(target)
    path = load.store(stages.source, stages.attention.name)
    generated = load.module(path)
    with keep_ptx():
        compiled = build.compile_module(generated, stages.attention, build.options(chip or target.archs[0]))

    def launch(*arguments):
        results.append(emulate(compiled, *arguments, **options))

    other = functools.cache(lambda: _launcher(kernel, target.without(BLOCKS), chip, results, options))
    work = work_of(stages.schedule, generated.ARGUMENTS)
    return gpu_launcher(launch, stages.attention, work, blocks_of(generated.ARGUMENTS), other)
