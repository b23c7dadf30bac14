"""Which key tiles a tile program visits and as what, beside the classes of the dense mask. For checks and drawings."""

from __future__ import annotations

import torch

from attncc.interp.evaluate import UNUSED, evaluate
from attncc.ir import tile as ir
from attncc.ir.attention import Attention
from attncc.ir.expr import Expr

EMPTY, PARTIAL, FULL = 0, 1, 2


def tile_environment(
    program: ir.TileProgram, batch: int, seq_q: int, seq_kv: int, inputs: dict[str, object], entry: tuple[int, int] | None = None
):
    """(variables, tensors) for a program's expressions; the axes are (batch, head, query tile, row, column). With `entry` = (b, n) a
    batch of one stands for batch entry b of n."""
    a = program.attention
    h = torch.arange(a.heads_q).view(1, -1, 1, 1, 1)
    env: dict[str, object] = {
        "batch": batch, "seq_q": seq_q, "seq_kv": seq_kv, "off": seq_kv - seq_q,
        "q_tiles": -(-seq_q // program.tile_m), "kv_tiles": -(-seq_kv // program.tile_n),
        "b": torch.arange(batch).view(-1, 1, 1, 1, 1), "h": h, "hkv": h // a.group,
    }  # fmt: skip
    if entry is not None:
        env |= {"b": torch.tensor(entry[0]).view(1, 1, 1, 1, 1), "batch": entry[1]}
    env |= {s.name: inputs[s.name] for s in a.scalars if s.name in inputs}
    tensors = {t.name: torch.as_tensor(inputs[t.name]) for t in a.tensors if t.name in inputs}
    env |= {ir.extent_name(name, i): n for name, x in tensors.items() for i, n in enumerate(x.shape)}
    return env, tensors


def tile_classes(
    program: ir.TileProgram, batch: int, seq_q: int, seq_kv: int, inputs: dict[str, object] | None = None
) -> torch.Tensor:
    """(batch, heads_q, q_tiles, kv_tiles): EMPTY where the program does not visit a key tile, else the visiting
    segment's kind.

    Raises AssertionError when a tile is visited twice or lies out of range.
    """
    env, tensors = tile_environment(program, batch, seq_q, seq_kv, inputs or {})
    if program.table is not None:
        tensors |= table_tensors(program, env, tensors)
    return _visited(program, env, tensors)


def dense_classes(
    attention: Attention, tile_m: int, tile_n: int, batch: int, seq_q: int, seq_kv: int,
    inputs: dict[str, object] | None = None,
) -> torch.Tensor:  # fmt: skip
    """The classes of the dense mask, as `tile_classes` gives them. A key past seq_kv counts as masked, a row past
    seq_q not at all.
    """
    naive = ir.TileProgram(attention, tile_m, tile_n, (), (), (), ())
    return _dense(naive, *tile_environment(naive, batch, seq_q, seq_kv, inputs or {}))


def check_visits(program: ir.TileProgram, env: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    """AssertionError unless skipped tiles are empty and tiles of full segments full."""
    mine, dense = _visited(program, env, tensors), _dense(program, env, tensors)
    for what, wrong in (("skipped", (mine == EMPTY) & (dense != EMPTY)), ("full", (mine == FULL) & (dense != FULL))):
        if bool(wrong.any()):
            where = [int(i) for i in torch.nonzero(wrong)[0]]
            raise AssertionError(
                f"{what} tile (b, h, q_tile, kv_tile) = {where} of {program.attention.name} is not {what}"
            )


def _visited(program: ir.TileProgram, env, tensors) -> torch.Tensor:
    a = program.attention
    shape = (env["b"].shape[0], a.heads_q, env["q_tiles"], env["kv_tiles"])
    classes = torch.zeros(shape, dtype=torch.int64)
    here = dict(env, q_tile=torch.arange(shape[2]).view(1, 1, -1, 1, 1))
    lets = [op for op in program.prologue if isinstance(op, ir.Let)]
    for op in lets:
        here[op.name] = evaluate(op.expr, here, tensors, valid=UNUSED)
    for segment in program.segments:
        count = evaluate(segment.count, here, tensors, valid=UNUSED)
        steps = int(count.max()) if count.numel() else 0
        if bool((count < 0).any()):
            raise AssertionError(f"a {segment.kind} segment of {a.name} has a negative count: {segment.count}")
        t = torch.arange(steps).view(1, 1, 1, 1, -1)
        tile = evaluate(segment.tile, dict(here, t=t), tensors, valid=UNUSED)
        live = (t < count).expand(*shape[:3], 1, steps)[..., 0, :]
        tile = tile.expand(*shape[:3], 1, steps)[..., 0, :]
        if bool((live & ((tile < 0) | (tile >= shape[3]))).any()):
            raise AssertionError(f"a {segment.kind} segment of {a.name} visits a key tile out of range")
        times = torch.zeros((*shape[:3], shape[3] + 1), dtype=torch.int64)
        times.scatter_add_(-1, torch.where(live, tile, shape[3]).long(), live.long())
        times = times[..., : shape[3]]
        if bool((times > 1).any()) or bool(((times > 0) & (classes > 0)).any()):
            raise AssertionError(f"{a.name} visits a key tile twice")
        classes += times * (FULL if segment.kind == ir.FULL else PARTIAL)
    return classes


def _dense(program: ir.TileProgram, env, tensors) -> torch.Tensor:
    a, m, n = program.attention, program.tile_m, program.tile_n
    seq_q, seq_kv = env["seq_q"], env["seq_kv"]
    grid = dict(env, q_idx=torch.arange(seq_q).view(1, 1, -1, 1), kv_idx=torch.arange(seq_kv).view(1, 1, 1, -1))
    for name in ("b", "h", "hkv"):
        grid[name] = env[name][..., 0]
    kept = evaluate(a.mask, grid, tensors, valid=UNUSED).expand(env["b"].shape[0], a.heads_q, seq_q, seq_kv)
    pad = (0, env["kv_tiles"] * n - seq_kv, 0, env["q_tiles"] * m - seq_q)
    cut = (env["b"].shape[0], a.heads_q, env["q_tiles"], m, env["kv_tiles"], n)
    some = torch.nn.functional.pad(kept, pad, value=False).reshape(cut).any(5).any(3)
    masked = torch.nn.functional.pad(~kept, (0, pad[1], 0, 0), value=True)
    masked = torch.nn.functional.pad(masked, (0, 0, 0, pad[3]), value=False)
    return torch.where(masked.reshape(cut).any(5).any(3), some.long() * PARTIAL, FULL)


def table_tensors(program: ir.TileProgram, env, tensors) -> dict[str, torch.Tensor]:
    """What the prologue kernel writes: tile_count and tile_list; unused list entries hold -1, which is out of range."""
    table = program.table
    q_tiles, kv_tiles = env["q_tiles"], env["kv_tiles"]
    grid = dict(env, q_tile=torch.arange(q_tiles).view(1, 1, -1, 1), kv_tile=torch.arange(kv_tiles).view(1, 1, 1, -1))
    for name in ("b", "h", "hkv"):
        grid[name] = env[name][..., 0] if table.by_batch or name != "b" else torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    if not table.by_head:
        grid["h"] = grid["hkv"] = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    for summary in table.summaries:
        grid |= _summary(program, summary, grid, tensors)
    shape = (
        env["b"].shape[0] if table.by_batch else 1,
        program.attention.heads_q if table.by_head else 1,
        q_tiles,
        kv_tiles,
    )
    may, must = (_grid_value(e, grid, tensors, shape) for e in (table.may, table.must))
    kinds = torch.stack((may & ~must, must), 3)
    order = torch.argsort(kinds.long(), dim=-1, descending=True, stable=True)
    tile_list = torch.where(torch.gather(kinds, -1, order), order, -1)
    found = {ir.TILE_COUNT: kinds.sum(-1).int(), ir.TILE_LIST: tile_list.int()}
    if table.by_batch and shape[0] != env["batch"]:  # one entry stands for all
        found = {name: x.expand(env["batch"], *x.shape[1:]) for name, x in found.items()}
    return found


def _grid_value(expr: Expr, grid, tensors, shape) -> torch.Tensor:
    return evaluate(expr, grid, tensors, valid=UNUSED).expand(shape)


def _summary(program: ir.TileProgram, summary: ir.TileSummary, grid, tensors) -> dict[str, torch.Tensor]:
    """The bounds of one summary, on the axes (batch, head, query tile, key tile)."""
    on_q = summary.axis == "q"
    size, length = (program.tile_m, grid["seq_q"]) if on_q else (program.tile_n, grid["seq_kv"])
    tiles = -(-length // size)
    here = dict(grid, **{"q_idx" if on_q else "kv_idx": torch.arange(length).view(1, 1, -1, 1)})
    values = evaluate(summary.expr, here, tensors, valid=UNUSED)
    values = values.expand(*values.shape[:2], length, 1)[..., 0]
    out = {}
    for name, reduce, neutral in (("lo", torch.amin, _greatest(values)), ("hi", torch.amax, _least(values))):
        padded = torch.nn.functional.pad(values, (0, tiles * size - length), value=neutral)
        bound = reduce(padded.reshape(*values.shape[:2], tiles, size), dim=-1)
        out[f"{summary.name}_{name}"] = bound[..., None] if on_q else bound[:, :, None]
    return out


def _greatest(values: torch.Tensor) -> float:
    return torch.iinfo(values.dtype).max if not values.is_floating_point() else float("inf")


def _least(values: torch.Tensor) -> float:
    return torch.iinfo(values.dtype).min if not values.is_floating_point() else -float("inf")
