"""Blackwell primitives: products into tensor memory (tcgen05), its loads and stores, and rings between the roles of a block.

A place in tensor memory is a pointer to its first 32-bit column; a tile has 128 rows, one for each lane. Shared tiles, TMA copies
and the rings that TMA fills are those of `attncc.device.hopper`.
"""

import cutlass
from cutlass import Float32, Int32, Int64, cute
from cutlass.cute.nvgpu import OperandMajorMode, tcgen05
from cutlass.utils import sm100 as _sm100

from attncc.device import arith, softmax

ROWS = 128
GROUP = 128
GROUP_WARPS = 4
WARP = 32
LANE_STRIDE = 1 << 16
ONE = tcgen05.CtaGroup.ONE
CHUNK = 32
"""Columns of one load or store."""


def product(dtype, cols: int, transposed: bool, a_in_tensor_memory: bool):
    """The product of 128 x cols results: a . b^T (`transposed`, b is cols x depth) or a . b (b is depth x cols)."""
    major = OperandMajorMode.K if transposed else OperandMajorMode.MN
    source = tcgen05.OperandSource.TMEM if a_in_tensor_memory else tcgen05.OperandSource.SMEM
    return _sm100.make_trivial_tiled_mma(dtype, dtype, OperandMajorMode.K, major, Float32, ONE, (ROWS, cols), source)


def tensor_result(mma, memory, column: int, cols: int):
    """The 128 x cols results of `mma` from `column` on, for part 0."""
    layout = mma.make_fragment_C(mma.partition_shape_C((mma.shape_mnk[0], cols))).layout
    return cute.make_tensor(memory + column, layout)


def tensor_operand(mma, dtype, memory, column: int, cols: int, depth: int):
    """A 128 x depth first operand in tensor memory from `column` on, for part 0."""
    shape = _sm100.make_smem_layout_a(mma, (mma.shape_mnk[0], cols, depth), dtype, 1).outer.shape
    layout = mma.make_fragment_A(shape).layout
    return cute.make_tensor(cute.recast_ptr(memory + column, dtype=dtype), layout)[None, None, None, 0]


def result_of(tensor, columns: int):
    """A result moved on by `columns` columns."""
    return cute.make_tensor(tensor.iterator + columns, tensor.layout)


