"""L2 -> L3: the plain schedule. One role copies each tile, waits for it and uses it, in the order of the tile program.

    wait Q; for each segment, for each tile: copy K; wait K; S = Q K^T; score; mask; softmax; O *= correction; copy V; wait V; O += P V

Passes then split the role, add stages and overlap the steps.
"""

from __future__ import annotations

from dataclasses import replace

from attncc.formats import bytes_of
from attncc.ir import packing
from attncc.ir import schedule as l3
from attncc.ir.expr import ZERO, Expr, add, apply, const, floordiv, var, variables
from attncc.ir.schedule_ops import drop_unused_lets
from attncc.ir.tile import (
    PARTIAL,
    REGISTER,
    SHARED,
    Finalize,
    Let,
    Load,
    Matmul,
    Segment,
    Softmax,
    TileProgram,
    Weights,
)
from attncc.targets import Target
from attncc.targets.cost import element_cost
from attncc.targets.fit import Tiles, computing_groups, hints, splits
from attncc.targets.model import resident_blocks

ROLE = "compute"
ROW_MAX, ROW_SUM, CORRECTION = "row_max", "row_sum", "correction"
TOTAL = "tiles_total"


def lower_tile_to_schedule(program: TileProgram, target: Target) -> l3.Schedule:
    """The plain schedule of `program`; ValueError when its tile fits none of the target's groups of warps."""
    groups, rows = _split(program, target)
    role = l3.Role(ROLE, 0, groups * target.group_warps, groups, rows, None, _role_body(program, target))
    return l3.Schedule(
        attention=program.attention,
        target=target.name,
        tile_m=program.tile_m,
        tile_n=program.tile_n,
        threads=role.warps * 32,
        grid=(var("q_tiles"), const(program.attention.heads_q), var("batch")),
        buffers=_buffers(program, target, rows),
        channels=_channels(program, target, groups),
        barriers=(),
        prelude=_prelude(program),
        roles=(role,),
        table=program.table,
        blocks_per_sm=_resident(program, target, groups, rows),
        remarks=program.remarks,
    )


def _split(program: TileProgram, target: Target) -> tuple[int, int]:
    """Groups and the rows of each: the fewest groups whose registers hold the fragments, else the most groups there are."""
    a = program.attention
    asked = hints(a, target).warp_groups
    possible = tuple(s for s in splits(target, program.tile_m) if asked in (None, s[0]))
    fitting = computing_groups(target, program.tile_m, program.tile_n, a.dim_v, element_cost(a), asked)
    if not possible:
        raise ValueError(f"a tile of {program.tile_m} rows cannot be split among the groups of target {target.name}")
    return fitting or possible[-1]


def _resident(program: TileProgram, target: Target, groups: int, rows: int) -> int:
    """Blocks that share an SM when K and V have the stages the target wants."""
    return resident_blocks(program.attention, target, Tiles(program.tile_m, program.tile_n, groups, rows, target.stages))


def _prelude(program: TileProgram) -> tuple[Let, ...]:
    def count(size: str, tile: int) -> Expr:
        return floordiv(add(var(size), const(tile - 1)), const(tile))

    tiles = (Let("q_tiles", count("seq_q", program.tile_m)), Let("kv_tiles", count("seq_kv", program.tile_n)))
    place = (
        Let("q_tile", var("block_x")),
        Let("h", var("block_y")),
        Let("b", var("block_z")),
        Let("hkv", floordiv(var("h"), const(program.attention.group))),
    )
    if program.attention.packed:
        most = Let(packing.GRID_TILES, count("seq_q", program.tile_m))
        return (most, *place, *(Let(n, e) for n, e in packing.lengths(program.tile_m, program.tile_n)))
    return (*tiles, *place)


def _buffers(program: TileProgram, target: Target, rows: int) -> tuple[l3.Buffer, ...]:
    """Shared buffers for what is loaded, register buffers of one group's rows for the rest; head dims padded."""
    a = program.attention
    dims = {a.dim_qk: target.pad(a.dim_qk), a.dim_v: target.pad(a.dim_v)}
    loads = _loads(program)
    out = []
    for v in program.values:
        if v.name in loads:
            out.append(l3.Buffer(v.name, SHARED, v.rows, dims[v.cols], v.dtype))
        elif any(isinstance(op, Matmul) and op.dst == v.name and not op.transposed for op in _all_ops(program)):
            out.append(l3.Buffer(v.name, REGISTER, rows, dims[v.cols], v.dtype))
        else:
            out.append(l3.Buffer(v.name, REGISTER, rows, v.cols, v.dtype))
    if a.reduction.kind == "softmax":
        out += [l3.Buffer(n, REGISTER, rows, 1, "f32") for n in (ROW_MAX, ROW_SUM, CORRECTION)]
    return tuple(out)


def _channels(program: TileProgram, target: Target, groups: int) -> tuple[l3.Channel, ...]:
    kind = "tma" if target.has("tma") else "cp_async"
    out = []
    for name in _loads(program):
        value = program.value(name)
        size = value.rows * target.pad(value.cols) * bytes_of(value.dtype) if kind == "tma" else 0
        arrivals = groups if kind == "tma" else 0
        out.append(l3.Channel(name, kind, name, 1, ROLE, ROLE, arrivals, size))
    return tuple(out)


