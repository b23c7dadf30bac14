"""Hopper primitives: TMA tiles, mbarrier rings, WGMMA and the epilogue through shared memory.

Shared tiles are `copies` tiles of rows x cols, row major and swizzled over the widest power of two that divides a row (128, 64
or 32 bytes), so that a tile may be an operand of WGMMA with either dimension contracted and the target of a TMA box.
A ring has `stages` pairs of barriers, the full ones first.
"""

import dataclasses

import cutlass
from cutlass import Float32, Int32, Int64, cute, pipeline
from cutlass.cute.nvgpu import OperandMajorMode, cpasync, warp, warpgroup
from cutlass.tensor_utils import LayoutEnum
from cutlass.utils import sm90 as _sm90

from attncc.device import ampere as mma_sync
from attncc.device import arith, softmax

WARP = 32
GROUP = 128
GROUP_WARPS = 4
WARP_ROWS = 16
ROWS = 64
"""Rows of a warp group's product (wgmma m64)."""


def tile_layout(dtype, rows: int, cols: int, copies: int = 1, stride: int = 0):
    """The layout (rows, cols, copies) of swizzled shared tiles, one every `stride` elements (0: densely)."""
    kind = _sm90.get_smem_layout_atom(LayoutEnum.ROW_MAJOR, dtype, cols)
    atom = warpgroup.make_smem_layout_atom(kind, dtype)
    tile = cute.tile_to_shape(atom, (rows, cols), order=(0, 1))
    outer = cute.append(tile.outer, cute.make_layout(copies, stride=stride or rows * cols))
    return cute.make_composed_layout(tile.inner, 0, outer)


