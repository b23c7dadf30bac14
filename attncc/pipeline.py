"""The passes of each level, in order, written out. A pass is a function from program to program, or of (program, target)."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from attncc.ir.check_attention import check_attention
from attncc.ir.check_schedule import check_schedule
from attncc.ir.check_tile import check_tile
from attncc.passes.attention.mask_infinite_scores import mask_infinite_scores
from attncc.passes.attention.simplify import simplify
from attncc.passes.schedule.assign_roles import assign_roles
from attncc.passes.schedule.budget_registers import budget_registers
from attncc.passes.schedule.cap_in_softmax import cap_in_softmax
from attncc.passes.schedule.copy_biases import copy_biases
from attncc.passes.schedule.drain_rings import drain_rings
from attncc.passes.schedule.drop_guards import drop_guards
from attncc.passes.schedule.fetch_columns import fetch_columns
from attncc.passes.schedule.lazy_rescaling import lazy_rescaling
from attncc.passes.schedule.level_distances import level_distances
from attncc.passes.schedule.narrow_groups import narrow_groups
from attncc.passes.schedule.narrow_windows import narrow_windows
from attncc.passes.schedule.overlap_softmax_with_mma import overlap_softmax_with_mma
from attncc.passes.schedule.pair_blocks import pair_blocks
from attncc.passes.schedule.peel_first_tile import peel_first_tile
from attncc.passes.schedule.persistent_blocks import persistent_blocks
from attncc.passes.schedule.ping_pong import ping_pong
from attncc.passes.schedule.pipeline_stages import pipeline_stages
from attncc.passes.schedule.place_copy_waits import place_copy_waits
from attncc.passes.schedule.prefetch_copies import prefetch_copies
from attncc.passes.schedule.roll_masks import roll_masks
from attncc.passes.schedule.share_columns import share_columns
from attncc.passes.schedule.share_exponentials import share_exponentials
from attncc.passes.schedule.skip_missing_tiles import skip_missing_tiles
from attncc.passes.schedule.skip_rescaling import skip_rescaling
from attncc.passes.schedule.stage_output import stage_output
from attncc.passes.schedule.tile_order import tile_order
from attncc.passes.schedule.trust_maxima import trust_maxima
from attncc.passes.schedule.use_tensor_memory import use_tensor_memory
from attncc.passes.tile.bound_keys import bound_keys
from attncc.passes.tile.bound_scores import bound_scores
from attncc.passes.tile.cancel_row_terms import cancel_row_terms
from attncc.passes.tile.column_steps import column_steps
from attncc.passes.tile.fold_multiplier import fold_multiplier
from attncc.passes.tile.guard_loads import guard_loads
from attncc.passes.tile.hoist_by_dependence import hoist_by_dependence
from attncc.passes.tile.list_tiles import list_tiles
from attncc.passes.tile.merge_segments import merge_segments
from attncc.passes.tile.peel_masked_tiles import peel_masked_tiles
from attncc.passes.tile.place_values import place_values
from attncc.passes.tile.skip_empty_tiles import skip_empty_tiles
from attncc.targets import TARGETS

ATTENTION_PASSES: tuple[Callable, ...] = (mask_infinite_scores, simplify)
"""L1 passes."""

TILE_PASSES: tuple[Callable, ...] = (
    list_tiles,
    skip_empty_tiles,
    peel_masked_tiles,
    merge_segments,
    cancel_row_terms,
    fold_multiplier,
    bound_scores,
    column_steps,
    bound_keys,
    guard_loads,
    hoist_by_dependence,
    place_values,
)
"""L2 passes. guard_loads comes before hoist_by_dependence, which moves guarded indices along with their loads."""

MMA_SYNC_PASSES: tuple[Callable, ...] = (
    pipeline_stages,
    prefetch_copies,
    skip_rescaling,
    drop_guards,
    tile_order,
    stage_output,
    place_copy_waits,
    skip_missing_tiles,
)
SCHEDULE_PASSES: dict[str, tuple[Callable, ...]] = {
    "blackwell": (
        assign_roles,
        pipeline_stages,
        peel_first_tile,
        drop_guards,
        tile_order,
        use_tensor_memory,
        pair_blocks,
        share_columns,
        roll_masks,
        level_distances,
        cap_in_softmax,
        share_exponentials,
        persistent_blocks,
        drain_rings,
        budget_registers,
        skip_missing_tiles,
    ),
    "hopper": (
        copy_biases,
        assign_roles,
        narrow_groups,
        narrow_windows,
        pipeline_stages,
        peel_first_tile,
        overlap_softmax_with_mma,
        fetch_columns,
        ping_pong,
        lazy_rescaling,
        drop_guards,
        tile_order,
        stage_output,
        persistent_blocks,
        trust_maxima,
        budget_registers,
        skip_missing_tiles,
    ),
    "ampere": MMA_SYNC_PASSES,
    "ada": MMA_SYNC_PASSES,
}
"""L3 passes by target name."""

CHECKS: dict[str, Callable] = {
    "L1": check_attention,
    "L2": check_tile,
    "L3": lambda schedule: check_schedule(schedule, TARGETS[schedule.target]),
}
"""The legality check of each level, run after every pass that changed something."""


def run_passes(program, passes: tuple[Callable, ...], check: Callable, target=None, observe: Callable | None = None):
    """`program` after all `passes`, with `check` run on it before the first and after each that changed something.

    A pass with two parameters is given `target` as well. `observe(pass_name, before, after)` is called after each pass.
    """
    check(program)
    for one in passes:
        before = program
        program = one(program, target) if takes_target(one) else one(program)
        if program != before:
            check(program)
        if observe is not None:
            observe(one.__name__, before, program)
    return program


def takes_target(one: Callable) -> bool:
    """Whether a pass is a function of (program, target)."""
    return len(inspect.signature(one).parameters) == 2
