"""Cross-compiles schedules without a GPU and counts what came out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from attncc.emit import emit
from attncc.ir.schedule import Schedule
from attncc.runtime import cubin, load
from attncc.runtime.build import compile_module, options


@dataclass(frozen=True)
class Outcome:
    """The main kernel's resources, and a census of each of its tensor loops, smallest first, without the branch in which warps repair a tile
    by products of their own (HMMA in a loop of GMMA). `size` leaves out barrier retries."""

    resources: cubin.Resources
    loops: tuple[Counter, ...]
    sass: str

    def size(self, loop: int) -> int:
        census = self.loops[loop]
        return census.total() - 6 * census["NANOSLEEP"]


def compile_schedule(schedule: Schedule, chip: str, tensor: str) -> Outcome:
    """`tensor` is a part of the name of the tensor instructions ("GMMA", "HMMA") that mark the loops."""
    text = emit(schedule)
    module = load.module(load.store(text, "test"))
    return outcome_of(compile_module(module, schedule.attention, options(chip)), tensor)


def outcome_of(compiled, tensor: str) -> Outcome:
    """As compile_schedule, of what `cute.compile` returned."""
    (image,) = cubin.cubins(compiled)
    resources = max(cubin.resources(image).values(), key=lambda r: r.code)
    text = cubin.sass(image)
    loops = cubin.tensor_loops(text, tensor)
    if tensor != "HMMA":
        loops = [cubin.without_detours(text, loop, "HMMA") for loop in loops]
    loops = sorted(loops, key=len)
    return Outcome(resources, tuple(cubin.census(body) for body in loops), text)
