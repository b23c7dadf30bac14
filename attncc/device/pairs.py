"""Pairs of Blackwell blocks: products for both (cta_group::2), copies that tell the pair's first block, arrivals at one or both.

A pair is a cluster of two blocks whose shared and tensor memories are laid out alike. The first block's issuing warp starts the
products. Barriers that it waits for lie in the first block; those that its products complete, in each.
"""

import cutlass
from cutlass import Float32, cute
from cutlass.cute.nvgpu import OperandMajorMode, cpasync, tcgen05
from cutlass.utils import sm100 as _sm100

from attncc.device import blackwell, hopper

BLOCKS = 2
BOTH = 0b11
"""The multicast mask of a pair."""
FIRST = 0
TWO = tcgen05.CtaGroup.TWO


def half():
    """The block's number in its pair."""
    return cute.arch.make_warp_uniform(cute.arch.block_idx_in_cluster())


def meet():
    """All threads of both blocks."""
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()


def allocate_tensor_memory(holder, columns: int):
    """One warp of each block: `columns` columns in both; their address is left in `holder`."""
    cute.arch.alloc_tmem(columns, holder, is_two_cta=True)
    cute.arch.relinquish_tmem_alloc_permit(is_two_cta=True)


def free_tensor_memory(memory, columns: int):
    """The warps that allocated, when the products of the pair are done."""
    cute.arch.dealloc_tmem(memory, columns, is_two_cta=True)


def load_atom(tensor, rows: int, cols: int):
    """As hopper.load_atom, for copies that may tell the partner's barrier."""
    op = cpasync.CopyBulkTensorTileG2SOp(TWO)
    layout = cute.slice_(hopper.tile_layout(tensor.element_type, rows, cols), (None, None, 0))
    return cpasync.make_tiled_tma_atom(op, tensor, layout, (rows, cols))


def boxes_of_piece(piece, atom, tile, coordinates):
    """As hopper.boxes, of piece `piece` of each row."""
    rows, cols = cute.size(tile, mode=[0]), cute.size(tile, mode=[1])
    source = cute.local_tile(coordinates, (rows, cols), (None, piece))
    sides = cute.group_modes(tile, 0, 2), cute.group_modes(source, 0, 2)
    return cpasync.tma_partition(atom, 0, cute.make_layout(1), *sides)


@cute.jit
def expect(barrier, size: cutlass.Constexpr, half):
    """The first block's barrier expects the bytes of both."""
    if half == FIRST:
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive_and_expect_tx(barrier, BLOCKS * size)


def copy_tile(atom, sides, ring, at, first_box, count: int, size: int, half):
    """Starts the copies of `count` boxes (of `size` bytes together) into the block's stage; with the partner's they mark the first block's full."""
    shared, source = sides
    expect(ring + at.index, size, half)
    for i in range(count):
        cute.copy(atom, source[None, first_box + i], shared[None, at.index * count + i], tma_bar_ptr=ring + at.index)


def drain(ring, at, stages: int):
    """Waits until all stages are empty, at the end."""
    for _ in range(stages):
        hopper.acquire(ring, at, stages)
        at.advance()


def arrive_link(link, part):
    """As blackwell.arrive_link, at the first block's barrier."""
    cute.arch.sync_warp()
    with cute.arch.elect_one():
        cute.arch.mbarrier_arrive(link + part, FIRST)


def arrive_after_products(barrier):
    """Arrives at `barrier` of both blocks when all products that this warp has started are done."""
    with cute.arch.elect_one():
        tcgen05.commit(barrier, BOTH, TWO)


def product(dtype, cols: int, transposed: bool, a_in_tensor_memory: bool):
    """As blackwell.product, of 128 x cols results in each block; each holds half of b, which has `cols` rows (`transposed`) or columns."""
    major = OperandMajorMode.K if transposed else OperandMajorMode.MN
    source = tcgen05.OperandSource.TMEM if a_in_tensor_memory else tcgen05.OperandSource.SMEM
    return _sm100.make_trivial_tiled_mma(dtype, dtype, OperandMajorMode.K, major, Float32, TWO, (BLOCKS * blackwell.ROWS, cols), source)


def first_operand(mma, tile):
    """The descriptors of every copy of the block's rows of a shared first operand."""
    return mma.make_fragment_A(_own(tile.element_type, tile, True).partition_A(tile))


def second_operand(mma, tile, transposed: bool):
    """The descriptors of every copy of the block's half of a shared second operand."""
    tile = tile if transposed else blackwell.columns_first(tile)
    return mma.make_fragment_B(_own(tile.element_type, tile, transposed).partition_B(tile))


def _own(dtype, tile, transposed: bool):
    """The block's part of a product: as one that it would do alone."""
    rows = min(cute.size(tile, mode=[0]), 256)
    return blackwell.product(dtype, rows, transposed, False).get_slice(0)
