"""What runs an attention on one device: a compiled kernel, or the CPU interpreter of its tile program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from attncc.ir.attention import Attention
from attncc.ir.schedule import Schedule
from attncc.ir.tile import TILE_COUNT, TILE_LIST, TileProgram
from attncc.runtime.build import Built
from attncc.runtime.check import Sizes
from attncc.runtime.storage import CUTE_DTYPES

WORK_DTYPES = {"Int32": torch.int32, "Float32": torch.float32}


@dataclass(frozen=True)
class Launcher:
    """`launch(q, k, v, o, lse, *tensors, *scalars, *work)` fills o and lse; `workspaces(sizes)` lists shape and dtype of each of
    `work`."""

    launch: Callable
    workspaces: Callable[[Sizes], Sequence[tuple[tuple[int, ...], torch.dtype]]]


def gpu_launcher(built: Built, schedule: Schedule) -> Launcher:
    """Launches a compiled kernel."""
    return Launcher(
        _as_stored(built.function, schedule.attention), lambda sizes: workspaces(schedule, built.arguments, sizes)
    )


def _as_stored(function, attention: Attention) -> Callable:
    """`function`, given bool tensors as the bytes they are and a tensor without dimensions as one of a single element; the function
    itself where there are neither."""
    bools = [5 + i for i, t in enumerate(attention.tensors) if t.dtype == "bool"]
    singles = [5 + i for i, t in enumerate(attention.tensors) if not t.shape]
    if not bools and not singles:
        return function

    def launch(*arguments):
        arguments = list(arguments)
        for i in bools:
            arguments[i] = arguments[i].view(torch.uint8)
        for i in singles:
            arguments[i] = arguments[i].reshape(1)
        function(*arguments)

    return launch


def workspaces(
    schedule: Schedule, arguments: Sequence[tuple], sizes: Sizes
) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """The tensors that the kernels before the main one fill, as ir.tile.TileTable describes them; none without a table.

    tile_count (b', h', q_tiles, 2), tile_list (b', h', q_tiles, 2, kv_tiles); a summary (b', h', tiles of its axis, 2).
    """
    table = schedule.table
    if table is None:
        return []
    outer = (sizes.batch if table.by_batch else 1, schedule.attention.heads_q if table.by_head else 1)
    q_tiles, kv_tiles = -(-sizes.seq_q // schedule.tile_m), -(-sizes.seq_kv // schedule.tile_n)
    found = [((*outer, q_tiles, 2), torch.int32), ((*outer, q_tiles, 2, kv_tiles), torch.int32)]
    summaries = [entry for entry in arguments if entry[1] == "summary"]
    for summary, entry in zip(table.summaries, summaries):
        found.append(((*outer, q_tiles if summary.axis == "q" else kv_tiles, 2), WORK_DTYPES[CUTE_DTYPES[entry[2]]]))
    return found


def cpu_launcher(program: TileProgram) -> Launcher:
    """Runs the tile program's interpreter: slow, in float64, with every index and every promise checked."""
    from attncc.interp.inputs import check_promises
    from attncc.interp.run_tile import run_tile

    a = program.attention
    tensors = [t for t in a.tensors if t.name not in (TILE_COUNT, TILE_LIST)]
    names = [d.name for d in (*tensors, *a.scalars)]

    def launch(q, k, v, o, lse, *rest):
        inputs = dict(zip(names, rest))
        check_promises(tensors, inputs, q, k)
        out, log = run_tile(program, q, k, v, inputs)
        o.copy_(out)
        lse.copy_(log)

    return Launcher(launch, lambda sizes: [])