def operand_of(tensor, columns: int):
    """A first operand moved on by `columns` 32-bit columns."""
    return cute.make_tensor(tensor.iterator + columns * (32 // tensor.element_type.width), tensor.layout)


def first_operand(mma, tile):
    """The descriptors of every copy of a shared first operand."""
    return mma.make_fragment_A(mma.get_slice(0).partition_A(tile))


def second_operand(mma, tile, transposed: bool):
    """The descriptors of every copy of a shared second operand (rows x cols in memory)."""
    tile = tile if transposed else columns_first(tile)
    return mma.make_fragment_B(mma.get_slice(0).partition_B(tile))


def columns_first(tile):
    """Copies of rows x cols seen as copies of cols x rows."""
    rows, cols, copies = (cute.size(tile, mode=[i]) for i in range(3))
    return cute.composition(tile, cute.make_ordered_layout((cols, rows, copies), order=(1, 0, 2)))


def multiply(mma, result, a, b, accumulate: bool):
    """result (+)= a . b, started; `release_products` or `commit_products` tell when it is done."""
    atom = cute.make_mma_atom(mma.op)
    atom.set(tcgen05.Field.ACCUMULATE, accumulate)
    for k in range(cute.size(a, mode=[2])):
        cute.gemm(atom, result, a[None, None, k], b[None, None, k], result)
        atom.set(tcgen05.Field.ACCUMULATE, True)


def arrive_after_products(barrier):
    """Arrives at `barrier` when all products that this warp has started are done."""
    with cute.arch.elect_one():
        tcgen05.commit(barrier)


def init_ring(ring, stages: int, arrivals: int):
    """One thread, once: a stage is full after one arrival (and its bytes), empty after `arrivals` arrivals of products."""
    for i in range(stages):
        cute.arch.mbarrier_init(ring + i, 1)
        cute.arch.mbarrier_init(ring + stages + i, arrivals)


def make_link(memory, parts: int):
    """Barriers of a private channel: full ones of all parts, then empty ones."""
    return memory.allocate_array(Int64, 2 * parts, byte_alignment=8)


def init_link(link, parts: int, full: int, empty: int):
    """One thread, once."""
    for i in range(parts):
        cute.arch.mbarrier_init(link + i, full)
        cute.arch.mbarrier_init(link + parts + i, empty)


def phases(start: int):
    """A role's phases in its private rings of one stage, a bit for each: in one register, since blocks keep them from tile to tile."""
    out = cute.make_rmem_tensor((1,), Int32)
    out.fill(start)
    return out


def wait_link(link, part, phase, bit: int):
    """Waits for a barrier of a private ring, in the role's phase."""
    cute.arch.mbarrier_wait(link + part, (phase[0] >> bit) & 1)


def arrive_link(link, part):
    """One lane of each warp arrives, after all lanes have done what they did before."""
    cute.arch.sync_warp()
    with cute.arch.elect_one():
        cute.arch.mbarrier_arrive(link + part)


def turn(phase, bit: int):
    """The ring's next round."""
    phase[0] = phase[0] ^ (1 << bit)


def allocate_tensor_memory(holder, columns: int):
    """One warp: `columns` columns; their address is left in `holder`."""
    cute.arch.alloc_tmem(columns, holder)
    cute.arch.relinquish_tmem_alloc_permit()


def tensor_memory(holder):
    """The allocated columns, after a barrier."""
    return cute.arch.retrieve_tmem_ptr(Float32, 16, holder)


def free_tensor_memory(memory, columns: int):
    """The warp that allocated."""
    cute.arch.dealloc_tmem(memory, columns)


def _chunks(cols: int, most: int = CHUNK):
    """(first column, width) of the pieces that one instruction moves."""
    return [(at, min(most, cols - at)) for at in range(0, cols, most)]


def _window(memory, column, width: int):
    return cute.make_tensor(memory + column, cute.make_layout((ROWS, width), stride=(LANE_STRIDE, 1)))


def _repetition(width: int):
    return {8: tcgen05.Repetition.x8, 16: tcgen05.Repetition.x16, 32: tcgen05.Repetition.x32}[width]


def load_piece(memory, column, width: int, thread):
    """This thread's row of `width` columns from `column` on, as a register tensor; read it after `loads_done`."""
    window = _window(memory, column, width)
    atom = cute.make_copy_atom(tcgen05.Ld32x32bOp(_repetition(width)), Float32)
    part = tcgen05.make_tmem_copy(atom, window).get_slice(thread % GROUP)
    out = cute.make_rmem_tensor(part.partition_D(cute.make_identity_tensor((ROWS, width))).shape, Float32)
    cute.copy(part, part.partition_S(window), out)
    return cute.make_tensor(out.iterator, cute.make_layout(width))


def store_piece(memory, column, numbers: list, thread):
    """`numbers` (one for each column, of 32 bits) to this thread's row from `column` on."""
    width = len(numbers)
    window = _window(memory, column, width)
    atom = cute.make_copy_atom(tcgen05.St32x32bOp(_repetition(width)), Float32)
    part = tcgen05.make_tmem_copy(atom, window).get_slice(thread % GROUP)
    held = cute.make_rmem_tensor(part.partition_S(cute.make_identity_tensor((ROWS, width))).shape, Float32)
    flat = cute.make_tensor(cute.recast_ptr(held.iterator, dtype=type(numbers[0])), cute.make_layout(width))
    for i, number in enumerate(numbers):
        flat[i] = number
    cute.copy(part, held, part.partition_D(window))


def loads_done():
    cute.arch.fence_view_async_tmem_load()


def stores_done():
    cute.arch.fence_view_async_tmem_store()


def load_scores(scores, memory, column, thread):
    """A row of a score tile into registers."""
    pieces = [(at, load_piece(memory, column + at, width, thread)) for at, width in _chunks(cute.size(scores, mode=[1]), 16)]
    loads_done()
    for at, piece in pieces:
        for c in range(cute.size(piece)):
            scores[0, at + c] = piece[c]


def store_weights(memory, column, scores, dtype, thread):
    """A row of weights, rounded to `dtype`, two to a column."""
    pairs = cute.size(scores, mode=[1]) // 2
    for at, width in _chunks(pairs, 16):
        packed = [softmax.pack(dtype, scores[0, 2 * c], scores[0, 2 * c + 1]) for c in range(at, at + width)]
        store_piece(memory, column + at, packed, thread)
    stores_done()


def fill(memory, column, cols: int, number: float, thread):
    """`cols` columns of every row := number."""
    for at, width in _chunks(cols, 16):
        store_piece(memory, column + at, [Float32(number)] * width, thread)
    stores_done()


def rescale(memory, column, cols: int, factor, thread):
    """Every row of `cols` columns is multiplied by its thread's `factor`."""
    for at, width in _chunks(cols):
        piece = load_piece(memory, column + at, width, thread)
        loads_done()
        store_piece(memory, column + at, _scaled(piece, factor), thread)
    stores_done()


def _scaled(piece, factor) -> list:
    out = []
    for c in range(0, cute.size(piece), 2):
        out += cute.arch.mul_packed_f32x2((piece[c], piece[c + 1]), (factor, factor))
    return out


@cute.jit
def rescale_where_needed(memory, column, cols: cutlass.Constexpr, factor, thread):
    """`rescale`, skipped by a warp whose factors are all 1."""
    if cute.arch.vote_any_sync(factor != 1.0):
        rescale(memory, column, cols, factor, thread)


def stage_rows(tile, memory, column, cols: int, factor, part: int, thread):
    """Rows of sums times their `factor`, rounded, to copy `part` of a shared tile; shown to the asynchronous proxy."""
    dtype = tile.element_type
    row = tile[thread % GROUP, None, part]
    for at, width in _chunks(cols, 8):  # few registers: a role that only begins and ends sums has no more
        piece = load_piece(memory, column + at, width, thread)
        loads_done()
        scaled = _scaled(piece, factor)
        for c in range(0, width, 8):
            packed = cute.make_rmem_tensor((8,), dtype)
            words = cute.recast_tensor(packed, Int32)
            for i in range(4):
                words[i] = softmax.pack(dtype, scaled[c + 2 * i], scaled[c + 2 * i + 1])
            target = cute.local_tile(row, (8,), ((at + c) // 8,))
            cute.autovec_copy(packed, target)
    cute.arch.fence_proxy("async.shared", space="cta")


@cute.jit
def release_stored(ring, at, stages: int, warp_in_group):
    """A group's arrival that a stage may be written again: by the warp that has waited for the stores from its memory."""
    if warp_in_group == 0:
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive(ring + stages + at.index)


def vector(memory, count: int):
    """`count` float32 numbers of shared memory."""
    return cute.make_tensor(memory.allocate_array(Float32, count, byte_alignment=16), cute.make_layout(count))


def column_numbers(columns, slot, kind):
    """Slot `slot` of the numbers that a group's threads keep for the columns of a key tile, of 32-bit type `kind`."""
    place = cute.recast_ptr(columns.iterator + slot * GROUP, dtype=kind)
    return cute.make_tensor(place, cute.make_layout(GROUP))


@cute.jit
def share_condition(words, kept, thread):
    """Bit i % 32 of word i // 32 is the condition of the group's thread i."""
    bits = Int32(cute.arch.vote_ballot_sync(kept))
    with cute.arch.elect_one():
        words[thread % GROUP // WARP] = bits


def staging_width(tile_n: int) -> int:
    """Distances kv_idx - q_idx of a part's rows and `tile_n` keys, filled up to whole groups of threads."""
    return -(-(ROWS - 1 + tile_n) // GROUP) * GROUP


def least_distance(kv_first, q_first, group):
    """Of the keys from kv_first on and the rows of a group of the query tile from q_first on."""
    return kv_first - q_first - group * ROWS - (ROWS - 1)


COPIES, SKEW = 4, 8
"""Distances are staged four times, copy s shifted by s, so that each thread finds its own, which begin anywhere, four by four at multiples of four.
Eight threads read at once, with two multiples of four in each copy: by the skew of 8 numbers from copy to copy they lie in different banks."""


def _copy_stride(tile_n: int) -> int:
    return staging_width(tile_n) + SKEW


def make_staging(memory, parts: int, terms: int, tile_n: int):
    """Room for the staged numbers of all groups."""
    return vector(memory, parts * terms * COPIES * _copy_stride(tile_n))


def staged_distances(staging, group, terms: int, tile_n: int):
    """The staged numbers of a group, those of `terms` terms."""
    count = terms * COPIES * _copy_stride(tile_n)
    return cute.make_tensor(staging.iterator + group * count, cute.make_layout(count))


def stage_distance(diagonals, term: int, tile_n: int, at, number):
    """`number` is that of distance `at`, counted from the least one. (The first few fall in the gap before a copy.)"""
    stride = _copy_stride(tile_n)
    for copy in range(COPIES):
        diagonals[SKEW + (term * COPIES + copy) * stride + at - copy] = number


def own_distances(diagonals, term: int, tile_n: int, thread):
    """Element c is the number of the thread's row and column c."""
    first = ROWS - 1 - thread % GROUP
    copy = first % COPIES
    place = diagonals.iterator + (SKEW + term * COPIES * _copy_stride(tile_n) + copy * _copy_stride(tile_n) + (first - copy))
    return cute.make_tensor(place.align(16), cute.make_layout(tile_n))


def row_of(tensor, index: tuple, first):
    """The row of a tensor at `index`, from element `first` on."""
    row = tensor[(*(Int32(i) for i in index), None)]
    return cute.domain_offset((first,), row)


def are_rows_aligned(*rows):
    """Whether the elements of all these rows, of all threads of the warp, lie side by side from a multiple of 16 bytes on."""
    aligned = cutlass.Boolean(True)
    for row in rows:
        aligned = aligned & (row.stride[0] == 1) & (row.iterator.toint() % 16 == 0)
    return arith.logical_not(cute.arch.vote_any_sync(arith.logical_not(aligned)))


def read_row(row, count: int):
    """The first `count` numbers of 16 bits of an aligned row, in registers."""
    source = cute.make_tensor(row.iterator.align(16), cute.make_layout(count))
    held = cute.make_rmem_tensor((count,), row.element_type)
    cute.autovec_copy(source, held)
    return held
