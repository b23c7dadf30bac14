"""Chooses the shape of a kernel for a target: the legal candidate that the resource model says is fastest."""

from __future__ import annotations

from attncc.diagnostics import AttnError, Diagnostic
from attncc.ir.attention import Attention
from attncc.ir.expr import TRUE, ZERO
from attncc.ir.key_ranges import ranges_of
from attncc.targets.cost import ElementCost, element_cost
from attncc.targets.distances import with_shared_distances
from attncc.targets.fit import Tiles, block_memory, fits, hints, shared_memory, splits
from attncc.targets.model import resident_blocks, tile_cycles
from attncc.targets.target import WARP_THREADS, Target

PAIR_GAIN = 0.03
"""What two blocks that work together must gain by the model: less than that may be lost where they wait for each other."""
PAIR_DIM = 128
"""Head dims from which on shared memory limits products that read their second operand there."""
SAMPLE = 4096
"""Keys of the query tile that candidates are compared on; a masked attention is taken to keep half of them."""
COSTLY_TILE_N = 64
"""Longest key tile of synchronous products whose score or mask is not simple: the program of an element is unrolled over it, and twice
the length takes twice the code, up to three times as long to compile, and all registers instead of half of them."""
UNROLLED = 2048
"""Most instructions for the elements that a thread unrolls of a tile with synchronous products: about 30 KiB of code for each loop."""
MODEL_ERROR = 0.015
"""Candidates this close are equal to the model; the simpler one is taken."""


def choose_tiles(attention: Attention, target: Target) -> Tiles:
    """The tiles for `attention`; hints of its `target` statement are kept to. AttnError E403 when a hint cannot be met."""
    found = measured(attention, target) or paired_tiles(attention, target) or _alone(attention, target)
    if found is None:
        raise AttnError(no_tile(attention, target))
    return found


def paired_tiles(attention: Attention, target: Target) -> Tiles | None:
    """The tiles for two blocks that work together on neighbouring query tiles, where that gains `PAIR_GAIN` beside the best tiles of blocks
    that work alone, or those hold no tile of the hints; None elsewhere. All query tiles of a head must have as many key tiles, and lie side by side."""
    dims = target.pad(attention.dim_qk), target.pad(attention.dim_v)
    if not target.has("mma_pairs") or attention.packed or attention.mask is not TRUE or min(dims) < PAIR_DIM:
        return None
    alone = _best(candidates(attention, target), attention, target)
    best = _best(candidates(attention, target, pair=True), attention, target)
    if best is None or alone is None:
        return best
    together, apart = (cost_per_row(attention, target, t, with_shared_distances(attention, t, SAMPLE)) for t in (best, alone))
    return best if together <= (1.0 - PAIR_GAIN) * apart else None


def _alone(attention: Attention, target: Target) -> Tiles | None:
    return _best(candidates(attention, target) or smallest(attention, target), attention, target)


def has_tile(attention: Attention, target: Target) -> bool:
    """Whether any tile fits, with the hints of its `target` statement."""
    return bool(candidates(attention, target) or smallest(attention, target) or paired_tiles(attention, target))


def _best(found: tuple[Tiles, ...], attention: Attention, target: Target) -> Tiles | None:
    """The one of the candidates that the model takes."""
    if not found:
        return None
    found = short_code(found, attention, target)
    found = tuple(t for t in found if t.tile_n >= target.tile_n_least) or found
    costs = {tiles: cost_per_row(attention, target, tiles) for tiles in found}
    limit = min(costs.values()) * (1.0 + MODEL_ERROR)
    equal = (t for t in found if costs[t] <= limit)
    if target.rates.fill_bytes:  # more rows share what comes from the L2 cache, which is power too
        return min(equal, key=lambda t: (_is_awkward(t), -t.tile_m, costs[t]))
    return min(equal, key=lambda t: (_is_awkward(t), t.groups, costs[t]))


def measured(attention: Attention, target: Target) -> Tiles | None:
    """The shape that was measured to be best for these head dims, if it is legal; None with hints, or where the score is not simple."""
    if any_hint(attention, target):
        return None
    found = target.measured_windows if target.measured_windows and is_window(attention) else ()
    if element_cost(attention).is_simple:
        found = (*found, *target.measured)
    dims = target.pad(attention.dim_qk), target.pad(attention.dim_v)
    for dim_qk, dim_v, tile_m, tile_n, groups in found:
        if (dim_qk, dim_v) == dims:
            return next((t for t in _shapes(attention, target, tile_m, tile_n) if t.groups == groups), None)
    return None


def is_window(attention: Attention) -> bool:
    """Whether the score is only scaled and the mask cuts keys off at both ends, with at most one number of a key."""
    extra = element_cost(attention)
    if extra.instructions or extra.gathers or extra.weights or extra.mask_loads or extra.mask_columns > 1:
        return False
    kept = ranges_of(attention).kept
    return len(kept) == 1 and kept[0][0] is not ZERO


