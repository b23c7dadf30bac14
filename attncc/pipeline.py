"""The passes of each level, in order, written out. A pass is a function from program to program, or of (program, target)."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from attncc.passes.schedule.assign_roles import assign_roles
from attncc.passes.schedule.budget_registers import budget_registers
from attncc.passes.schedule.drop_guards import drop_guards
from attncc.passes.schedule.overlap_softmax_with_mma import overlap_softmax_with_mma
from attncc.passes.schedule.peel_first_tile import peel_first_tile
from attncc.passes.schedule.ping_pong import ping_pong
from attncc.passes.schedule.pipeline_stages import pipeline_stages
from attncc.passes.schedule.place_copy_waits import place_copy_waits
from attncc.passes.schedule.prefetch_copies import prefetch_copies
from attncc.passes.schedule.stage_output import stage_output
from attncc.passes.schedule.tile_order import tile_order

ATTENTION_PASSES: tuple[Callable, ...] = ()
TILE_PASSES: tuple[Callable, ...] = ()

MMA_SYNC_PASSES: tuple[Callable, ...] = (
    pipeline_stages,
    peel_first_tile,
    prefetch_copies,
    drop_guards,
    tile_order,
    stage_output,
    place_copy_waits,
)
SCHEDULE_PASSES: dict[str, tuple[Callable, ...]] = {
    "hopper": (
        assign_roles,
        pipeline_stages,
        peel_first_tile,
        overlap_softmax_with_mma,
        ping_pong,
        drop_guards,
        tile_order,
        stage_output,
        budget_registers,
    ),
    "ampere": MMA_SYNC_PASSES,
    "ada": MMA_SYNC_PASSES,
}
"""L3 passes by target name."""


def run_passes(program, passes: tuple[Callable, ...], check: Callable, target=None, observe: Callable | None = None):
    """`program` after all `passes`, with `check` run on it before the first and after each.

    A pass with two parameters is given `target` as well. `observe(pass_name, before, after)` is called after each pass.
    """
    check(program)
    for one in passes:
        before = program
        program = one(program, target) if takes_target(one) else one(program)
        check(program)
        if observe is not None:
            observe(one.__name__, before, program)
    return program


def takes_target(one: Callable) -> bool:
    """Whether a pass is a function of (program, target)."""
    return len(inspect.signature(one).parameters) == 2
