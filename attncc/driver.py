"""The compiler on one screen.

.attn text -> L1 attention -> L2 tile program -> L3 schedule -> a generated Python file -> a compiled kernel

attncc.lower.load does the first arrow, `lower` those up to the file, attncc.runtime the last; attncc.entry is where users come in.
"""

from __future__ import annotations

from attncc import pipeline
from attncc.diagnostics import AttnError
from attncc.emit import emit
from attncc.ir.attention import Attention
from attncc.ir.tile import TileProgram
from attncc.lower.attention_to_tile import lower_attention_to_tile
from attncc.lower.tile_to_schedule import lower_tile_to_schedule
from attncc.stages import PassStep, Stages
from attncc.targets import Target
from attncc.targets.choice import Choice
from attncc.targets.refuse import refuse
from attncc.targets.tiles import choose_tiles


def lower(attention: Attention, target: Target, choice: Choice | None = None) -> Stages:
    """Every level for one target: all that is decided before device code is compiled. `choice` is what tuning found, None for what the
    resource model says. Raises AttnError when the target cannot."""
    if choice is not None:
        attention, target = choice.applied(attention, target)
    steps: list[PassStep] = []
    attention = _level("L1", attention, pipeline.ATTENTION_PASSES, target, steps)
    tile = _level("L2", naive_program(attention, target), pipeline.TILE_PASSES, target, steps)
    schedule = _level("L3", lower_tile_to_schedule(tile, target), pipeline.SCHEDULE_PASSES[target.name], target, steps)
    return Stages(target, attention, tile, schedule, emit(schedule), tuple(steps))


def naive_program(attention: Attention, target: Target) -> TileProgram:
    """The L2 program before its passes, with the tiles that suit the target. AttnError when the target cannot do it."""
    problems = refuse(attention, target)
    if problems:
        raise AttnError(*problems)
    tiles = choose_tiles(attention, target)
    return lower_attention_to_tile(attention, tiles.tile_m, tiles.tile_n)


def _level(level: str, program, passes, target: Target, steps: list[PassStep]):
    """Runs the passes of one level, each followed by the level's legality check, and notes what they did."""
    steps.append(PassStep(level, "lower", program, True))

    def observe(name: str, before, after) -> None:
        steps.append(PassStep(level, name, after, before != after))

    return pipeline.run_passes(program, passes, pipeline.CHECKS[level], target, observe)
