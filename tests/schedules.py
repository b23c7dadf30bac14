"""Attentions in text, small enough for the schedule interpreter, and their schedules after any part of the pipeline."""

from __future__ import annotations

import dataclasses
from functools import cache

from attncc import pipeline
from attncc.ir import schedule as l3
from attncc.ir.attention import Attention
from attncc.ir.packing import pack
from attncc.ir.schedule_ops import rewrite
from attncc.lower import load
from attncc.lower.attention_to_tile import lower_attention_to_tile
from attncc.lower.tile_to_schedule import lower_tile_to_schedule
from attncc.passes.schedule.pair_blocks import in_pairs
from attncc.targets import TARGETS, Target
from attncc.targets.target import STEADY
from attncc.targets.tiles import choose_tiles

HEAD = "heads q = 2, kv = 1\n    dim 32\n    dtype bf16\n"
TEXTS = {
    "dense": "attention dense { " + HEAD + " }",
    "causal": "attention causal { " + HEAD + " mask kv_idx <= q_idx + off }",
    "wide": "attention wide { " + HEAD.replace("32", "256") + " mask kv_idx <= q_idx + off }",
    "narrow": "attention narrow { " + HEAD.replace("32", "64") + " mask kv_idx <= q_idx + off }",
    "even": "attention even { " + HEAD.replace("32", "64") + " }",
    "window": "attention window { " + HEAD + " mask kv_idx <= q_idx + off and kv_idx > q_idx + off - 150 }",
    "band": "attention band { " + HEAD + " mask kv_idx <= q_idx + off + 20 and kv_idx > q_idx + off - 250 }",
    "pairs": "attention pairs { " + HEAD + " tensor pair: bf16[heads_q, seq_q, seq_kv]\n bias pair[h, q_idx, kv_idx]\n mask kv_idx <= q_idx + off }",
    "capped": "attention capped { " + HEAD + " score softcap(30.0)\n mask kv_idx <= q_idx + off }",
    "distances": "attention distances { " + HEAD + " tensor table: f32[heads_q, 17]\n bias relative_table(table, 8)\n mask causal }",
    "sigmoid": "attention sigmoid_one { " + HEAD + " mask kv_idx <= q_idx + off\n reduction sigmoid }",
    "pages": "attention pages { " + HEAD + " tensor seen: bool[batch, seq_q, seq_kv]\n mask seen[b, q_idx, kv_idx] }",
    "documents": "attention documents { " + HEAD + " tensor doc: i32[batch, seq_kv] in 0..4 sorted\n"
    " mask kv_idx <= q_idx + off and doc[b, kv_idx] == doc[b, max(0, min(q_idx + off, seq_kv - 1))] }",
}  # fmt: skip
GATES = {
    "gates": "attention gates { " + HEAD.replace("32", "64") + " tensor gates: f32[batch, heads_q, seq_kv] in -16.0..0.0\n bias forgetting_gate(gates)\n mask causal }",
    "many": "attention many { " + HEAD + """ tensor gates: f32[batch, seq_kv]
        tensor at: i8[batch, seq_kv] in 0..8
        tensor of: f32[batch, 8]
        tensor seen: bool[seq_kv]
        tensor few: f32[4]
        bias (gates[b, kv_idx] if seen[kv_idx] else 0.5) * float(q_idx)
        bias (of[b, at[b, kv_idx]] + few[kv_idx % 4]) * float(q_idx)
        mask causal }""",
}
"""As TEXTS, for what is loaded for each column: one number of a float for the score; elements of several types, one of them an index, and of a small table."""
LONG_ROWS = {"full": "attention full { " + HEAD.replace("dim 32", "dim qk = 192, v = 128") + " }"}
"""As TEXTS, for what only long rows are good for: they take their time."""
TILES = {"hopper": (128, 64), "blackwell": (256, 64), "ampere": (128, 32), "ada": (128, 32)}


