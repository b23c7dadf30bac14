"""Instructions and tiles of the mma.sync family: cp.async, ldmatrix, mma.sync, and shared memory that none of them
conflicts in.

A shared tile keeps its 16-byte chunks in panels of `width` = 8, 4 or 2 chunks (128, 64 or 32 bytes a row), whichever
divides the
row. In a panel of `width` chunks, chunk c of row r lies at place c ^ f(r), f(r) = r % 8, r // 2 % 4 or r // 4 % 2:
any eight rows that
one ldmatrix reads, and any eight chunks that eight neighbouring threads write, are in different banks. Going 16 rows
or a whole panel
on leaves f alone, so a thread needs `width` / 2 addresses for a whole tile; all else is a constant distance.

Fragments are lists of 32-bit registers. Accumulators are register tensors ((2, 2), blocks of 16 rows, blocks of 8
columns), see
`attncc.device.softmax`; a register operand has the same shape in 16-bit elements, which makes the fragment of an
accumulator the fragment of a left operand (PTX ISA, "Matrix Fragments for mma.m16n8k16").
"""

from dataclasses import dataclass

import cutlass
from cutlass import Float32, Int32, Int64, cute, range_constexpr
from cutlass._mlir import ir
from cutlass._mlir.dialects import llvm

from attncc.device import arith, softmax

PTX_NAMES = {"BFloat16": "bf16", "Float16": "f16"}
CHUNK = 16
"""Bytes of one copy, and of one row of a matrix that ldmatrix reads."""
ELEMENTS = 8
"""16-bit elements of a chunk."""
LOOKAHEAD = 2
"""ldmatrix of a right operand issued ahead of the product that needs it."""
WARP = 32


# ------------------------------------------------------------------------------------------------------- instructions


def _i32():
    return ir.IntegerType.get_signless(32)


def _registers(struct, count: int, kind):
    element = _i32() if kind is Int32 else ir.F32Type.get()
    return [kind(llvm.extractvalue(element, struct, [i])) for i in range(count)]