def allocate(memory, dtype, size: int):
    """`size` bytes of shared memory for tiles of `dtype`."""
    return memory.allocate_array(dtype, size * 8 // dtype.width, byte_alignment=1024)


def shared_tile(pointer, dtype, rows: int, cols: int, copies: int, stride: int):
    """The memory at `pointer` as tiles of `tile_layout`."""
    layout = tile_layout(dtype, rows, cols, copies, stride)
    return cute.make_tensor(cute.recast_ptr(pointer, layout.inner, dtype), layout.outer)


def numbers(memory, count: int):
    """`count` float32 numbers of shared memory."""
    return cute.make_tensor(memory.allocate_array(Float32, count, byte_alignment=16), cute.make_layout(count))


def staging_width(tile_n: int) -> int:
    """Distances kv_idx - q_idx of a group's rows and `tile_n` keys, filled up to whole groups of threads."""
    return -(-(ROWS - 1 + tile_n) // GROUP) * GROUP


def group_numbers(staging, group, count: int):
    """The `count` numbers of group `group`."""
    return cute.make_tensor(staging.iterator + group * count, cute.make_layout(count))


def by_head(tensor):
    """(batch, seq, heads, dim) seen as (seq, dim, heads, batch)."""
    return cute.make_tensor(tensor.iterator, cute.select(tensor.layout, mode=[1, 3, 2, 0]))


def by_block(tensor):
    """(..., seq_q, seq_kv) seen as (seq_q, seq_kv, ...)."""
    rank = cute.rank(tensor)
    return cute.make_tensor(tensor.iterator, cute.select(tensor.layout, mode=[rank - 2, rank - 1, *range(rank - 2)]))


LONGEST = 1 << 30
"""Rows of a packed sequence are fewer than this."""


def by_sequence(tensor):
    """Packed rows (total, heads, dim) seen as (row, dim, heads, end, turn), of which `sequence` takes one sequence.

    A TMA box is cut off where a dimension ends, and sequences end anywhere. So rows are counted backwards from the end of a
    dimension of LONGEST rows: row i of a sequence of n rows stands at LONGEST - n + i, and whatever is past its last row is past
    the dimension's end, where loads give zeros and stores do nothing. The address is right because it is one modulo 2**64 (as in
    Triton's ragged descriptors, tools/ragged_tma.py): with s bytes from row to row, `end` = first + n counts s bytes, and `turn`
    = LONGEST counts 2**34 - s, which makes 2**64 - LONGEST * s. So (LONGEST - n + i) * s + (first + n) * s - LONGEST * s = (first + i) * s.
    """
    total, heads, dim = tensor.shape
    row = Int64(tensor.stride[0])
    turn = Int64((1 << 34) * 8 // tensor.element_type.width) - row
    shape = (LONGEST, dim, heads, total + 1, LONGEST + 1)
    return cute.make_tensor(tensor.iterator, cute.make_layout(shape, stride=(row, 1, tensor.stride[1], row, turn)))


def sequence(coordinates, head, first, length):
    """The (row, dim) coordinates of `length` rows from `first` on, in the coordinate tensor of a `by_sequence` tensor."""
    rows = coordinates[None, None, head, first + length, LONGEST]
    return cute.domain_offset((LONGEST - length, 0), rows)


def load_atom(tensor, rows: int, cols: int):
    """The TMA descriptor that loads rows x cols boxes of `tensor`, whose first two dimensions they are, and its coordinate tensor."""
    op = cpasync.CopyBulkTensorTileG2SOp()
    layout = cute.slice_(tile_layout(tensor.element_type, rows, cols), (None, None, 0))
    return cpasync.make_tiled_tma_atom(op, tensor, layout, (rows, cols))


def store_atom(tensor, rows: int, cols: int):
    """As `load_atom`, for stores. Rows and columns past the tensor's end are not written."""
    op = cpasync.CopyBulkTensorTileS2GOp()
    layout = cute.slice_(tile_layout(tensor.element_type, rows, cols), (None, None, 0))
    return cpasync.make_tiled_tma_atom(op, tensor, layout, (rows, cols))


def boxes(atom, tile, coordinates):
    """(shared copies, boxes of a matrix's coordinates) as the two sides of a TMA copy."""
    rows, cols = cute.size(tile, mode=[0]), cute.size(tile, mode=[1])
    source = cute.local_tile(coordinates, (rows, cols), (None, 0))
    sides = cute.group_modes(tile, 0, 2), cute.group_modes(source, 0, 2)
    return cpasync.tma_partition(atom, 0, cute.make_layout(1), *sides)


def make_ring(memory, stages: int):
    return memory.allocate_array(Int64, 2 * stages, byte_alignment=8)


def init_ring(ring, stages: int, arrivals: int):
    """One thread, once: a stage is full after one arrival (and its bytes), empty after `arrivals` warp groups left it."""
    for i in range(stages):
        cute.arch.mbarrier_init(ring + i, 1)
        cute.arch.mbarrier_init(ring + stages + i, arrivals * GROUP_WARPS)


def ring_position(stages: int, producer: bool):
    """A role's place in a ring: stage and phase; `advance()` moves it on."""
    user = pipeline.PipelineUserType.Producer if producer else pipeline.PipelineUserType.Consumer
    return pipeline.make_pipeline_state(user, stages)


def acquire(ring, at, stages: int):
    """Waits until the stage is empty."""
    cute.arch.mbarrier_wait(ring + stages + at.index, at.phase)


def copy_tile(atom, sides, ring, at, first_box, count: int, size: int):
    """Starts the copies of `count` boxes (one tile of `size` bytes) into the stage; their arrival will mark it full."""
    shared, source = sides
    with cute.arch.elect_one():
        cute.arch.mbarrier_arrive_and_expect_tx(ring + at.index, size)
    for i in range(count):
        cute.copy(atom, source[None, first_box + i], shared[None, at.index * count + i], tma_bar_ptr=ring + at.index)


def copy_block(atom, tile, coordinates, at_indices: tuple, row_tile, col_tile, ring, at, size: int):
    """Starts the copy of block (row_tile, col_tile) of a tensor, of `size` bytes, into the stage; indices past the end mean the last."""
    rows, cols = cute.size(tile, mode=[0]), cute.size(tile, mode=[1])
    place = tuple(arith.imin(i, coordinates.shape[2 + axis] - 1) for axis, i in enumerate(at_indices))
    source = cute.local_tile(coordinates[(None, None, *place)], (rows, cols), (row_tile, col_tile))
    sides = cute.group_modes(tile, 0, 2), cute.group_modes(source, 0, 2)
    shared, source = cpasync.tma_partition(atom, 0, cute.make_layout(1), *sides)
    with cute.arch.elect_one():
        cute.arch.mbarrier_arrive_and_expect_tx(ring + at.index, size)
    cute.copy(atom, source, shared[None, at.index], tma_bar_ptr=ring + at.index)


def own_block(mma, tile, stage, group, thread):
    """The thread's part of a group's rows of stage `stage` of a block, in the order of an accumulator of `mma`, as Float32."""
    cols, dtype = cute.size(tile, mode=[1]), tile.element_type
    if dtype.width == 16:
        atom = cute.make_copy_atom(warp.LdMatrix8x8x16bOp(transpose=False, num_matrices=4), dtype)
    else:
        atom = cute.make_copy_atom(cute.nvgpu.CopyUniversalOp(), dtype, num_bits_per_copy=2 * dtype.width)
    part = cute.make_tiled_copy_C(atom, mma).get_slice(thread % GROUP)
    rows = cute.local_tile(tile[None, None, stage], (ROWS, cols), (group, 0))
    found = cute.make_rmem_tensor(mma.partition_shape_C((ROWS, cols)), dtype)
    cute.copy(atom, part.partition_S(rows), part.retile(found))
    return softmax.widen(found)


def wait(ring, at):
    """Waits until the stage is full."""
    cute.arch.mbarrier_wait(ring + at.index, at.phase)


def release(ring, at, stages: int):
    """Marks the stage as left by this warp; the last of a group's four warps makes the group's arrival."""
    with cute.arch.elect_one():
        cute.arch.mbarrier_arrive(ring + stages + at.index)


def product(dtype, cols: int, transposed: bool, a_in_registers: bool):
    """The WGMMA of one warp group for 64 x cols results: a . b^T (`transposed`, b is cols x depth) or a . b (b is depth x cols)."""
    major = OperandMajorMode.K if transposed else OperandMajorMode.MN
    source = warpgroup.OperandSource.RMEM if a_in_registers else warpgroup.OperandSource.SMEM
    return _sm90.make_trivial_tiled_mma(
        dtype, dtype, OperandMajorMode.K, major, Float32, (1, 1, 1), (ROWS, cols), a_source=source
    )


def accumulator(mma, cols: int):
    return cute.make_rmem_tensor(mma.partition_shape_C((ROWS, cols)), Float32)


def register_operand(mma, dtype, depth: int):
    """A 64 x depth first operand in registers, in the order of the accumulator it is converted from."""
    return cute.make_rmem_tensor(mma.partition_shape_A((ROWS, depth)), dtype)


def first_operand(mma, tile):
    """The descriptors of every copy of a shared first operand (64 rows x depth)."""
    part = mma.get_slice(0)
    return part.make_fragment_A(part.partition_A(tile))


def second_operand(mma, tile, transposed: bool):
    """The descriptors of every copy of a shared second operand (rows x cols in memory)."""
    part = mma.get_slice(0)
    if not transposed:
        rows, cols, copies = (cute.size(tile, mode=[i]) for i in range(3))
        tile = cute.composition(tile, cute.make_ordered_layout((cols, rows, copies), order=(1, 0, 2)))
    return part.make_fragment_B(part.partition_B(tile))


def multiply(mma, result, a, b, accumulate: bool, pending: int):
    """result (+)= a . b as one group of asynchronous WGMMAs; then waits for all but `pending` groups (negative: for none)."""
    warpgroup.fence()
    atom = cute.make_mma_atom(mma.op)
    atom.set(warpgroup.Field.ACCUMULATE, accumulate)
    for k in range(cute.size(a, mode=[2])):
        cute.gemm(atom, result, a[None, None, k], b[None, None, k], result)
        atom.set(warpgroup.Field.ACCUMULATE, True)
    warpgroup.commit_group()
    if pending >= 0:
        warpgroup.wait_group(pending)


def multiply_by_warp(result, a, copy, b, stage):
    """result := a . b^T by one warp alone: its 16 of the rows of copy `copy` of `a` (copies of rows x depth) by stage `stage` of `b`
    (copies of cols x depth), both swizzled as `tile_layout` has them. mma.sync's fragments of 16 rows are what each warp holds of a WGMMA's result."""
    left, right = (mma_sync.Tile(Int32(t.iterator.toint()), *_shape_of(t)) for t in (a, b))
    rows = cute.make_tensor(result.iterator, cute.make_layout(((2, 2), 1, right.rows // 8), stride=((1, 2), 0, 4)))
    thread = mma_sync.thread_index()
    first = (thread // WARP) % GROUP_WARPS * (WARP_ROWS * left.row_bytes)
    left = dataclasses.replace(left, address=left.address + copy * left.stride + first)
    lanes = mma_sync.rows_of_lanes(left, thread), mma_sync.columns_of_lanes(right, thread)
    mma_sync.multiply_shared(rows, left, lanes[0], 0, right, lanes[1], stage * right.stride, False, a.element_type, ahead=1)


def _shape_of(tile) -> tuple[int, int, int]:
    """Rows, columns and the bytes from copy to copy of tiles in shared memory (which may lie further apart than they are long)."""
    rows, cols = (cute.size(tile, mode=[i]) for i in range(2))
    return rows, cols, tile.layout.stride[2] * tile.element_type.width // 8


def barrier_sync(number, threads: int):
    cute.arch.barrier(barrier_id=number, number_of_threads=threads)


def barrier_arrive(number, threads: int):
    cute.arch.barrier_arrive(barrier_id=number, number_of_threads=threads)


def next_group(group, groups: int):
    """The number of the group after `group`, the first after the last."""
    return Int32(cutlass.select_(group == groups - 1, Int32(0), group + 1))


def stage_rows(mma, source, tile, group, thread):
    """Writes an accumulator, rounded, to copy `group` of a shared tile (stmatrix) and shows it to the asynchronous proxy."""
    dtype = tile.element_type
    rounded = cute.make_rmem_tensor_like(source, dtype)
    softmax.convert(rounded, source)
    atom = cute.make_copy_atom(warp.StMatrix8x8x16bOp(transpose=False, num_matrices=4), dtype)
    part = cute.make_tiled_copy_C(atom, mma).get_slice(thread % GROUP)
    cute.copy(atom, part.retile(rounded), part.partition_D(tile[None, None, group]))
    cute.arch.fence_proxy("async.shared", space="cta")


@cute.jit
def store_tile(atom, sides, box, copy, warp_in_group):
    """The group's first warp starts to store copy `copy` of a shared tile to box `box`."""
    shared, target = sides
    if warp_in_group == 0:
        cute.copy(atom, shared[None, copy], target[None, box])
        cute.arch.cp_async_bulk_commit_group()


@cute.jit
def wait_for_stores(warp_in_group):
    """The warp that starts a group's stores waits until they have read their tiles."""
    if warp_in_group == 0:
        cute.arch.cp_async_bulk_wait_group(0, read=True)


@cute.jit
def store_rows(numbers, target, first_row, seq_q, thread):
    """One lane of each quad writes the quad's rows below `seq_q` of a vector over query positions."""
    if thread % 4 == 0:
        for r in cutlass.range_constexpr(cute.size(numbers)):
            row = first_row + softmax.row_offset(r)
            if row < seq_q:
                target[row] = numbers[r]
