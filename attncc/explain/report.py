"""Lays out the report of `attncc explain`."""

from __future__ import annotations

from dataclasses import dataclass

from attncc.explain.work import Shape, Work, predict, scaled, share, tiles_of_block, work
from attncc.formats import bytes_of
from attncc.ir.attention import Attention
from attncc.ir.schedule import Schedule
from attncc.ir.text import format_expr
from attncc.ir.tile import TileProgram
from attncc.stages import LEVELS, PassStep, Stages
from attncc.targets import Target, model_accuracy
from attncc.targets.model import ALONE

WIDTH = 100
LIMITS = {
    "tensor": "the matrix units",
    "special": "the special-function unit",
    "issue": "instruction issue",
    "shared": "shared memory",
    "fill": "copies from the L2 cache",
}
UNITS = {unit: f"of {name}" for unit, name in LIMITS.items()}


@dataclass(frozen=True)
class Measured:
    """The time of one call in seconds, on `device`."""

    seconds: float
    device: str


def report(stages: Stages, shape: Shape, measured: Measured | None = None) -> str:
    """The whole report for calls of `shape`."""
    done = work(stages.tile, shape)
    parts = [
        _what(stages.attention),
        _passes(stages),
        _remarks(stages),
        _schedule(stages.schedule, stages.target.title),
        _classes(stages.tile, shape, done),
        _bounds(stages, shape, done, measured),
    ]
    return "\n\n".join(p for p in parts if p)


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([title, *(f"  {line}" for line in lines)]) if lines else ""


def _what(a: Attention) -> str:
    heads = {1: "multi-head"}.get(a.group, "multi-query" if a.heads_kv == 1 else "grouped-query")
    dim = f"dim {a.dim_qk}" if a.dim_qk == a.dim_v else f"dim {a.dim_qk} for q and k, {a.dim_v} for v"
    lines = [
        f"heads      {a.heads_q} query, {a.heads_kv} key/value ({heads})",
        f"operands   {a.dtype}, {dim}",
        f"score      {_cut(format_expr(a.score))}",
        f"mask       {_cut(format_expr(a.mask))}",
        f"reduction  {a.reduction.kind}{' with a sink' if a.reduction.sink is not None else ''}",
    ]
    lines += [
        f"tensor     {t.name}: {t.dtype}[{', '.join('?' if e is None else format_expr(e) for e in t.shape)}]"
        for t in a.tensors
    ]
    lines += [f"scalar     {s.name}: {s.type}" for s in a.scalars]
    return _section(f"{a.name}", lines)


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else text[: WIDTH - 4] + " ..."


def _passes(stages: Stages) -> str:
    lines = []
    for level in LEVELS:
        names = [_pass_name(s) for s in stages.level(level)[1:]]
        lines.append(f"{level}  {', '.join(names) or 'no passes'}")
    return _section("passes (those in brackets changed nothing)", lines)


def _pass_name(step: PassStep) -> str:
    return step.name if step.changed else f"[{step.name}]"


def _remarks(stages: Stages) -> str:
    remarks = stages.schedule.remarks or stages.tile.remarks
    return _section("what they did", [f"{r.by}: {r.text}" for r in remarks])


def _schedule(s: Schedule, title: str) -> str:
    shared = sum(
        b.stages * b.rows * b.cols * bytes_of(b.dtype) for b in s.buffers if b.space == "shared" and b.alias is None
    )
    lines = [
        f"tiles of {s.tile_m} query rows by {s.tile_n} keys, {s.threads} threads, {shared} bytes of shared memory for tiles"
    ]
    for r in s.roles:
        registers = f", {r.registers} registers a thread" if r.registers else ""
        groups = f" as {r.groups} groups of {r.rows_per_group} rows" if r.rows_per_group else ""
        lines.append(f"{r.name}: warps {r.first_warp} to {r.first_warp + r.warps - 1}{groups}{registers}")
    lines += [f"channel {c.name}: {c.stages} stages, {c.kind}, {c.producer} to {' and '.join(c.consumers)}" for c in s.channels]
    return _section(f"schedule for {title}", lines)


def _classes(program: TileProgram, shape: Shape, done: Work) -> str:
    a = program.attention
    lines = [
        f"skipped  {done.empty:10d}  {share(done.empty, done.tiles)}",
        f"full     {done.full:10d}  {share(done.full, done.tiles)}, run without mask code",
        f"partial  {done.partial:10d}  {share(done.partial, done.tiles)}",
    ]
    how = "listed by a kernel that runs before" if program.table else "loop bounds in closed form"
    title = f"tiles of {program.tile_m} x {program.tile_n} at batch {shape.batch}, {shape.seq_q} queries, {shape.seq_kv} keys, {a.heads_q} heads: {how}"
    return _section(title, lines)


def _accuracy(target: Target) -> list[str]:
    """How far such predictions were from measured times, and on what device that was."""
    found = model_accuracy(target)
    if found is None:
        return []
    measured, a = found
    here = "" if measured is target else f"; nothing was measured for {target.name}"
    return [
        f"model      off by {100 * a.median:.0f} % in the median of {a.cases} cases measured on {a.device} ({measured.name}), at most by "
        f"{100 * a.largest:.0f} % ({a.case}){here}"
    ]


def _several(schedule: Schedule, shape: Shape) -> str:
    """What follows the number of blocks where each works on several query tiles."""
    kind = tiles_of_block(schedule, shape)
    return "" if kind == ALONE else f"; query tiles of each: {kind}"


def _beside(measured: Measured | None, predicted: float, flops: int) -> list[str]:
    """The measured time, and how far the predicted one is from it."""
    if measured is None:
        return []
    off = 100 * (predicted / measured.seconds - 1)
    return [
        f"measured   {1e6 * measured.seconds:.1f} us, {flops / measured.seconds / 1e12:.0f} TFLOP/s on {measured.device}: the prediction is off by {off:+.0f} %"
    ]


def _bounds(stages: Stages, shape: Shape, done: Work, measured: Measured | None) -> str:
    e = predict(stages.schedule, stages.target, shape, done)
    lines = [
        f"flops      {scaled(done.flops, 'flop')} for the {share(done.kept, done.run)} of the pairs in running tiles that are kept",
        f"bytes      {scaled(done.moved, 'B')} between the SMs and the L2 cache; {scaled(done.least, 'B')} is the least from memory",
        f"I/O bound  {1e6 * done.least / (stages.target.rates.dram_gbps * 1e9):.1f} us at {stages.target.rates.dram_gbps:.0f} GB/s",
        f"blocks     {e.blocks}, {e.blocks_per_sm} at a time on each of {stages.target.rates.sms} SMs{_several(stages.schedule, shape)}",
        *(
            f"{'cycles' if not i else '':<10} {getattr(e.period, unit):8.0f} {what}"
            for i, (unit, what) in enumerate(UNITS.items())
            if getattr(e.period, unit)
        ),
        f"{'':<10} {e.period.total:8.0f} for one key tile of a block, with what cannot overlap",
        f"predicted  {1e6 * e.seconds:.1f} us, {e.tflops:.0f} TFLOP/s, limited by {LIMITS.get(e.limit, e.limit)}",
        *_beside(measured, e.seconds, done.flops),
        *_accuracy(stages.target),
    ]
    return _section(f"work and limits on {stages.target.title} (a model: {stages.target.rates.source})", lines)