def _all_ops(program: TileProgram) -> tuple:
    return program.prologue + tuple(op for s in program.segments for op in s.body) + program.epilogue


def _loads(program: TileProgram) -> tuple[str, ...]:
    """Names of the loaded values, each once, in order."""
    return tuple(dict.fromkeys(op.dst for op in _all_ops(program) if isinstance(op, Load)))


def _role_body(program: TileProgram, target: Target) -> tuple[l3.Op, ...]:
    loads = tuple(op for op in program.prologue if isinstance(op, Load))
    lets = tuple(op for op in program.prologue if not isinstance(op, Load))
    counts = tuple(Let(count_name(i), s.count) for i, s in enumerate(program.segments))
    total: Expr = ZERO
    for let in counts:
        total = var(let.name) if total is ZERO else add(total, var(let.name))
    outer = _needed(lets, counts)
    inner = tuple(op for op in lets if op not in outer)
    loops = (_loop(i, s, target) for i, s in enumerate(program.segments))
    some = l3.If(apply("gt", var(TOTAL), ZERO), (*inner, *(o for op in loads for o in _copy(op)), *loops))
    fills, epilogue = _fills(program), program.epilogue
    if any(isinstance(op, Softmax) and op.maximum is not None for op in _all_ops(program)):
        fills += (l3.Fill(CORRECTION, 0.0),)
        epilogue = tuple(replace(op, gap=CORRECTION) if isinstance(op, Finalize) else op for op in epilogue)
    body = (*fills, *outer, *counts, Let(TOTAL, total), some, *epilogue)
    return drop_unused_lets(body)


def _needed(lets: tuple[l3.Op, ...], counts: tuple[Let, ...]) -> tuple[l3.Op, ...]:
    """The lets that the counts read. The others wait until there is a key tile: without one, a tensor may have no element."""
    needed: list[l3.Op] = []
    names = frozenset().union(*(variables(op.expr) for op in counts))
    for op in reversed(lets):
        if op.name in names:
            needed.insert(0, op)
            names |= variables(op.expr)
    return tuple(needed)


def count_name(segment: int) -> str:
    """The let that holds the number of tiles of a segment."""
    return f"count_{segment}"


def _fills(program: TileProgram) -> tuple[l3.Op, ...]:
    accumulators = tuple(op.dst for op in _all_ops(program) if isinstance(op, Matmul) and op.accumulate)
    fills = tuple(l3.Fill(name, 0.0) for name in dict.fromkeys(accumulators))
    if program.attention.reduction.kind == "softmax":
        fills += (l3.Fill(ROW_MAX, float("-inf")), l3.Fill(ROW_SUM, 0.0))
    return fills


def _loop(index: int, segment: Segment, target: Target) -> l3.For:
    body: list[l3.Op] = [Let("kv_tile", segment.tile)]
    for op in segment.body:
        body += _lower(op, segment, target)
    return l3.For("t", ZERO, var(count_name(index)), f"{segment.kind} tiles", tuple(body))


def _copy(op: Load) -> tuple[l3.Op, ...]:
    return l3.Acquire(op.dst), l3.Copy(op.dst, op.tensor, op.tile), l3.Commit(op.dst), l3.Wait(op.dst)


def _lower(op, segment: Segment, target: Target) -> tuple[l3.Op, ...]:
    if isinstance(op, Load):
        return _copy(op)
    if isinstance(op, Matmul):
        return _matmul(op, segment, target)
    if isinstance(op, Softmax) and op.maximum is not None:
        step = l3.SoftmaxStep(op.scores, ROW_MAX, ROW_SUM, CORRECTION, op.multiplier, False, False, maximum=op.maximum, sets=segment.kind == PARTIAL)
        return step, l3.Convert(op.weights, op.scores)
    if isinstance(op, Softmax):
        return (
            l3.SoftmaxStep(op.scores, ROW_MAX, ROW_SUM, CORRECTION, op.multiplier, first=False, guard=True),
            l3.Rescale(op.accumulator, CORRECTION),
            l3.Convert(op.weights, op.scores),
        )
    if isinstance(op, Weights):
        return Weights(op.scores, op.scores, op.kind, op.multiplier), l3.Convert(op.weights, op.scores)
    return (op,)


def _matmul(op: Matmul, segment: Segment, target: Target) -> tuple[l3.Op, ...]:
    """The product, its wait when it is asynchronous, and the release of the operands that this body loaded."""
    loaded = {o.dst for o in segment.body if isinstance(o, Load)}
    asynchronous = target.has("async_mma")
    wait = (l3.MmaWait(0),) if asynchronous else ()
    release = tuple(l3.Release(name) for name in (op.a, op.b) if name in loaded)
    return (l3.Mma(op.dst, op.a, op.b, op.transposed, op.accumulate, asynchronous), *wait, *release)
