"""How much an attention does: tiles by class, flops, bytes moved, and the least bytes that any kernel must move."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import torch

from attncc.diagnostics import fail
from attncc.explain.elements import score_cost, shares_of
from attncc.formats import bytes_of
from attncc.interp.data import make_inputs
from attncc.interp.evaluate import UNUSED, evaluate
from attncc.interp.tile_classes import EMPTY, FULL, PARTIAL, tile_classes
from attncc.ir import tile as l2
from attncc.ir.attention import Attention
from attncc.ir.expr import tensors, variables
from attncc.ir.schedule import Schedule
from attncc.ir.schedule_ops import compute_role, number, operations, parts
from attncc.ir.tile import SHARED
from attncc.passes.schedule.persistent_blocks import BLOCKS, WORK_TILES
from attncc.targets import Target
from attncc.targets.fit import tiles_of
from attncc.targets.model import ALONE, APART, OVER_Q, Estimate, estimate

CELLS_AT_ONCE = 1 << 24
MOST_TILES = 1 << 23


@dataclass(frozen=True)
class Shape:
    """The sizes of a call."""

    batch: int
    seq_q: int
    seq_kv: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """`2x4096x4096`, or `2x4096` for equal lengths. ValueError for anything else."""
        parts = [int(p) for p in text.lower().split("x")]
        if len(parts) not in (2, 3) or any(p < 0 for p in parts) or max(parts) >= 2**31:
            raise ValueError(text)
        return cls(parts[0], parts[1], parts[-1])

    def __str__(self) -> str:
        return f"{self.batch}x{self.seq_q}x{self.seq_kv}"


@dataclass(frozen=True)
class Work:
    """Counts for one call.

    empty, partial, full    key tiles skipped, run with the mask, run without
    kept, run               query-key pairs that the mask keeps, and those in tiles that are run
    flops                   of both products over the kept pairs, a multiplication and an addition counted as two
    moved                   bytes loaded and stored by the main kernel, every visited key tile counted
    least                   bytes of q, k, v, out, lse and the tensors once: no kernel moves less
    """

    empty: int
    partial: int
    full: int
    kept: int
    run: int
    flops: int
    moved: int
    least: int

    @property
    def tiles(self) -> int:
        return self.empty + self.partial + self.full


def check_size(program: l2.TileProgram, shape: Shape, planes: int, most: int) -> None:
    """E604 when the key tiles of `planes` heads are more than `most`: they are looked at one by one."""
    tiles = planes * -(-shape.seq_q // program.tile_m) * -(-shape.seq_kv // program.tile_n)
    if tiles > most:
        raise fail("E604", f"{shape} has {tiles} tiles; at most {most} are looked at", hint="give a smaller --shape")


def work(program: l2.TileProgram, shape: Shape, inputs: dict | None = None) -> Work:
    """Counts the work of `program` on `shape`; `inputs` are its tensors and scalars (default: generated ones)."""
    a = program.attention
    check_size(program, shape, shape.batch * a.heads_q, MOST_TILES)
    if inputs is None:
        inputs = example_inputs(a, shape)
    classes = tile_classes(program, shape.batch, shape.seq_q, shape.seq_kv, inputs)
    count = {c: int((classes == c).sum()) for c in (EMPTY, PARTIAL, FULL)}
    visited = count[PARTIAL] + count[FULL]
    cells = visited * program.tile_m * program.tile_n
    kept = kept_in(program, shape, inputs, classes)
    size = bytes_of(a.dtype)
    operands = size * shape.batch * (
        shape.seq_q * a.heads_q * (a.dim_qk + a.dim_v) + shape.seq_kv * a.heads_kv * (a.dim_qk + a.dim_v)
    )  # fmt: skip
    lse = 4 * shape.batch * a.heads_q * shape.seq_q
    extra = sum(bytes_of(t.dtype) * inputs[t.name].numel() for t in a.tensors)
    q_side = size * shape.batch * shape.seq_q * a.heads_q * (a.dim_qk + a.dim_v) + lse
    return Work(
        empty=count[EMPTY],
        partial=count[PARTIAL],
        full=count[FULL],
        kept=kept,
        run=cells,
        flops=2 * kept * (a.dim_qk + a.dim_v),
        moved=q_side + visited * program.tile_n * size * (a.dim_qk + a.dim_v) + element_loads(program, count),
        least=operands + lse + extra,
    )


def example_inputs(a: Attention, shape: Shape) -> dict:
    """Generated tensors and scalars for `shape`, without the cost of q, k and v."""
    import dataclasses

    small = dataclasses.replace(a, heads_q=1, heads_kv=1, dim_qk=1, dim_v=1) if not a.tensors and not a.scalars else a
    return make_inputs(small, shape.batch, shape.seq_q, shape.seq_kv)[3]


def element_loads(program: l2.TileProgram, count: dict[int, int]) -> int:
    """Bytes of user tensors read for single elements of the score tiles."""
    kinds = {l2.PARTIAL: PARTIAL, l2.FULL: FULL}
    total = 0
    for kind, number in kinds.items():
        body = next((s.body for s in program.segments if s.kind == kind), ())
        names = [t for op in body if isinstance(op, (l2.Score, l2.Mask)) for t in tensors(op.expr)]
        total += (
            count[number]
            * program.tile_m
            * program.tile_n
            * sum(bytes_of(program.attention.tensor(t).dtype) for t in names)
        )
    return total


def kept_in(program: l2.TileProgram, shape: Shape, inputs: dict, classes: torch.Tensor) -> int:
    """As `kept_pairs`, where the tiles' classes are known: only the pairs of partial tiles are looked at."""
    a, m, n = program.attention, program.tile_m, program.tile_n
    rows, columns = (_sizes(length, size) for length, size in ((shape.seq_q, m), (shape.seq_kv, n)))
    total = int(((classes == FULL) * rows.view(-1, 1) * columns).sum())
    used = variables(a.mask)
    if "b" not in used:
        classes = classes[:1]
    if not used & {"h", "hkv"}:
        classes = classes[:, :1]
    same = shape.batch * a.heads_q // max(1, classes.shape[0] * classes.shape[1])
    env = {"batch": shape.batch, "seq_q": shape.seq_q, "seq_kv": shape.seq_kv, "off": shape.seq_kv - shape.seq_q}
    env |= {s.name: inputs[s.name] for s in a.scalars}
    for part in torch.nonzero(classes == PARTIAL).split(max(1, CELLS_AT_ONCE // (m * n))):
        b, h, i, j = (x.view(-1, 1, 1) for x in part.unbind(1))
        env |= {"b": b, "h": h, "hkv": h // a.group}
        env |= {"q_idx": i * m + torch.arange(m).view(1, -1, 1), "kv_idx": j * n + torch.arange(n)}
        kept = evaluate(a.mask, env, {t.name: inputs[t.name] for t in a.tensors}, valid=UNUSED)
        inside = (env["q_idx"] < shape.seq_q) & (env["kv_idx"] < shape.seq_kv)
        total += same * int((kept & inside).sum())
    return total


def _sizes(length: int, size: int) -> torch.Tensor:
    """How many of a length lie in each of its tiles."""
    return (length - size * torch.arange(-(-length // size))).clamp(max=size)


def kept_pairs(a: Attention, batch: int, seq_q: int, seq_kv: int, inputs: dict, device="cpu") -> int:
    """Query-key pairs that the mask keeps, over all batch entries and heads; computed on `device` a strip of queries at a time."""
    tensors = {t.name: inputs[t.name].to(device) for t in a.tensors}
    h = torch.arange(a.heads_q, device=device).view(1, -1, 1, 1)
    sizes = {
        "batch": batch,
        "seq_q": seq_q,
        "seq_kv": seq_kv,
        "off": seq_kv - seq_q,
        **{s.name: inputs[s.name] for s in a.scalars},
    }
    env = {**sizes, "b": torch.arange(batch, device=device).view(-1, 1, 1, 1), "h": h, "hkv": h // a.group}
    env["kv_idx"] = torch.arange(seq_kv, device=device).view(1, 1, 1, -1)
    used = variables(a.mask)
    planes = (batch if "b" in used else 1) * (a.heads_q if used & {"h", "hkv"} else 1)
    rows = max(1, CELLS_AT_ONCE // max(1, planes * seq_kv))
    unused = torch.tensor(False, device=device)
    total = 0
    for first in range(0, seq_q, rows):
        q_idx = torch.arange(first, min(first + rows, seq_q), device=device).view(1, 1, -1, 1)
        kept = evaluate(a.mask, {**env, "q_idx": q_idx}, tensors, valid=unused, device=device)
        whole = batch * a.heads_q * q_idx.numel() * seq_kv
        total += int(kept.sum()) * (whole // kept.numel()) if kept.numel() else 0
    return total


def tiles_of_block(schedule: Schedule, shape: Shape) -> str:
    """How many query tiles a block of a call works on, and where its output lies, in the resource model's words."""
    env = {"batch": shape.batch, "seq_q": shape.seq_q, "seq_kv": shape.seq_kv, "off": shape.seq_kv - shape.seq_q}
    env["q_tiles"] = -(-shape.seq_q // schedule.tile_m)
    for op in schedule.prelude:
        with suppress(KeyError):  # a block's indices, and what depends on them
            env[op.name] = number(op.expr, env)
    if env.get(WORK_TILES, 0) <= env.get(BLOCKS, 0):
        return ALONE
    return OVER_Q if any(b.space == SHARED and b.alias for b in schedule.buffers) else APART


def predict(schedule: Schedule, target: Target, shape: Shape, done: Work) -> Estimate:
    """The resource model's prediction for a call."""
    a = schedule.attention
    cells = shape.batch * a.heads_q * shape.seq_q * shape.seq_kv
    visited = (done.partial + done.full) // max(1, shape.batch * a.heads_q)
    extra = score_cost(schedule, target, min(1.0, near_tiles(schedule, shape) / max(1, visited)))
    kept = done.kept / cells if cells else 0.0
    sizes = shape.batch, shape.seq_q, shape.seq_kv
    return estimate(a, target, tiles_of(schedule), *sizes, kept, visited, extra, shares_of(schedule), tiles_of_block(schedule, shape))


def near_tiles(schedule: Schedule, shape: Shape) -> float:
    """Key tiles of one head, masked or not, whose terms of the distance are not all the same; each group of rows counts for its part."""
    found = [op.same for op in operations(compute_role(schedule).body) if isinstance(op, l2.Score)]
    rows, keys = -(-shape.seq_q // schedule.tile_m), -(-shape.seq_kv // schedule.tile_n)
    if not found or found[-1] is None:
        return float(rows * keys)
    groups = parts(schedule)
    env = {"seq_q": shape.seq_q, "seq_kv": shape.seq_kv, "off": shape.seq_kv - shape.seq_q, "batch": shape.batch}
    env |= {"q_tile": torch.arange(rows).view(-1, 1, 1), "kv_tile": torch.arange(keys).view(1, -1, 1), "group": torch.arange(groups)}
    return float((~evaluate(found[-1], env, {}, valid=UNUSED)).sum()) / groups


def share(part: int, whole: int) -> str:
    """`37.5 %`, or a dash when there is nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def scaled(value: float, unit: str) -> str:
    """A number with a decimal prefix: 1.5e9, "B" -> `1.50 GB`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.2f} {prefix}{unit}"
    return f"{value:.0f} {unit}"
