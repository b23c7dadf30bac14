"""Score tiles in registers where one thread owns a whole row: the functions of `attncc.device.softmax` for that ownership.

Tensor memory has one lane for each of 128 rows, and the four warps of a group see 32 lanes each: thread i of a group owns row i. A
score tile is a (1, columns) register tensor, and no value ever has to come from another lane. Sums and differences are made
in pairs (FFMA2, FADD2).
"""

from cutlass import Constexpr, Float32, Int32, cute, range_constexpr

from attncc.device import arith, softmax
from attncc.device.softmax import VANISHING, WEIGHTS, no_lse, sequence, values  # noqa: F401

LN_2 = softmax.LN_2
ROWS = 128
"""Rows of a part of the query tile, and threads of the group that works on it."""
WORD = 32
CHAINS = 2
"""Independent chains of a row's sum."""
EXP2_COEFFICIENTS = (0.9999280571937561, 0.6932609677314758, 0.2426111251115799, 0.0551716685295105)
"""Of 2**x on [-1/2, 1/2], lowest degree first: the smallest greatest relative error (7.5e-5), by Remez' exchange; a test computes them."""
NEAR = 1.0
TANH_COEFFICIENTS = (0.9999185634, -0.3306543024, 0.1188975516, -0.02662967953)
"""Of tanh on [-NEAR, NEAR], those of x, x**3, x**5 and x**7: the smallest greatest relative error (8.2e-5, a sixth of tanh.approx's), by Remez'
exchange; a test computes them."""
ROUNDER = 1.5 * 2**23
LEAST_EXPONENT = -125.0
DECLINING = frozenset({"silu", "gelu"})
"""Weights that are 0 (or -0) far below 0, but not a number at -inf: with `LEAST_SCORE` in its place nothing but the product has to be kept,
and a score takes an instruction less than where -inf is looked for afterwards."""
LEAST_SCORE = -3e38


def row_offset(r: int) -> int:
    return 0


def column_offset(c: int) -> int:
    return c


def first_column(thread):
    return 0


def tile(columns: int):
    """Registers for one row of a score tile."""
    return cute.make_rmem_tensor((1, columns), Float32)


def scale_pair(scores, c: int, factor: float, terms: list):
    """Columns c and c + 1 become factor * x plus their own of the two `terms`."""
    pair, scale = (scores[0, c], scores[0, c + 1]), (Float32(factor), Float32(factor))
    scores[0, c], scores[0, c + 1] = cute.arch.fma_packed_f32x2(pair, scale, tuple(terms))


def maximum(scores, row_max, correction, multiplier: float, first: bool, guard: bool, slack: float):
    """The row's new maximum, and the factor for what was added up before. Arguments as `softmax.step`."""
    columns = cute.size(scores, mode=[1])
    old = row_max[0]
    largest = softmax.maximum([scores[0, c] for c in range(columns)] + ([] if first else [old]))
    if slack and not first:
        largest = arith.select((largest - old) * Float32(multiplier) <= Float32(slack), old, largest)
    row_max[0] = largest
    if not first:
        correction[0] = arith.exp2((old - _base(largest, multiplier, guard)) * Float32(multiplier))


def _base(largest, multiplier: float, guard: bool):
    """A maximum that may be subtracted: 0 for a row without a key."""
    return arith.select(softmax.no_key(largest, multiplier), Float32(0.0), largest) if guard else largest


def weights(scores, row_max, row_sum, correction, multiplier: float, first: bool, guard: bool, polynomial: int = 0):
    """Scores become the weights 2**(multiplier * (x - m)) in place and enter the row's sum, two by two in `CHAINS` chains.

    `polynomial` of each 16 pairs are made without the special function unit, spread evenly among the others.
    """
    shift, scale = _base(row_max[0], multiplier, guard) * Float32(-multiplier), Float32(multiplier)
    before = None if first else (row_sum[0] * correction[0], Float32(0.0))
    row_sum[0] = _weigh_pairs(scores, scale, shift, before, polynomial)


def weigh(scores, kind: str, multiplier: float):
    """Unnormalised weights in place: kind(multiplier * x), and 0 where x is -inf; products two by two."""
    function, scale = WEIGHTS[kind], Float32(multiplier)
    for c in range(0, cute.size(scores, mode=[1]), 2):
        pair = (scores[0, c], scores[0, c + 1])
        products = pair if multiplier == 1.0 else cute.arch.mul_packed_f32x2(pair, (scale, scale))
        for i, product in enumerate(products):
            if kind in DECLINING:
                scores[0, c + i] = function(cute.arch.fmax(product, Float32(LEAST_SCORE), nan=True))
            elif kind in VANISHING:
                scores[0, c + i] = function(product)
            else:
                scores[0, c + i] = arith.select(pair[i] == -Float32.inf, Float32(0.0), function(product))


