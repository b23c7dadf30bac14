"""What the tests of passes share: small attentions, short program texts, and running a program against the
reference.
"""

from __future__ import annotations

import torch

from attncc import pipeline
from attncc.interp.data import make_inputs
from attncc.interp.reference import reference
from attncc.interp.run_tile import run_tile
from attncc.ir.attention import Attention
from attncc.ir.check_tile import check_tile
from attncc.ir.text import format_program, parse_program
from attncc.ir.tile import TileProgram
from attncc.lower import load
from attncc.lower.attention_to_tile import lower_attention_to_tile

SHAPES = ((1, 70, 70), (2, 33, 101), (2, 101, 33), (1, 1, 65))
"""(batch, seq_q, seq_kv) for programs of 32 x 16 tiles: ragged, one row, more keys than queries and fewer."""


def attention(body: str = "", q: int = 4, kv: int = 2, dim: str = "qk = 8, v = 16", head: str = "", dtype="bf16") -> Attention:
    return load(f"attention x{head} {{\nheads q = {q}, kv = {kv}\ndim {dim}\ndtype {dtype}\n{body}\n}}")


def program(body: str = "", tiles: tuple[int, int] = (64, 64), upto: str | None = None, **options) -> TileProgram:
    """The naive program of `attention(body)`, after the tile passes that come before the one called `upto`."""
    out = lower_attention_to_tile(attention(body, **options), *tiles)
    for one in pipeline.TILE_PASSES if upto is not None else ():
        if one.__name__ == upto:
            break
        out = one(out)
    return out


def lines(p: TileProgram) -> str:
    """The program without what passes rarely touch: lets, segments with their scores and masks, finalize, table."""
    text = format_program(p)
    shown = (
        "let ",
        "row_let",
        "col_let",
        "segment ",
        "score ",
        "mask ",
        "softmax ",
        "weights ",
        "finalize ",
        "may =",
        "must =",
    )
    kept = [line.strip() for line in text.splitlines() if line.strip().startswith((*shown, "tile_summary"))]
    return "\n".join(line for line in kept if not line.endswith("segments {"))


def after(one, p: TileProgram) -> TileProgram:
    """The program after a pass: legal, and its text parses back."""
    out = one(p)
    check_tile(out)
    assert parse_program(format_program(out)) == out
    return out


def same_numbers(*programs: TileProgram, strict: bool = False) -> None:
    """Each program computes what the reference says, at several shapes; run_tile checks its visits as well."""
    for batch, seq_q, seq_kv in SHAPES:
        q, k, v, inputs = make_inputs(programs[0].attention, batch, seq_q, seq_kv)
        q, k, v = q.double(), k.double(), v.double()
        out, lse = reference(programs[0].attention, q, k, v, inputs)
        for p in programs:
            mine, mine_lse = run_tile(p, q, k, v, inputs, strict=strict)
            torch.testing.assert_close(mine, out, atol=1e-11, rtol=1e-11)
            if lse is not None:
                torch.testing.assert_close(mine_lse, lse, atol=1e-11, rtol=1e-11)
