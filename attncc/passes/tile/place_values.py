"""Each tile-shaped value gets its memory space."""

from __future__ import annotations

from dataclasses import replace

from attncc.ir.tile import REGISTER, SHARED, Load, TileProgram


def place_values(program: TileProgram) -> TileProgram:
    """What is loaded lies in shared memory, where all warps reach it; what is computed stays in registers.

    Before:
        value name=K, rows=128, cols=128, dtype=bf16, space=global
        value name=S, rows=128, cols=128, dtype=f32, space=global
    After:
        value name=K, rows=128, cols=128, dtype=bf16, space=shared
        value name=S, rows=128, cols=128, dtype=f32, space=register
    """
    ops = (*program.prologue, *(op for s in program.segments for op in s.body))
    loaded = {op.dst for op in ops if isinstance(op, Load)}
    values = tuple(replace(v, space=SHARED if v.name in loaded else REGISTER) for v in program.values)
    return replace(program, values=values)