def _is_awkward(tiles: Tiles) -> bool:
    """Whether positions in the key tile cannot be found by shifts."""
    return bool(tiles.tile_n & (tiles.tile_n - 1))


def cost_per_row(attention: Attention, target: Target, tiles: Tiles, extra: ElementCost | None = None) -> float:
    """Cycles of the model for each query row at the sample length; `extra` is the score's work where more is known than its text."""
    masked = attention.mask is not TRUE
    keys = SAMPLE / 2 + (tiles.tile_m + tiles.tile_n) / 2 if masked else SAMPLE
    resident = resident_blocks(attention, target, tiles)
    return tile_cycles(attention, target, tiles, keys, resident, extra) / tiles.tile_m


def candidates(attention: Attention, target: Target, pair: bool = False) -> tuple[Tiles, ...]:
    """Every shape that fits registers and shared memory, with as many stages as the target wants and memory holds. With `pair` those of
    blocks that work together."""
    hint = hints(attention, target)
    rows = {groups * rows for groups, rows in target.splits}
    longest = target.tile_n_max if hint.tile_n else target.tile_n_usual
    if not (hint.tile_n or target.has("async_mma") or element_cost(attention).is_simple):
        longest = min(longest, COSTLY_TILE_N)
    out = []
    for tile_m in sorted(rows if hint.tile_m is None else rows & {hint.tile_m}):
        for tile_n in range(target.tile_n_step, longest + 1, target.tile_n_step):
            if hint.tile_n in (None, tile_n):
                out += _shapes(attention, target, tile_m, tile_n, pair)
    return tuple(out)


def _shapes(a: Attention, target: Target, tile_m: int, tile_n: int, pair: bool = False):
    """The splits of one tile that are legal."""
    extra = element_cost(a)
    groups_hint = hints(a, target).warp_groups
    for groups, rows in splits(target, tile_m):
        if not fits(target, tile_n, a.dim_v, (groups, rows), extra, groups_hint):
            continue
        stages = _stages(a, target, tile_m, tile_n, pair)
        if stages:
            yield Tiles(tile_m, tile_n, groups, rows, stages, pair)


def short_code(found: tuple[Tiles, ...], attention: Attention, target: Target) -> tuple[Tiles, ...]:
    """Those of `found` whose code stays short, else those with the fewest keys. With asynchronous products all of them: there
    costly terms are few, or computed once for a block."""
    if target.has("async_mma"):
        return found
    extra = element_cost(attention)
    work = extra.instructions + extra.special
    threads = target.group_warps * WARP_THREADS
    least = min(t.tile_n for t in found)
    short = tuple(t for t in found if t.group_rows * t.tile_n // threads * work <= UNROLLED)
    return short or tuple(t for t in found if t.tile_n == least)


def smallest(attention: Attention, target: Target) -> tuple[Tiles, ...]:
    """The smallest tile that shared memory holds, for a score or mask that the model finds too large for any; none with hints."""
    if any_hint(attention, target):
        return ()
    groups, rows = min(target.splits, key=lambda s: (s[1], s[0] * s[1]))
    stages = _stages(attention, target, groups * rows, target.tile_n_step)
    return (Tiles(groups * rows, target.tile_n_step, groups, rows, stages),) if stages else ()


def any_hint(attention: Attention, target: Target) -> bool:
    """Whether the user wants a shape."""
    h = hints(attention, target)
    return any(v is not None for v in (h.tile_m, h.tile_n, h.stages, h.warp_groups))


def _stages(a: Attention, target: Target, tile_m: int, tile_n: int, pair: bool = False) -> int:
    """The most stages up to what is wanted that shared memory holds; 0 when none, or fewer than a hint asks for."""
    hint = hints(a, target).stages
    wanted = hint or target.stages
    for stages in range(wanted, 0, -1):
        used = shared_memory(target, a.dim_qk, a.dim_v, a.dtype, tile_m, tile_n, stages, pair)
        if used + block_memory(target, element_cost(a), tile_m, tile_n) <= target.shared_limit:
            return stages
        if hint:
            return 0
    return 0


def no_tile(attention: Attention, target: Target) -> Diagnostic:
    """Why no candidate is left."""
    h = hints(attention, target)
    given = {"tile_m": h.tile_m, "tile_n": h.tile_n, "stages": h.stages, "warp_groups": h.warp_groups}
    named = ", ".join(f"{name} = {value}" for name, value in given.items() if value is not None)
    rows = sorted({groups * rows for groups, rows in target.splits})
    most = max(limit for _, limit in target.fragment_limit)
    return Diagnostic(
        "E403",
        f"no tile of target {target.name} fits {named or 'this attention'}",
        h.span or attention.span("dim"),
        notes=(
            f"query tiles have {', '.join(map(str, rows))} rows, key tiles a multiple of {target.tile_n_step} up to {target.tile_n_max}",
            f"a block has at most {target.shared_limit} bytes of shared memory",
            f"a thread has at most {most} registers for scores, weights and output",
        ),
        hint="leave out a hint: the compiler then chooses it" if named else None,
    )
