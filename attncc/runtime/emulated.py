"""A kernel's device code, run by the PTX emulator on CPU tensors."""

from __future__ import annotations

from attncc.emulator import Result, emulate, keep_ptx
from attncc.runtime import build, load
from attncc.runtime.call import Caller
from attncc.runtime.kernel import Kernel
from attncc.runtime.launch import gpu_launcher, work_of


def emulate_calls(kernel: Kernel, chip: str | None = None, **options) -> list[Result]:
    """From now on, calls of `kernel` with CPU tensors run its compiled device code in the emulator.

    Returns the list that every call appends its Result to. `options` are those of attncc.emulator.emulate: seeds, trace,
    clusters.
    """
    stages = kernel.stages()
    path = load.store(stages.source, stages.attention.name)
    generated = load.module(path)
    with keep_ptx():
        compiled = build.compile_module(generated, stages.attention, build.options(chip or stages.target.archs[0]))
    results: list[Result] = []

    def launch(*arguments):
        results.append(emulate(compiled, *arguments, **options))

    launcher = gpu_launcher(launch, stages.attention, work_of(stages.schedule, generated.ARGUMENTS))
    kernel.caller = Caller(kernel.attention, lambda device: launcher)
    return results
