"""What a tile takes of a target: registers of a thread, shared memory, warp groups."""

from __future__ import annotations

from dataclasses import dataclass

from attncc.formats import bytes_of
from attncc.ir.attention import Attention, TargetHint
from attncc.ir.schedule import Schedule
from attncc.ir.schedule_ops import compute_role
from attncc.targets.cost import ElementCost, element_cost
from attncc.targets.target import WARP_THREADS, Target

PLAIN = ElementCost()
"""A score that is only scaled, and no mask."""
ORDER_REGISTERS = 24
WORKING_REGISTERS = 8
LONG_MASK = 10
MANY_OUTPUTS = 64
"""Registers of O from which on a mask of several numbers a key was seen to spill beside asynchronous products."""
STAGED_COPIES, STAGED_GAP = 4, 8
"""Copies of the staged distances, and numbers between them, where a thread reads those of a row four at a time (device/blackwell)."""
READ_AHEAD, READ_ROOM = 3, 26
"""Halves of a register for each of a thread's columns whose numbers it reads from shared memory, and how many of these registers there are beside
S, O and P. Fitted to the forgetting gate in three groups: no stack frame with 80 keys up to head dim 128 (192 x 80 at 128, 112 and 96, 192 x 96 at
64, 192 x 112 at 32), one with 96 keys at 96, 112 at 64 and 128 at 32."""
SHORT_SCORE = 4
"""Instructions of a score up to which that is so; longer ones, and second numbers of a key, were seen to spill with as many keys as that allows."""
COLUMN_THREADS = 4
"""Threads of a warp that share a row of an accumulator: each holds a quarter of the columns."""


@dataclass(frozen=True)
class Tiles:
    """The shape of a kernel: tile sizes, computing groups and the rows of each, copies of K and V; `pair` where two blocks work together
    and each holds half of K and V."""

    tile_m: int
    tile_n: int
    groups: int
    group_rows: int
    stages: int
    pair: bool = False


def tiles_of(schedule: Schedule) -> Tiles:
    """The shape of a kernel as the resource model takes it."""
    role = compute_role(schedule)
    stages = next((c.stages for c in schedule.channels if c.name == "K"), 1)
    return Tiles(schedule.tile_m, schedule.tile_n, role.groups, role.rows_per_group, stages, schedule.cluster > 1)


