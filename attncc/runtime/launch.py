"""What runs an attention on one device: a compiled kernel, or the CPU interpreter of its tile program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from attncc.formats import bytes_of
from attncc.ir.attention import Attention
from attncc.runtime.check import Sizes
from attncc.runtime.storage import CUTE_DTYPES

if TYPE_CHECKING:
    from attncc.ir.schedule import Schedule
    from attncc.ir.tile import TileProgram

WORK_DTYPES = {"Int32": torch.int32, "Float32": torch.float32}


@dataclass(frozen=True)
class Launcher:
    """`launch(q, k, v, o, lse, *tensors, *scalars, *work)` fills o and lse; `workspaces(sizes)` lists shape and dtype of each of
    `work`. Where `launch` checks types, devices, strides and addresses itself, `checks` says so."""

    launch: Callable
    workspaces: Callable[[Sizes], Sequence[tuple[tuple[int, ...], torch.dtype]]]
    checks: bool = False


def gpu_launcher(
    function: Callable, attention: Attention, work: Work | None, blocks: Blocks = (), other: Callable[[], Launcher] | None = None
) -> Launcher:
    """Launches a compiled function. `other` makes the launcher for calls whose `blocks` are not laid out as their copies need."""
    launch = _as_stored(function, attention)
    if blocks:
        launch = _where_copied(launch, blocks, 5 + len(attention.tensors) + len(attention.scalars), other)
    return Launcher(launch, work.spaces if work else lambda sizes: [], checks=True)


Blocks = Sequence[tuple[int, int]]
"""Arguments of a launch that are copied block by block: (position, elements in 16 bytes)."""


def blocks_of(arguments: Sequence[tuple]) -> Blocks:
    """The blocks among the arguments that a generated file lists."""
    found = ((i, entry) for i, entry in enumerate(arguments) if entry[1] == "block")
    return tuple((i, 16 // bytes_of(entry[2])) for i, entry in found)


def _where_copied(function: Callable, blocks: Blocks, count: int, other: Callable[[], Launcher]) -> Callable:
    """`function` for calls whose blocks can be copied, the launch of `other()` for the rest. The first `count` arguments are not work
    space, which the two need of different sizes."""

    def launch(*arguments):
        views = {i: block_view(arguments[i], step) for i, step in blocks}
        if all(x is not None for x in views.values()):
            return function(*(views.get(i, x) for i, x in enumerate(arguments)))
        launcher, (q, k) = other(), arguments[:2]
        sizes = Sizes(q.shape[0], q.shape[1], k.shape[1])
        work = (torch.empty(shape, dtype=dtype, device=q.device) for shape, dtype in launcher.workspaces(sizes))
        return launcher.launch(*arguments[:count], *work)

    return launch


def block_view(x: torch.Tensor, step: int) -> torch.Tensor | None:
    """`x` as copies of whole blocks read it; None where they cannot, because keys are not contiguous, or a row or the tensor does not
    begin at a multiple of 16 bytes (`step` elements).

    A dimension before the last two that is spread from one element (torch's `expand`) becomes one of that element alone: the
    kernel takes the last element for an index past the end.
    """
    shape, strides = list(x.shape), list(x.stride())
    if x.data_ptr() % 16 or (strides[-1] != 1 and shape[-1] > 1):
        return None
    if all(s > 0 and s % step == 0 for s in strides[:-1]) and strides[-1] == 1:
        return x
    strides[-1] = 1
    for axis in range(x.dim() - 1):
        if axis < x.dim() - 2 and strides[axis] == 0:
            shape[axis] = 1
        if shape[axis] == 1:
            strides[axis] = step
    if any(s <= 0 or s % step for s in strides[:-1]):
        return None
    return x.as_strided(shape, strides)


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
            if arguments[i].dtype is not torch.bool:
                raise TypeError("not a bool tensor")
            arguments[i] = arguments[i].view(torch.uint8)
        for i in singles:
            arguments[i] = arguments[i].reshape(1)
        function(*arguments)

    return launch


@dataclass(frozen=True)
class Work:
    """The tensors that the kernels before the main one fill, as ir.tile.TileTable describes them.

    `heads` is 1 where the lists do not depend on the head, `by_batch` whether they depend on the batch entry; `summaries` has the
    axis ("q" or "kv") and the type of each summary.
    """

    tile_m: int
    tile_n: int
    heads: int
    by_batch: bool
    summaries: tuple[tuple[str, torch.dtype], ...]

    def spaces(self, sizes: Sizes) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each: tile_count (b', h', q_tiles, 2), tile_list (b', h', q_tiles, 2, kv_tiles); a summary (b', h',
        tiles of its axis, 2)."""
        outer = (sizes.batch if self.by_batch else 1, self.heads)
        tiles = {"q": -(-sizes.seq_q // self.tile_m), "kv": -(-sizes.seq_kv // self.tile_n)}
        found = [((*outer, tiles["q"], 2), torch.int32), ((*outer, tiles["q"], 2, tiles["kv"]), torch.int32)]
        return found + [((*outer, tiles[axis], 2), dtype) for axis, dtype in self.summaries]


def work_of(schedule: Schedule, arguments: Sequence[tuple]) -> Work | None:
    """The work space of a schedule's kernel, whose file lists `arguments`; None without a table."""
    table = schedule.table
    if table is None:
        return None
    kinds = [WORK_DTYPES[CUTE_DTYPES[entry[2]]] for entry in arguments if entry[1] == "summary"]
    summaries = tuple((s.axis, kind) for s, kind in zip(table.summaries, kinds))
    heads = schedule.attention.heads_q if table.by_head else 1
    return Work(schedule.tile_m, schedule.tile_n, heads, table.by_batch, summaries)


def cpu_launcher(program: TileProgram) -> Launcher:
    """Runs the tile program's interpreter: slow, in float64, with every index and every promise checked."""
    from attncc.interp.faults import check_values
    from attncc.interp.inputs import check_promises
    from attncc.interp.run_tile import run_tile
    from attncc.ir.tile import TILE_COUNT, TILE_LIST

    a = program.attention
    names = [d.name for d in (*a.tensors, *a.scalars) if d.name not in (TILE_COUNT, TILE_LIST)]

    def launch(q, k, v, o, lse, *rest):
        inputs = dict(zip(names, rest))
        with torch.device("cpu"):  # whatever torch.set_default_device says
            check_promises(a, inputs, q, k)
            check_values(a, q, k, inputs)
            out, log = run_tile(program, q, k, v, inputs)
        o.copy_(out)
        lse.copy_(log)

    return Launcher(launch, lambda sizes: [])