def mma(result, a, b, dtype):
    """result + a . b of one 16 x 8 x 16 product: four Float32, from four Float32, four and two registers."""
    name = PTX_NAMES[dtype.__name__]
    struct = llvm.StructType.get_literal([ir.F32Type.get()] * 4)
    operands = [x.ir_value() for x in (*a, *b, *result)]
    text = (
        f"mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )
    out = llvm.inline_asm(struct, operands, text, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", has_side_effects=False)
    return _registers(out, 4, Float32)


def load_matrices(address, transpose: bool):
    """Four 8 x 8 matrices of 16-bit elements; lane l gives the shared address of row l % 8 of matrix l // 8."""
    struct = llvm.StructType.get_literal([_i32()] * 4)
    kind = "trans.shared" if transpose else "shared"
    text = f"ldmatrix.sync.aligned.m8n8.x4.{kind}.b16 {{$0, $1, $2, $3}}, [$4];"
    out = llvm.inline_asm(struct, [address.ir_value()], text, "=r,=r,=r,=r,r", has_side_effects=True)
    return _registers(out, 4, Int32)


def start_copy(address, pointer, size):
    """Starts the copy of 16 bytes to shared `address`: `size` (16 or 0) bytes from `pointer`, the rest zeros."""
    text = "cp.async.cg.shared.global.L2::128B [$0], [$1], 16, $2;"
    llvm.inline_asm(None, [x.ir_value() for x in (address, pointer, size)], text, "r,l,r", has_side_effects=True)


def start_copy_if(condition, address, pointer, size):
    """`start_copy` where `condition` holds; elsewhere nothing is written."""
    text = "{ .reg .pred p; setp.ne.b32 p, $3, 0; @p cp.async.cg.shared.global.L2::128B [$0], [$1], 16, $2; }"
    flag = arith.select(condition, 1, Int32(0))
    operands = [x.ir_value() for x in (address, pointer, size, flag)]
    llvm.inline_asm(None, operands, text, "r,l,r,r", has_side_effects=True)


def thread_index():
    """The thread's number in its block, read where this stands (a copy from before a loop would hold a register
    through it)."""
    return Int32(llvm.inline_asm(_i32(), [], "mov.u32 $0, %tid.x;", "=r", has_side_effects=True))


def store_shared(address, register):
    text = "st.shared.b32 [$0], $1;"
    llvm.inline_asm(None, [address.ir_value(), register.ir_value()], text, "r,r", has_side_effects=True)


def load_shared_chunk(address):
    """The four registers of the chunk at a shared address."""
    struct = llvm.StructType.get_literal([_i32()] * 4)
    text = "ld.shared.v4.b32 {$0, $1, $2, $3}, [$4];"
    out = llvm.inline_asm(struct, [address.ir_value()], text, "=r,=r,=r,=r,r", has_side_effects=True)
    return _registers(out, 4, Int32)


def store_chunk_if(condition, pointer, registers):
    """Writes four registers to global memory where `condition` holds."""
    text = "{ .reg .pred p; setp.ne.b32 p, $5, 0; @p st.global.v4.b32 [$0], {$1, $2, $3, $4}; }"
    operands = [pointer, *registers, arith.select(condition, 1, Int32(0))]
    llvm.inline_asm(None, [x.ir_value() for x in operands], text, "l,r,r,r,r,r", has_side_effects=True)


def store_pair_if(condition, pointer, register):
    """Writes one register to global memory where `condition` holds."""
    text = "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p st.global.b32 [$0], $1; }"
    operands = [pointer, register, arith.select(condition, 1, Int32(0))]
    llvm.inline_asm(None, [x.ir_value() for x in operands], text, "l,r,r", has_side_effects=True)


def own_group(threads: int):
    """The number of this warp's group of `threads` threads, counted from the block's first warp; the same in all
    lanes."""
    return cute.arch.make_warp_uniform(arith.floordiv(thread_index(), threads))


def own_row(threads: int, rows: int):
    """The block row of the first element that this thread owns of its group's `rows` rows."""
    return own_group(threads) * rows + softmax.first_row(thread_index())


# ------------------------------------------------------------------------------------------------------- shared tiles


@dataclass(frozen=True)
class Tile:
    """Tiles of rows x cols 16-bit elements in shared memory, `stride` bytes apart, the first at `address`."""

    address: Int32
    rows: int
    cols: int
    stride: int

    @property
    def width(self) -> int:
        """Chunks in a row of a panel."""
        return next(w for w in (8, 4, 2) if self.cols % (w * ELEMENTS) == 0)

    @property
    def panels(self) -> int:
        return self.cols // ELEMENTS // self.width

    @property
    def row_bytes(self) -> int:
        return self.width * CHUNK

    @property
    def panel_bytes(self) -> int:
        return self.rows * self.row_bytes


def shared_tile(memory, rows: int, cols: int, stride: int):
    """A tile on shared memory `memory` (a pointer); `stride` counts elements."""
    return Tile(Int32(memory.toint()), rows, cols, 2 * stride)


def allocate(memory, size: int):
    """`size` bytes of shared memory, aligned as swizzles need."""
    return memory.allocate(size, 128)


def numbers(memory, count: int):
    """`count` float32 numbers of shared memory."""
    return cute.make_tensor(memory.allocate_array(Float32, count, byte_alignment=16), cute.make_layout(count))


def group_sync(threads: int):
    """Meets the other threads of the group: a warp."""
    assert threads == WARP, "a group of this target is one warp"
    cute.arch.sync_warp()


def scramble(row, width: int):
    """f(row): what the place of a chunk is xor-ed with."""
    return {8: row & 7, 4: (row >> 1) & 3, 2: (row >> 2) & 1}[width]


def lane_offsets(tile, row, side):
    """Distances from a tile's start to `row`'s chunks 2 j + side of a panel, for j = 0 ... width / 2 - 1; `side` is
    0 or 1."""
    first = row * tile.row_bytes + ((scramble(row, tile.width) ^ side) << 4)
    return [first if j == 0 else first ^ (2 * CHUNK * j) for j in range(tile.width // 2)]


def rows_of_lanes(tile, thread):
    """Each lane's row for fragments of 16 rows x 16 columns taken as they lie (a left operand, or transposed a right
    one)."""
    lane = thread & (WARP - 1)
    return lane_offsets(tile, lane & 15, lane >> 4)


def columns_of_lanes(tile, thread):
    """Each lane's row for fragments of a right operand whose rows are the product's columns."""
    lane = thread & (WARP - 1)
    return lane_offsets(tile, (lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1)


def fragment_address(tile, lanes, block: int, pair: int, base):
    """The address of the 16 rows number `block` and the two chunks number `pair` of the tile at `base`."""
    panel, place = divmod(2 * pair, tile.width)
    return lanes[place // 2] + base + (panel * tile.panel_bytes + block * 16 * tile.row_bytes)


# ------------------------------------------------------------------------------------------------------------- copies


@dataclass(frozen=True)
class Part:
    """Tiles of a (rows, columns) slice of global memory that `threads` threads move, row by row of threads.

    `pointer`: the byte address of row 0; `pitch`: bytes from row to row; `limit`: rows that exist; `chunks`: chunks
    of a row that exist.
    """

    pointer: Int64
    pitch: Int64
    limit: Int32
    chunks: int
    threads: int

    def place(self, tile):
        """This thread's row and chunk in a panel. Read anew by each move, so that no register holds them in between."""
        thread = thread_index() & (self.threads - 1)
        return arith.floordiv(thread, tile.width), arith.floormod(thread, tile.width)

    def step(self, tile) -> int:
        """Rows that all threads move together."""
        return self.threads // tile.width


def part(matrix, limit, dim: int, threads: int):
    """How `threads` threads move tiles of `matrix` (limit rows, dim columns; any row stride)."""
    return Part(Int64(matrix.iterator.toint()), Int64(matrix.stride[0]) * 2, limit, dim // ELEMENTS, threads)


def next_stage(offset, size: int, stages: int):
    """The ring position, in bytes, after `offset`; a stage has `size` bytes."""
    if stages == 1:
        return offset
    return arith.select(offset == size * (stages - 1), Int32(0), offset + size)


def copy_tile(tile, boxes: int, part, number, offset):
    """Starts the copies of tile `number`, of boxes * tile.rows rows, to `offset` bytes into the ring. Rows past the
    matrix's end and
    columns past its dim become zeros. Consecutive boxes are `tile.stride` bytes apart."""
    rows, step = boxes * tile.rows, part.step(tile)
    row, chunk = part.place(tile)
    first = Int32(number) * rows
    left = part.limit - first - row
    pointer = part.pointer + Int64(first) * part.pitch + (Int64(row) * part.pitch + Int64(chunk * CHUNK))
    place = tile.address + offset + _box_offset(tile, row, step) + ((scramble(row, tile.width) ^ chunk) << 4)
    for m in range(-(-rows // step)):
        row_size = arith.select(left > m * step, 16, Int32(0))
        shift = _shift(tile, m * step, step)
        for j in range(tile.panels):
            size = row_size
            if tile.width * (j + 1) > part.chunks:
                size = arith.select(chunk + tile.width * j < part.chunks, row_size, Int32(0))
            arguments = (place + (shift + j * tile.panel_bytes), pointer + j * tile.row_bytes, size)
            if (m + 1) * step > rows:
                start_copy_if(row + m * step < rows, *arguments)
            else:
                start_copy(*arguments)
        pointer = pointer + part.pitch * step


def _box_offset(tile, row, step: int):
    """Bytes from the first box to `row`, one of the first `step` rows."""
    if step <= tile.rows:
        return row * tile.row_bytes
    return arith.floordiv(row, tile.rows) * tile.stride + arith.floormod(row, tile.rows) * tile.row_bytes


def _shift(tile, rows: int, step: int) -> int:
    """Bytes that `rows` rows, a multiple of `step`, take."""
    return rows // tile.rows * tile.stride + rows % tile.rows * tile.row_bytes


def store_tile(tile, box, part, first_row):
    """Writes the rows of box `box` of a shared tile to the matrix's rows from `first_row` on, as far as they exist."""
    step = part.step(tile)
    row, chunk = part.place(tile)
    left = part.limit - first_row - row
    pointer = part.pointer + Int64(first_row + row) * part.pitch + Int64(chunk * CHUNK)
    for m in range(tile.rows // step):
        down = row + m * step
        place = tile.address + box * tile.stride + down * tile.row_bytes + ((scramble(down, tile.width) ^ chunk) << 4)
        for j in range(tile.panels):
            exists = left > m * step
            if tile.width * (j + 1) > part.chunks:
                exists = exists & (chunk + tile.width * j < part.chunks)
            store_chunk_if(exists, pointer + j * tile.row_bytes, load_shared_chunk(place + j * tile.panel_bytes))
        pointer = pointer + part.pitch * step


def store_registers(matrix, accumulator, dim: int, dtype, first_row, limit):
    """Writes an accumulator, rounded, to the matrix's rows from `first_row` (the thread's) to `limit`: two columns
    at a time."""
    cells = softmax.cells(accumulator)
    thread = thread_index()
    pitch = Int64(matrix.stride[0]) * 2
    pointer = Int64(matrix.iterator.toint()) + Int64(first_row) * pitch + Int64(softmax.first_column(thread)) * 2
    for r in range(cute.size(cells, mode=[0])):
        row = softmax.row_offset(r)
        exists = first_row + row < limit
        for c in range(0, cute.size(cells, mode=[1]), 2):
            column = softmax.column_offset(c)
            if column < dim:
                store_pair_if(exists, pointer + pitch * row + 2 * column, pack(cells[r, c], cells[r, c + 1], dtype))


def stage_rows(tile, box, accumulator, dtype):
    """Writes an accumulator, rounded, to box `box` of a shared tile."""
    cells = softmax.cells(accumulator)
    thread = thread_index()
    row = softmax.first_row(thread)
    place = tile.address + box * tile.stride + row * tile.row_bytes + (thread & 3) * 4
    for c in range(0, cute.size(cells, mode=[1]), 2):
        panel, chunk = divmod(c // 2, tile.width)
        for r in range(cute.size(cells, mode=[0])):
            down = softmax.row_offset(r)
            at = place + ((scramble(row + down, tile.width) ^ chunk) << 4)
            at = at + (panel * tile.panel_bytes + down * tile.row_bytes)
            store_shared(at, pack(cells[r, c], cells[r, c + 1], dtype))


def pack(low, high, dtype):
    """Two Float32 rounded to nearest, in one register."""
    text = f"cvt.rn.{PTX_NAMES[dtype.__name__]}x2.f32 $0, $1, $2;"
    return Int32(llvm.inline_asm(_i32(), [high.ir_value(), low.ir_value()], text, "=r,f,f", has_side_effects=False))


# ----------------------------------------------------------------------------------------------------------- products


def accumulator(rows: int, cols: int):
    """A Float32 accumulator for a group's `rows` x `cols` tile."""
    return cute.make_rmem_tensor(((2, 2), rows // 16, cols // 8), Float32)


def register_operand(rows: int, cols: int, dtype):
    """A left operand in registers."""
    return cute.make_rmem_tensor(((2, 2), rows // 16, cols // 8), dtype)


@cute.jit
def rescale_where_needed(cells, factor):
    """Row r of an accumulator's `cells` times `factor[r]`, left out by warps in which every factor is 1: after the
    first tiles of a row
    its maximum seldom moves. (A loop that runs once or not at all: a plain branch would become predicated
    multiplications.)"""
    moved = factor[0] != 1.0
    for r in range_constexpr(1, cute.size(factor)):
        moved = moved | (factor[r] != 1.0)
    for _ in cutlass.range(any_lane(moved), unroll=1):
        softmax.rescale(cells, factor)


def any_lane(condition):
    """1 when `condition` holds in some lane of the warp, else 0; nothing the compiler can see through."""
    text = "{ .reg .pred p; .reg .pred q; setp.ne.b32 p, $1, 0; vote.sync.any.pred q, p, -1; selp.b32 $0, 1, 0, q; }"
    flag = arith.select(condition, 1, Int32(0))
    return Int32(llvm.inline_asm(_i32(), [flag.ir_value()], text, "=r,r", has_side_effects=True))


def multiply_shared(result, left, left_lanes, box, right, right_lanes, offset, accumulate: bool, dtype, ahead=LOOKAHEAD):
    """result (+)= left . right^T, both in shared memory: box `box` of left, `offset` bytes into right's ring. `ahead` as
    for `_multiply`."""
    left_base, right_base = left.address + box * left.stride, right.address + offset

    def load_left(k):
        blocks = range(cute.size(result, mode=[1]))
        return [load_matrices(fragment_address(left, left_lanes, m, k, left_base), False) for m in blocks]

    def load_right(k, n):
        return load_matrices(fragment_address(right, right_lanes, n, k, right_base), False)

    depth = left.cols // 16
    _multiply(result, load_left, load_right, depth, accumulate, dtype, ahead)


def multiply_register(result, left, right, right_lanes, offset, accumulate: bool, dtype):
    """result (+)= left . right, with `left` in registers and `right` stored row by row (ldmatrix transposes)."""
    pairs = cute.recast_tensor(left, Int32)
    base = right.address + offset
    blocks = cute.size(result, mode=[1])

    def load_left(k):
        return [[pairs[(0, i % 2), m, 2 * k + i // 2] for i in range(4)] for m in range(blocks)]

    def load_right(k, n):
        return load_matrices(fragment_address(right, right_lanes, k, n, base), True)

    depth = cute.size(left, mode=[2]) // 2
    _multiply(result, load_left, load_right, depth, accumulate, dtype)


def _multiply(result, load_left, load_right, depth: int, accumulate: bool, dtype, ahead: int = LOOKAHEAD):
    """All products of a tile in steps of 16 deep, 16 columns; fragments are loaded `ahead` steps before their use."""
    columns = cute.size(result, mode=[2]) // 2
    steps = [(k, n) for k in range(depth) for n in range(columns)]
    lefts, rights, sums = {}, {}, {}
    for s in range(len(steps) + ahead):
        if s < len(steps):
            k, n = steps[s]
            if n == 0:
                lefts[k] = load_left(k)
            rights[s] = load_right(k, n)
        if s >= ahead:
            k, n = steps[s - ahead]
            if k == 0:
                sums[n] = _sums(result, n, accumulate)
            sums[n] = _multiply_step(sums[n], lefts[k], rights.pop(s - ahead), dtype)
            if k == depth - 1:
                _keep_sums(result, n, sums.pop(n))


def _places(result, n: int):
    """Where the sums of 16 columns lie: (block of rows, half of the columns) and the coordinates of its four."""
    for m in range(cute.size(result, mode=[1])):
        for half in range(2):
            yield (m, half), [((i % 2, i // 2), m, 2 * n + half) for i in range(4)]


def _sums(result, n: int, accumulate: bool):
    """The sums of 16 columns as values. Kept so between steps, because writing and reading a tensor's elements takes as long to compile as the products."""
    return {at: [result[p] if accumulate else Float32(0.0) for p in places] for at, places in _places(result, n)}


def _keep_sums(result, n: int, sums):
    for at, places in _places(result, n):
        for p, value in zip(places, sums[at]):
            result[p] = value


def _multiply_step(sums, left, right, dtype):
    return {(m, half): mma(sums[m, half], left[m], right[2 * half : 2 * half + 2], dtype) for m, half in sums}