@cache
def attention(name: str) -> Attention:
    """The attention `name` of TEXTS, after the L1 passes; "packed" is the causal one for packed sequences."""
    attention = pack(load(TEXTS["causal"])) if name == "packed" else load((TEXTS | GATES | LONG_ROWS)[name])
    return pipeline.run_passes(attention, pipeline.ATTENTION_PASSES, pipeline.CHECKS["L1"])


@cache
def schedule(
    name: str, target: str, without: tuple[str, ...] = (), until: str | None = None, small: bool = True, tile_m: int | None = None,
    sms: int | None = None, shared: int | None = None,
) -> l3.Schedule:  # fmt: skip
    """The schedule of an attention, with passes left out, or only those before `until`. `small` takes the tiles of TILES,
    with `tile_m` rows if given. With few `sms` blocks work on several query tiles of short calls too; with little
    `shared` memory the output lies over Q."""
    chosen = smaller(TARGETS[target], sms, shared)
    a = attention(name)
    tiles = choose_tiles(a, chosen)
    usual_m, tile_n = TILES[target] if small else (tiles.tile_m, tiles.tile_n)
    program = lower_attention_to_tile(a, tile_m or usual_m, tile_n)
    program = pipeline.run_passes(program, pipeline.TILE_PASSES, pipeline.CHECKS["L2"], chosen)
    passes = pipeline.SCHEDULE_PASSES[target]
    if until is not None:
        passes = passes[: [p.__name__ for p in passes].index(until)]
    passes = tuple(p for p in passes if p.__name__ not in without)
    return pipeline.run_passes(lower_tile_to_schedule(program, chosen), passes, pipeline.CHECKS["L3"], chosen)


def paired(name: str, sms: int | None = None, tile_m: int = 128, shared: int | None = None) -> l3.Schedule:
    """The Blackwell schedule of an attention for pairs of blocks, with small tiles, whatever the resource model says of them."""
    target = smaller(TARGETS["blackwell"], sms, shared)
    before = schedule(name, "blackwell", until="pair_blocks", tile_m=tile_m, sms=sms, shared=shared)
    issuer = next(r for r in before.roles if r.name == "issuer")
    passes = pipeline.SCHEDULE_PASSES["blackwell"]
    rest = passes[1 + [p.__name__ for p in passes].index("pair_blocks") :]
    return pipeline.run_passes(in_pairs(before, issuer, target), rest, pipeline.CHECKS["L3"], target)


def smaller(target: Target, sms: int | None = None, shared: int | None = None) -> Target:
    """`target` of a GPU with that many multiprocessors, whose blocks work on several tiles wherever costs are steady, and that much shared
    memory; as it is where None."""
    target = dataclasses.replace(target, shared_limit=shared or target.shared_limit)
    if sms is None:
        return target
    manners = tuple(dataclasses.replace(m, several=STEADY) for m in target.manners)
    return dataclasses.replace(target, rates=dataclasses.replace(target.rates, sms=sms), manners=manners)


def change(s: l3.Schedule, role: str, rule) -> l3.Schedule:
    """`s` with every operation of a role replaced by what `rule(op)` gives: a tuple of operations."""
    roles = tuple(dataclasses.replace(r, body=rewrite(r.body, rule)) if r.name == role else r for r in s.roles)
    return dataclasses.replace(s, roles=roles)


def drop(s: l3.Schedule, role: str, *ops) -> l3.Schedule:
    """`s` without the operations that equal one of `ops`, anywhere in the role."""
    return change(s, role, lambda op: () if op in ops else (op,))


def with_channel(s: l3.Schedule, name: str, **fields) -> l3.Schedule:
    """`s` with fields of a channel changed (and its buffer's stages along with its own)."""
    channels = tuple(dataclasses.replace(c, **fields) if c.name == name else c for c in s.channels)
    stages = next(c.stages for c in channels if c.name == name)
    buffers = tuple(dataclasses.replace(b, stages=stages) if b.name == name else b for b in s.buffers)
    return dataclasses.replace(s, channels=channels, buffers=buffers)
