"""Score tiles in registers: which element is where, and the online softmax on them.

Both mma.sync m16n8 and wgmma m64nN leave a thread with the same part of a score tile: in each block of 16 rows the rows
`lane // 4` and `lane // 4 + 8`, in each block of 8 columns the columns `2 * (lane % 4)` and the one after. So a thread owns

    row    first_row + row_offset(r)         r = 0, 1, ... (two for each block of 16 rows)
    column first_column + column_offset(c)   c = 0, 1, ... (two for each block of 8 columns)

and four neighbouring lanes (a quad) share a row. `cells` views an accumulator as a (rows, columns) tensor in that numbering.

Statistics of rows are register tensors with one element for each row a thread owns. The sum of a row is kept for each thread apart
and added over the quad only in `finalize`.
"""

import math

from cutlass import Float32, Int32, cute, range_constexpr

from attncc.device import arith

LN_2 = math.log(2.0)
CHAINS = 4
"""Independent chains of a row's maximum; fewer leave the ALU waiting, more cost extra operations at the end."""


def row_offset(r: int) -> int:
    """Distance of a thread's row number `r` from its first."""
    return 8 * (r % 2) + 16 * (r // 2)


def column_offset(c: int) -> int:
    """Distance of a thread's column number `c` from its first."""
    return c % 2 + 8 * (c // 2)


def first_row(thread):
    """A thread's first row in the block of 16 rows of its warp."""
    return (thread % 32) // 4


def first_column(thread):
    return 2 * (thread % 4)


def values(count: int, kind):
    """`count` numbers of type `kind` in registers."""
    return cute.make_rmem_tensor((count,), kind)


def slot_width(tile_n: int, threads: int) -> int:
    """Numbers in shared memory for the columns of a key tile, filled up to whole groups of threads."""
    return -(-tile_n // threads) * threads


def own_numbers(staging, group, count: int):
    """The `count` numbers of group `group`."""
    return cute.make_tensor(staging.iterator + group * count, cute.make_layout(count))


def slot(numbers, first: int, kind):
    """The numbers from number `first` on, as 32-bit numbers of type `kind`."""
    return cute.make_tensor(cute.recast_ptr(numbers.iterator + first, dtype=kind), cute.make_layout(cute.size(numbers) - first))


def own_columns(numbers, first: int, kind, columns: int, thread):
    """Element c: the number of the thread's column c, of those from number `first` on."""
    place = numbers.iterator + (first + first_column(thread))
    layout = cute.make_layout((2, columns // 2), stride=(1, 8))
    return cute.make_tensor(cute.recast_ptr(place, dtype=kind), layout)


def sequence(rows, first):
    """The rows (a vector, or a matrix of rows) from `first` on."""
    offset = (first,) if cute.rank(rows) == 1 else (first, 0)
    return cute.domain_offset(offset, rows)


def cells(accumulator):
    """An MMA accumulator ((2, 2, ...), blocks of rows, blocks of columns) as (rows, columns)."""
    layout = accumulator.layout
    shape, stride = layout.shape, layout.stride
    rows = ((shape[0][1], shape[1]), (stride[0][1], stride[1]))
    cols = ((shape[0][0], *shape[0][2:], shape[2]), (stride[0][0], *stride[0][2:], stride[2]))
    view = cute.make_layout((rows[0], cols[0]), stride=(rows[1], cols[1]))
    return cute.make_tensor(accumulator.iterator, view)


def maximum(items: list):
    """The largest of `items` by a few independent chains."""
    chains = items[:CHAINS]
    for i, item in enumerate(items[CHAINS:]):
        chains[i % CHAINS] = arith.fmax(chains[i % CHAINS], item)
    while len(chains) > 1:
        chains = [arith.fmax(*chains[i : i + 2]) if i + 1 < len(chains) else chains[i] for i in range(0, len(chains), 2)]
    return chains[0]


def total(items: list):
    """The sum of `items` by two independent chains."""
    chains = items[:2]
    for i, item in enumerate(items[2:]):
        chains[i % 2] = chains[i % 2] + item
    return chains[0] if len(chains) == 1 else chains[0] + chains[1]


def quad_maximum(x):
    """The largest `x` of the four lanes that share a row."""
    for offset in (1, 2):
        x = arith.fmax(x, cute.arch.shuffle_sync_bfly(x, offset=offset))
    return x


def quad_total(x):
    """The sum of `x` over the four lanes that share a row."""
    for offset in (1, 2):
        x = x + cute.arch.shuffle_sync_bfly(x, offset=offset)
    return x


def no_key(largest, multiplier: float):
    """Whether a row of scores whose maximum is `largest` has no key: -inf, or a number that stands for it (-1e9, float32's least number).
    The product multiplier * m is a float32 number when it is subtracted: from 2**28 on its rounding is worth 2**8 and more in a weight."""
    return largest <= Float32(-(2.0**28) / multiplier)


def step(scores, row_max, row_sum, correction, multiplier: float, first: bool, guard: bool, slack: float = 0.0, sums=None):
    """One score tile of the online softmax, in place: `scores` (rows, columns) become the weights 2**(multiplier * (x - m)).

    `row_max` is in the scores' own units; `correction` gets the factor for what was accumulated before. With `first` the old
    statistics are not read; with `guard` a row without any kept key (`no_key`) gives weights 0 instead of NaN. With `slack` a row keeps its old
    maximum, and its correction is exactly 1, while weights stay below 2**slack. With `sums` the sums of this tile's weights go there, and
    `row_sum` is multiplied by the correction only.
    """
    columns = cute.size(scores, mode=[1])
    for r in range(cute.size(scores, mode=[0])):
        old = row_max[r]
        largest = maximum([scores[r, c] for c in range(columns)] + ([] if first else [old]))
        largest = quad_maximum(largest)
        if slack and not first:
            largest = arith.select((largest - old) * Float32(multiplier) <= Float32(slack), old, largest)
        row_max[r] = largest
        if guard:
            largest = arith.select(no_key(largest, multiplier), Float32(0.0), largest)
        shift = largest * Float32(-multiplier)
        weights = [arith.exp2(cute.math.fma(scores[r, c], Float32(multiplier), shift)) for c in range(columns)]
        for c in range(columns):
            scores[r, c] = weights[c]
        if first:
            row_sum[r] = total(weights)
            continue
        correction[r] = arith.exp2((old - largest) * Float32(multiplier))
        if sums is not None:
            row_sum[r], sums[r] = row_sum[r] * correction[r], total(weights)
        else:
            row_sum[r] = total([cute.math.fma(row_sum[r], correction[r], weights[0]), *weights[1:]])


def step_bounded(scores, row_max, row_sum, gap, dtype, multiplier: float, least: float, first: bool, sets: bool):
    """As `step` for scores that are bounded: a row's maximum stays as it was set, which is `least` at least.

    It is set by the first tile (`first`, or one of those that mask: `sets`) that has a key of the row, to its maximum there; another tile sets it
    to `least` where none did before. Rows with few keys have them in such tiles: there `gap` collects what rounding weights to `dtype` adds to
    their sum, and `finalize` divides by that sum, so that the output of a row with one key is its value, whatever the weight.
    """
    for r in range(cute.size(scores, mode=[0])):
        columns = range(cute.size(scores, mode=[1]))
        if first or sets:
            largest = quad_maximum(maximum([scores[r, c] for c in columns]))
            found = arith.select(largest == -Float32.inf, largest, arith.fmax(largest, Float32(least)))
            row_max[r] = found if first else arith.select(row_max[r] == -Float32.inf, found, row_max[r])
        used = arith.fmax(row_max[r], Float32(least))
        if not (first or sets):
            row_max[r] = used
        shift = used * Float32(-multiplier)
        weights = [arith.exp2(cute.math.fma(scores[r, c], Float32(multiplier), shift)) for c in columns]
        row_sum[r] = total(weights if first else [row_sum[r], *weights])
        if first or sets:
            rounded = [weight.to(dtype).to(Float32) for weight in weights]
            more = total([x - weight for x, weight in zip(rounded, weights)])
            gap[r], weights = more if first else gap[r] + more, rounded
        for c, weight in enumerate(weights):
            scores[r, c] = weight


def step_trusting(scores, row_max, sums, multiplier: float, least):
    """As `step`, with each row's maximum as it is: no maximum over the row, no exchange between threads, no correction, and `row_sum` is not
    touched; `sums` gets the sums of the tile's weights, of the thread's columns. The caller must look at them (`exceed`). With `least` a
    maximum below it counts as it, so that scores of -inf have weight 0 in rows that had no key."""
    for r in range(cute.size(scores, mode=[0])):
        columns = range(cute.size(scores, mode=[1]))
        base = row_max[r] if least is None else arith.fmax(row_max[r], Float32(least))
        shift = base * Float32(-multiplier)
        weights = [arith.exp2(cute.math.fma(scores[r, c], Float32(multiplier), shift)) for c in columns]
        sums[r] = total(weights)
        for c, weight in enumerate(weights):
            scores[r, c] = weight


def exceed(sums, limit: float):
    """Whether a number of `sums` of some lane of the warp is not at most `limit` (it may be NaN)."""
    fine = sums[0] <= Float32(limit)
    for r in range(1, cute.size(sums)):
        fine = fine & (sums[r] <= Float32(limit))
    return cute.arch.vote_any_sync(fine == False)  # not `not`: a value of the device


def add(target, source):
    """`target` (rows) += `source`."""
    for r in range(cute.size(target)):
        target[r] = target[r] + source[r]


def bits_from(low, word: int):
    """The bits of the thread's columns 32 * word and on whose place (counted from the thread's first column) is `low` or later."""
    return _ones_from(owned_below(low) - 32 * word)


def bits_below(high, word: int):
    """As `bits_from`, of those before `high`."""
    return ~_ones_from(owned_below(high) - 32 * word)


def bits_of_period(low, high, period: int, thread, word: int):
    """The bits of the columns whose number in the tile, modulo `period` (a power of two from 8 to 128), is from `low` to before `high`:
    the same bits in every word, and for every tile."""
    own, first = period // 4, first_column(thread)
    bits = _ones_from(owned_below(low - first)) & ~_ones_from(arith.imin(owned_below(high - first), own))
    while own < 32:
        bits, own = bits | (bits << own), 2 * own
    return bits


def keep_below(scores, r: int, high):
    """Elements of row r in columns `high` and later (counted from the thread's first column) := -inf."""
    keep_words(scores, r, lambda word: bits_below(high, word))


def keep_from(scores, r: int, low):
    """Elements of row r in columns before `low` (counted from the thread's first column) := -inf."""
    keep_words(scores, r, lambda word: bits_from(low, word))


def keep_between(scores, r: int, low, high):
    """`keep_from` and `keep_below`."""
    keep_words(scores, r, lambda word: bits_from(low, word) & bits_below(high, word))


def owned_below(bound):
    """How many of a thread's columns have an offset below `bound`: the number of c with column_offset(c) < bound, 0 for negative ones."""
    bound = arith.imax(bound, 0)
    return (bound >> 3) * 2 + arith.imin(bound & 7, 2)


def _ones_from(count):
    """A word with the bits `count` and above set (all for count <= 0, none for count >= 32)."""
    count = arith.imax(count, 0)
    return cute.arch.inline_ptx("shl.b32 {$w0}, {$r0}, {$r1};", write_only_types=[Int32], read_only_args=[Int32(-1), count])


def keep_words(scores, r: int, word_of):
    """Elements of row r whose bit is not set := -inf; `word_of(w)` gives the bits of the thread's columns 32 * w and on."""
    columns = cute.size(scores, mode=[1])
    for word in range(-(-columns // 32)):
        bits = word_of(word)
        for i in range(min(32, columns - 32 * word)):
            kept = (bits & (1 << i if i < 31 else -(2**31))) != 0
            c = 32 * word + i
            scores[r, c] = arith.select(kept, scores[r, c], -Float32.inf)


def rescale(accumulator, factor):
    """Row r of `accumulator` (rows, columns) is multiplied by `factor[r]`."""
    for r in range(cute.size(accumulator, mode=[0])):
        for c in range(cute.size(accumulator, mode=[1])):
            accumulator[r, c] = accumulator[r, c] * factor[r]


@cute.jit
def rescale_where_needed(accumulator, factor):
    """`rescale`, skipped by a warp whose factors are all 1."""
    changed = factor[0] != 1.0
    for r in range_constexpr(1, cute.size(factor)):
        changed = changed | (factor[r] != 1.0)
    if cute.arch.vote_any_sync(changed):
        rescale(accumulator, factor)


def convert(target, source):
    """`target` := `source` rounded to target's type; the same registers in the same order, two at a time."""
    pairs = cute.recast_tensor(target, Int32)
    flat = cute.make_tensor(source.iterator, cute.make_layout(cute.size(source)))
    for i in range(cute.size(pairs)):
        pairs[i] = pack(target.element_type, flat[2 * i], flat[2 * i + 1])


def widen(source):
    """A fragment as Float32. A bf16 number is the upper half of its float32: a shift or a mask, one instruction each."""
    if source.element_type.width == 32:
        return source
    out = cute.make_rmem_tensor(source.layout, Float32)
    flat = cute.make_layout(cute.size(source))
    if source.element_type.__name__ == "BFloat16":
        pairs, bits = cute.recast_tensor(source, Int32), cute.make_tensor(cute.recast_ptr(out.iterator, dtype=Int32), flat)
        for i in range(cute.size(pairs)):
            bits[2 * i], bits[2 * i + 1] = pairs[i] << 16, pairs[i] & -65536
    else:
        numbers, target = cute.make_tensor(source.iterator, flat), cute.make_tensor(out.iterator, flat)
        for i in range(cute.size(numbers)):
            target[i] = numbers[i].to(Float32)
    return out


def pack(dtype, low, high):
    """Two float32 numbers rounded to `dtype`, in one word."""
    kind = "bf16x2" if dtype.__name__ == "BFloat16" else "f16x2"
    code = f"cvt.rn.{kind}.f32 {{$w0}}, {{$r1}}, {{$r0}};"
    return cute.arch.inline_ptx(code, write_only_types=[Int32], read_only_args=[low, high])


def unpack(dtype, word):
    """The two numbers of a word of `pack`, as float32."""
    half = "{ .reg .b16 l, h; mov.b32 {l, h}, {$r0}; cvt.f32.f16 {$w0}, %s; }"
    codes = (half % "l", half % "h")
    if dtype.__name__ == "BFloat16":
        codes = ("shl.b32 {$w0}, {$r0}, 16;", "and.b32 {$w0}, {$r0}, 0xffff0000;")
    return tuple(cute.arch.inline_ptx(code, write_only_types=[Float32], read_only_args=[word]) for code in codes)


def finalize(accumulator, row_max, row_sum, lse, multiplier: float, sink=None, shift=None, gap=None):
    """accumulator := accumulator / l, lse := ln(2) * multiplier * m + ln(l); a row without any kept key becomes 0 and -inf.

    `sink` holds a natural-logarithm score for each row that enters l but has no value; it is the lse of a row without any key.
    `shift` holds what was left out of every score of a row; with -inf the row counts as one without any key. `gap` is added to the l that
    the accumulator is divided by.
    """
    for r in range(cute.size(row_sum)):
        length = quad_total(row_sum[r])
        empty, exponent = length == 0.0, row_max[r] * Float32(multiplier)
        if shift is not None:
            empty = empty | (shift[r] == -Float32.inf)
            exponent = cute.math.fma(shift[r], Float32(arith.LOG2_E), exponent)
            length = arith.select(empty, Float32(0.0), length)
        exponent = arith.select(empty, Float32(0.0), exponent)
        shrink, nothing = Float32(1.0), -Float32.inf
        if sink is not None:
            nothing = sink[r]
            extra = sink[r] * Float32(arith.LOG2_E)
            highest = arith.fmax(exponent, extra)
            shrink = arith.exp2(exponent - highest)
            length = length * shrink + arith.exp2(extra - highest)
            exponent = highest
        divisor = length if gap is None else cute.math.fma(quad_total(gap[r]), shrink, length)
        row_sum[r] = arith.select(empty, Float32(0.0), shrink * arith.reciprocal(divisor))
        lse[r] = arith.select(empty, nothing, (exponent + arith.log2(length)) * Float32(LN_2))
    rescale(accumulator, row_sum)


def scale_rows(accumulator, factor, lse):
    """The end of an unnormalised reduction: each row times its factor; there is no LSE (-inf)."""
    rescale(accumulator, factor)
    no_lse(lse)


def no_lse(lse):
    for r in range(cute.size(lse)):
        lse[r] = -Float32.inf


@cute.jit
def store_rows(numbers, target, first, seq_q, thread):
    """One lane of each quad writes the quad's rows below `seq_q` of a vector over query positions."""
    if thread % 4 == 0:
        for r in range_constexpr(cute.size(numbers)):
            row = first + row_offset(r)
            if row < seq_q:
                target[row] = numbers[r]


def weigh(scores, kind: str, multiplier: float):
    """Unnormalised weights in place: kind(multiplier * x), and 0 where x is -inf."""
    function = WEIGHTS[kind]
    for r in range(cute.size(scores, mode=[0])):
        for c in range(cute.size(scores, mode=[1])):
            x = scores[r, c]
            weight = function(x * Float32(multiplier))
            scores[r, c] = weight if kind in VANISHING else arith.select(x == -Float32.inf, Float32(0.0), weight)


VANISHING = frozenset({"sigmoid", "relu"})
"""Functions that are 0 at -inf without being asked."""
WEIGHTS = {
    "none": lambda x: x,
    "relu": lambda x: arith.fmax(x, Float32(0.0)),
    "sigmoid": arith.sigmoid,
    "silu": lambda x: x * arith.sigmoid(x),
    "gelu": lambda x: x * Float32(0.5) * (Float32(1.0) + arith.erf(x * Float32(math.sqrt(0.5)))),
}