def _weigh_pairs(scores, scale, shift, before, polynomial: int, bounded: bool = False):
    """Scores x become 2**(scale * x + shift) in place; their sum and that of `before`, a pair or None."""

    def exponent(pair: int):
        return cute.arch.fma_packed_f32x2((scores[0, 2 * pair], scores[0, 2 * pair + 1]), (scale, scale), (shift, shift))

    return _exp2_pairs(scores, exponent, before, polynomial, bounded)


def _exp2_pairs(weights, exponent, before, polynomial: int, bounded: bool):
    """Weights of pair i become 2**exponent(i); their sum and that of `before`, a pair or None.

    `bounded`: no exponent that a polynomial takes is below LEAST_EXPONENT.
    """
    chains = [before] + [None] * (CHAINS - 1)
    for c in range(0, cute.size(weights, mode=[1]), 2):
        a, b = exponent(c // 2)
        a, b = exp2_pair(a, b, bounded) if by_polynomial(c // 2, polynomial) else (arith.exp2(a), arith.exp2(b))
        weights[0, c], weights[0, c + 1] = a, b
        i = c // 2 % CHAINS
        chains[i] = (a, b) if chains[i] is None else cute.arch.add_packed_f32x2(chains[i], (a, b))
    low, high = chains[0] if CHAINS == 1 else cute.arch.add_packed_f32x2(*chains)
    return low + high


def step_bounded(
    scores, row_max, row_sum, gap, dtype, multiplier: float, least: float, first: bool, sets: bool, polynomial: int = 0
):  # fmt: skip
    """As `softmax.step_bounded`; weights of tiles that set no maximum as in `weights`."""
    if first or sets:
        _set_maximum(scores, row_max, least, first)
    used = arith.fmax(row_max[0], Float32(least))
    if not (first or sets):
        row_max[0] = used
    before = None if first else (row_sum[0], Float32(0.0))
    row_sum[0] = _weigh_pairs(scores, Float32(multiplier), used * Float32(-multiplier), before, polynomial, bounded=True)
    if first or sets:
        more = _round(scores, dtype)
        gap[0] = more if first else gap[0] + more


def step_capped(scores, row_max, row_sum, multiplier: float, least: float, cap: float, odd: int, polynomial: int):
    """As `step_bounded` in a tile that sets no maximum, for the scores tanh(cap * x). `odd` of each 16 pairs take the tanh by a polynomial."""
    used = arith.fmax(row_max[0], Float32(least))
    row_max[0] = used
    shift = used * Float32(-multiplier)
    if odd:
        _weigh_capped_where_near(scores, row_sum, shift, multiplier, cap, odd, polynomial)
    else:
        _weigh_capped(scores, row_sum, shift, multiplier, cap, 0, polynomial)


@cute.jit
def _weigh_capped_where_near(
    scores, row_sum, shift, multiplier: Constexpr, cap: Constexpr, odd: Constexpr, polynomial: Constexpr
):  # fmt: skip
    """The polynomial is good for |cap * x| <= NEAR alone: a warp that has a larger one takes the special function unit for all."""
    largest = softmax.maximum([arith.fabs(scores[0, c]) for c in range(cute.size(scores, mode=[1]))])
    if cute.arch.vote_any_sync(largest > NEAR / cap):
        _weigh_capped(scores, row_sum, shift, multiplier, cap, 0, polynomial)
    else:
        _weigh_capped(scores, row_sum, shift, multiplier, cap, odd, polynomial)


def _weigh_capped(scores, row_sum, shift, multiplier: float, cap: float, odd: int, polynomial: int):
    """Scores x become 2**(multiplier * tanh(cap * x) + shift) in place and enter the row's sum."""
    exponents = [multiplier * c * cap ** (2 * i + 1) for i, c in enumerate(TANH_COEFFICIENTS)]

    def exponent(pair: int):
        x = (scores[0, 2 * pair], scores[0, 2 * pair + 1])
        if by_polynomial(pair, odd):
            return odd_pair(x, exponents, (shift, shift))
        low, high = cute.arch.mul_packed_f32x2(x, (Float32(cap), Float32(cap)))
        scale = Float32(multiplier)
        return cute.arch.fma_packed_f32x2((arith.tanh(low), arith.tanh(high)), (scale, scale), (shift, shift))

    row_sum[0] = _exp2_pairs(scores, exponent, (row_sum[0], Float32(0.0)), polynomial, bounded=True)


def odd_pair(x, coefficients, shift):
    """x * (c0 + c1 * x**2 + c2 * x**4 + ...) + shift for both numbers of the pair x."""
    square = cute.arch.mul_packed_f32x2(x, x)
    pairs = [(Float32(c), Float32(c)) for c in coefficients]
    out = pairs[-1]
    for pair in pairs[-2::-1]:
        out = cute.arch.fma_packed_f32x2(out, square, pair)
    return cute.arch.fma_packed_f32x2(x, out, shift)


def _set_maximum(scores, row_max, least: float, first: bool):
    """A row without a maximum gets that of this tile, `least` at least, if it has a key here."""
    largest = softmax.maximum([scores[0, c] for c in range(cute.size(scores, mode=[1]))])
    found = arith.select(largest == -Float32.inf, largest, arith.fmax(largest, Float32(least)))
    row_max[0] = found if first else arith.select(row_max[0] == -Float32.inf, found, row_max[0])


def _round(weights, dtype):
    """Weights become what `dtype` holds of them; gives what that adds to their sum."""
    total = (Float32(0.0), Float32(0.0))
    for c in range(0, cute.size(weights, mode=[1]), 2):
        pair = (weights[0, c], weights[0, c + 1])
        rounded = softmax.unpack(dtype, softmax.pack(dtype, *pair))
        total = cute.arch.add_packed_f32x2(total, cute.arch.fma_packed_f32x2(pair, (Float32(-1.0), Float32(-1.0)), rounded))
        weights[0, c], weights[0, c + 1] = rounded
    low, high = total
    return low + high


def by_polynomial(pair: int, count: int) -> bool:
    """Whether pair number `pair` of a row is one of `count` in 16 that take the polynomial."""
    return (pair + 1) * count // 16 > pair * count // 16


def exp2_pair(a, b, bounded: bool = False):
    """2**a and 2**b for numbers from -inf to 100 within a factor 1 +- 2**-13.5; 2**-125 for what is less. No special function unit.
    `bounded` says that neither is less, which saves two instructions.

    x is split in the nearest integer n and a rest of at most one half: adding 1.5 * 2**23 leaves n in the low bits of a sum. 2**rest is a
    polynomial, 2**n an addition to its exponent.
    """
    if not bounded:
        a, b = arith.fmax(a, Float32(LEAST_EXPONENT)), arith.fmax(b, Float32(LEAST_EXPONENT))
    shift, back = Float32(ROUNDER), Float32(-ROUNDER)
    n = cute.arch.add_packed_f32x2((a, b), (shift, shift))
    whole = cute.arch.add_packed_f32x2(n, (back, back))
    minus = Float32(-1.0)
    rest = cute.arch.fma_packed_f32x2(whole, (minus, minus), (a, b))
    out = (Float32(EXP2_COEFFICIENTS[-1]), Float32(EXP2_COEFFICIENTS[-1]))
    for coefficient in EXP2_COEFFICIENTS[-2::-1]:
        out = cute.arch.fma_packed_f32x2(out, rest, (Float32(coefficient), Float32(coefficient)))
    return tuple(_add_to_exponent(value, integer) for value, integer in zip(out, n))


def _add_to_exponent(value, integer):
    """`value` times 2**n, where n is in the low bits of float `integer`."""
    code = "{ .reg .b32 n; shl.b32 n, {$r1}, 23; add.s32 {$w0}, n, {$r0}; }"
    return cute.arch.inline_ptx(code, write_only_types=[Float32], read_only_args=[value, integer])


def bits_from(low, word: int):
    """The bits of columns 32 * word and on from `low` on."""
    return softmax._ones_from(low - WORD * word)


def bits_below(high, word: int):
    """As `bits_from`, of those before `high`."""
    return ~softmax._ones_from(high - WORD * word)


def bits_of_period(low, high, period: int, thread, word: int):
    """As `softmax.bits_of_period`: here a word holds 32 neighbouring columns."""
    if period > WORD:
        return bits_from(low, word % (period // WORD)) & bits_below(high, word % (period // WORD))
    bits, own = bits_from(low, 0) & bits_below(arith.imin(high, period), 0), period
    while own < WORD:
        bits, own = bits | (bits << own), 2 * own
    return bits


def words(columns: int) -> int:
    """Words of bits for a row's columns."""
    return -(-columns // WORD)


def next_eight(bits):
    """`bits` moved on by eight: of four times eight columns the first end in the lowest bits."""
    return cute.arch.inline_ptx("shr.b32 {$w0}, {$r0}, 8;", write_only_types=[Int32], read_only_args=[bits])


def with_bit(bits, i: int, kept):
    """`bits` with the bit of column `i` of the present eight set where `kept`."""
    bit = 1 << (24 + i)
    return bits | arith.select(kept, Int32(bit if i < 7 else bit - 2**32), Int32(0))


def all_bits(kept):
    """A word with all its bits where `kept`, else 0."""
    return arith.select(kept, Int32(-1), Int32(0))


def is_set(words, c):
    """Whether bit c % 32 of word c // 32 is set, for a column that is known or one of a loop."""
    if isinstance(c, int):
        bit = 1 << c % WORD
        return (words[c // WORD] & Int32(bit if bit < 1 << 31 else bit - 2**32)) != 0
    return (words[c >> 5] >> (c & 31)) & 1 != 0


def keep_words(scores, r: int, word_of):
    """As `softmax.keep_words`. The choice is made here and not where its result is used, behind a wait: 128 conditions would have to be kept."""
    columns = cute.size(scores, mode=[1])
    for word in range(words(columns)):
        bits = word_of(word)
        for i in range(min(WORD, columns - WORD * word)):
            scores[r, WORD * word + i] = _chosen(scores[r, WORD * word + i], bits, i)


def _chosen(score, bits, i: int):
    """`score` where bit `i` is set, else -inf."""
    code = f"{{ .reg .pred p; .reg .b32 b; and.b32 b, {{$r1}}, {1 << i}; setp.ne.b32 p, b, 0; selp.f32 {{$w0}}, {{$r0}}, 0fFF800000, p; }}"
    return cute.arch.inline_ptx(code, write_only_types=[Float32], read_only_args=[score, bits])


def keep_below(scores, r: int, high):
    """Elements in columns `high` and later := -inf."""
    keep_words(scores, r, lambda word: bits_below(high, word))


def keep_from(scores, r: int, low):
    """Elements in columns before `low` := -inf."""
    keep_words(scores, r, lambda word: bits_from(low, word))


def keep_between(scores, r: int, low, high):
    """`keep_from` and `keep_below`."""
    keep_words(scores, r, lambda word: bits_from(low, word) & bits_below(high, word))


def factor(row_max, row_sum, lse, multiplier: float, sink=None, shift=None, gap=None):
    """What the sums of a row have to be multiplied by in the end, 1 / l (0 without a key); `lse` is set. As `softmax.finalize`."""
    length = row_sum[0]
    empty, exponent = length == 0.0, row_max[0] * Float32(multiplier)
    if shift is not None:
        empty = empty | (shift[0] == -Float32.inf)
        exponent = cute.math.fma(shift[0], Float32(arith.LOG2_E), exponent)
        length = arith.select(empty, Float32(0.0), length)
    exponent = arith.select(empty, Float32(0.0), exponent)
    shrink, nothing = Float32(1.0), -Float32.inf
    if sink is not None:
        nothing = sink[0]
        extra = sink[0] * Float32(arith.LOG2_E)
        highest = arith.fmax(exponent, extra)
        shrink = arith.exp2(exponent - highest)
        length = length * shrink + arith.exp2(extra - highest)
        exponent = highest
    lse[0] = arith.select(empty, nothing, (exponent + arith.log2(length)) * Float32(LN_2))
    divisor = length if gap is None else cute.math.fma(gap[0], shrink, length)
    return arith.select(empty, Float32(0.0), shrink * arith.reciprocal(divisor))


@cute.jit
def store_rows(numbers, target, row, seq_q):
    """Each thread writes its row's number of a vector over query positions, below `seq_q`."""
    for r in range_constexpr(cute.size(numbers)):
        if row < seq_q:
            target[row] = numbers[r]


def number_of_row(held, c: int):
    """Number c as Float32; a bf16 one is the upper half of its float32."""
    if held.element_type.__name__ != "BFloat16":
        return held[c].to(Float32)
    return softmax.unpack(held.element_type, cute.recast_tensor(held, Int32)[c // 2])[c % 2]