def fragments(target: Target, tile_n: int, dim_v: int, group_rows: int, extra: ElementCost = PLAIN) -> int:
    """Registers of a thread for S and O (float32), P (16 bit), and what score and mask keep besides.

    That is one for each gathered element, and numbers for the thread's columns. With asynchronous products P is alive along with them (it
    belongs to the tile before); a score takes what `_column_numbers` says, a mask what it reads for a key only if that is more than one
    number, or along with gathered elements. With synchronous ones P comes after; there the compiler keeps a number for each column, the
    mask's too, and needs room to order the instructions of a long score or mask. Weights by a function of their own take a few more.
    """
    threads = target.group_warps * WARP_THREADS
    scores = group_rows * tile_n // threads
    if target.has("tensor_memory"):
        # weights take the place of scores, the output stays in tensor memory; a thread owns all columns of its row, whose numbers of keys and
        # of distances are in shared memory. (A weight by a function of its own was seen to spill beside them, and they beside each other with 128
        # keys: each comes four at a time.)
        kept = 2 * (extra.gathers - extra.staged) + (extra.mask_loads if extra.mask_loads > 1 else 0)
        kept += (extra.columns + 2 * extra.staged) * extra.weights
        kept = max(kept, min(extra.columns, extra.staged))
        return scores + kept * tile_n + WORKING_REGISTERS * extra.weights
    output = group_rows * target.pad(dim_v) // threads
    blocks = extra.blocks if target.has("score_blocks") else 0
    kept = (extra.gathers - blocks) * scores + blocks * scores // 2
    if target.has("async_mma"):
        kept -= extra.staged * scores  # of distances: in shared memory
        kept += _column_numbers(tile_n, extra)
        if extra.mask_loads > 1:
            kept += extra.mask_loads * (tile_n // COLUMN_THREADS)
        if extra.gathers > blocks and extra.mask_columns:
            kept += extra.mask_columns * (tile_n // COLUMN_THREADS) + 3 * ORDER_REGISTERS
        elif extra.mask_loads and not extra.mask_columns:
            kept += 3 * ORDER_REGISTERS  # the mask reads a number for each element
        elif extra.mask_columns > 2 and output >= MANY_OUTPUTS:
            kept += extra.mask_columns * ORDER_REGISTERS
        if target.rates.trusting and extra.instructions and not (extra.special or extra.columns or extra.gathers > extra.staged or extra.weights):
            # what scores are computed from lives on until it is known that no warp computes them again
            kept += WORKING_REGISTERS if extra.staged else 2 * WORKING_REGISTERS
        return scores + output + scores // 2 + kept + WORKING_REGISTERS * extra.weights
    kept += (extra.columns + extra.mask_columns) * (tile_n // COLUMN_THREADS)
    long_mask = extra.mask_columns > 1 or (extra.mask_columns and (extra.mask_loads or extra.mask_size > LONG_MASK))
    slack = ORDER_REGISTERS if extra.instructions or long_mask else 0
    slack += ORDER_REGISTERS if target.pad(dim_v) != dim_v else 0  # predicates of the padded columns
    return scores + output + max(scores // 2, kept) + slack


def _column_numbers(tile_n: int, extra: ElementCost) -> int:
    """Registers for the numbers of keys that a score reads, with asynchronous products: all threads of a group share what is worth it."""
    each = tile_n // COLUMN_THREADS
    if extra.columns == extra.cheap_columns or extra.instructions > SHORT_SCORE or extra.weights:
        return extra.columns * each
    return (extra.columns - 1) * each + max(0, READ_AHEAD * each // 2 - READ_ROOM)


def tensor_columns(target: Target, groups: int, tile_n: int, dim_v: int) -> int:
    """Columns of tensor memory that scores (weights lie over them) and outputs of all groups take; 0 where there is none."""
    return groups * (tile_n + target.pad(dim_v)) if target.has("tensor_memory") else 0


def shared_memory(target: Target, dim_qk: int, dim_v: int, dtype: str, tile_m: int, tile_n: int, stages: int, pair: bool = False) -> int:
    """Bytes of shared memory: Q (or the output tile in its place) and the stages of K and V, half of them in each block of a pair; with tensor
    memory a factor for each row."""
    qk, v = target.pad(dim_qk), target.pad(dim_v)
    factors = 4 * tile_m if target.has("tensor_memory") else 0
    return bytes_of(dtype) * (tile_m * max(qk, v) + stages * tile_n * (qk + v) // (1 + pair)) + factors


def block_memory(target: Target, extra: ElementCost, tile_m: int, tile_n: int) -> int:
    """Bytes of shared memory for one stage of the blocks of biases, and for terms of the distance where threads own whole rows."""
    if target.has("tensor_memory"):
        return extra.diagonals * STAGED_COPIES * (2 * target.mma.m + STAGED_GAP) * 4 * (tile_m // target.mma.m)
    return extra.block_bytes * tile_m * tile_n if target.has("score_blocks") else 0


def shared_room(target: Target, attention: Attention, tile_m: int, tile_n: int) -> int:
    """Bytes of shared memory for a schedule's buffers, beside what the threads of roles stage for themselves."""
    staged = block_memory(target, element_cost(attention), tile_m, tile_n) if target.has("tensor_memory") else 0
    return target.shared_limit - staged


def hints(attention: Attention, target: Target) -> TargetHint:
    """The hints of the `target` statement that are meant for this target; empty when it names another."""
    return attention.target if attention.target.name in (None, target.name) else TargetHint()


def splits(target: Target, tile_m: int) -> tuple[tuple[int, int], ...]:
    """(groups, rows of each) into which a tile of `tile_m` rows can be divided, in the order of the target's list."""
    return tuple((groups, rows) for groups, rows in target.splits if groups * rows == tile_m)


def computing_groups(
    target: Target, tile_m: int, tile_n: int, dim_v: int, extra: ElementCost = PLAIN, asked: int | None = None
) -> tuple[int, int] | None:
    """The first of `splits` that fits, with `asked` groups if given; None when there is none."""
    for groups, rows in splits(target, tile_m):
        if fits(target, tile_n, dim_v, (groups, rows), extra, asked):
            return groups, rows
    return None


def fits(target: Target, tile_n: int, dim_v: int, split: tuple[int, int], extra: ElementCost, asked: int | None) -> bool:
    """Whether a tile divided as `split` (groups, rows) fits registers and tensor memory, with `asked` groups if given.

    A group whose rows are several times those of the matrix instruction unrolls the program of an element as many times: without
    being asked that is done for simple ones only (measured: others spill, whatever the length of the key tile).
    """
    groups, rows = split
    if asked not in (None, groups) or tensor_columns(target, groups, tile_n, dim_v) > target.tensor_columns:
        return False
    if asked is None and rows > target.mma.m and not extra.is_simple:
        return False
    return fragments(target, tile_n, dim_v, rows, extra) <= target.fragments(groups * target.group_warps)


def blocks_per_sm(target: Target, threads: int, registers: int, shared: int) -> int:
    """Blocks that an SM holds at once, by registers, threads and shared memory (1 KiB of it goes to each block)."""
    by_registers = target.registers_sm // (threads * registers)
    by_shared = target.shared_sm // (shared + 1024)
    return max(1, min(by_registers, by_shared, 2048 // threads))
