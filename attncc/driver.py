"""The compiler on one screen.

    .attn text -> L1 attention -> L2 tile program -> L3 schedule -> a generated Python file -> a compiled kernel
"""

from __future__ import annotations

from attncc import pipeline
from attncc.emit import emit
from attncc.ir.attention import Attention
from attncc.lower import load
from attncc.lower.attention_to_tile import lower_attention_to_tile
from attncc.lower.tile_to_schedule import lower_tile_to_schedule
from attncc.runtime.kernel import Kernel
from attncc.stages import PassStep, Stages
from attncc.targets import Target, get_target

FIRST_TILE = (128, 128)
"""Tile of the naive L2 program; a pass chooses the real one."""


def compile(spec, *, target: str | None = None, **parameters) -> Kernel:
    """A kernel for an `.attn` text or the path of one, with the given compile-time parameters.

    target   the name of a target. Without it the kernel is compiled at its first call for the device of the tensors;
             tensors on the CPU are then given to the interpreter of the tile program. A kernel compiled for a named target
             refuses tensors of any other device.

    The text is read and checked here, so AttnError for a bad spec is raised here; device code is compiled when it is needed.
    """
    return Kernel(load(spec, **parameters), get_target(target) if target else None, lower)


def lower(attention: Attention, target: Target) -> Stages:
    """Every level for one target: all that is decided before device code is compiled. Raises AttnError when the target cannot."""
    steps: list[PassStep] = []
    attention = _level("L1", attention, pipeline.ATTENTION_PASSES, target, steps)
    tile = _level("L2", lower_attention_to_tile(attention, *FIRST_TILE), pipeline.TILE_PASSES, target, steps)
    schedule = _level("L3", lower_tile_to_schedule(tile, target), pipeline.SCHEDULE_PASSES[target.name], target, steps)
    return Stages(target, attention, tile, schedule, emit(schedule), tuple(steps))


def _level(level: str, program, passes, target: Target, steps: list[PassStep]):
    """Runs the passes of one level, each followed by the level's legality check, and notes what they did."""
    steps.append(PassStep(level, "lower", program, True))

    def observe(name: str, before, after) -> None:
        steps.append(PassStep(level, name, after, before != after))

    return pipeline.run_passes(program, passes, _check(level), target, observe)


def _check(level: str):
    return getattr(pipeline, "CHECKS", {}).get(level, lambda program: None)
