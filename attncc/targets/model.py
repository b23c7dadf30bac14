"""The resource model: how long a kernel should take, and which unit limits it.

One key-tile iteration of a block keeps five units busy: the tensor cores, the special function unit (exp2), the issue slots,
shared memory, and the way from the L2 cache. With asynchronous products they overlap and the slowest all but sets the period; with synchronous ones they
overlap only across warps. With one stage the copy of the next tile is waited for. Around the loop a tile pays for its first loads and its output,
less where a block works on several tiles. Figures come from `Target.rates`.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncc.formats import bytes_of
from attncc.ir.attention import Attention
from attncc.targets.cost import ElementCost, element_cost
from attncc.targets.fit import Tiles, blocks_per_sm, shared_memory
from attncc.targets.target import WARP_THREADS, Target

POLYNOMIAL_INSTRUCTIONS = 4.0
"""What 2**x by a polynomial of degree 3 takes for an element, in pairs, beyond the one instruction of the special function unit."""
CLAMP_INSTRUCTIONS = 1.0
"""Of those, what keeps exponents in the polynomial's range: not needed for bounded scores."""
CAP_INSTRUCTIONS = 0.5
"""What scales a score before its tanh, for an element."""
ODD_INSTRUCTIONS = 0.5
"""What tanh by an odd polynomial of degree 7, joined with what scales the exponent, takes for an element beyond scaling and tanh."""
NEAR_INSTRUCTIONS = 0.5
"""What tells whether a warp's scores are in that polynomial's range: half a maximum of three."""
SIXTEENTHS = 16
"""Pairs of columns of which some take the polynomial."""
CORRECTION_INSTRUCTIONS, CORRECTION_LOOP = 0.54, 61.0
"""Of the correcting role, for an element of the output (half a packed multiplication, its part of a load and a store), and for a warp and
iteration: counted in kernels of head dims 64 and 128."""
ISSUER_INSTRUCTIONS = 190.0
"""Of the warps that issue products and copies for all, in an iteration."""
OVERLAP = 4.0
"""Units that overlap hinder each other a little: the exponent of the norm that adds their times."""
ALONE, APART, OVER_Q = "one", "several, output apart", "several, output over Q"
"""Query tiles of a block; of several, where the output lies in shared memory before it leaves."""
UNITS = ("tensor", "special", "issue", "shared", "fill")


@dataclass(frozen=True)
class Shares:
    """Of 16 pairs of elements, how many exponentials and how many tanh of capped scores are made without the special function unit."""

    polynomial: int = 0
    odd: int = 0

    @property
    def any(self) -> bool:
        return bool(self.polynomial or self.odd)


@dataclass(frozen=True)
class Period:
    """Cycles of each unit for one key-tile iteration of one block, and of the iteration as a whole."""

    tensor: float
    special: float
    issue: float
    shared: float
    total: float
    fill: float = 0.0

    @property
    def limit(self) -> str:
        """The unit that is busy longest."""
        return max(UNITS, key=lambda unit: getattr(self, unit))


@dataclass(frozen=True)
class Estimate:
    """A prediction for one call. Times in seconds, `flops` by the usual count (kept cells), bytes of global memory."""

    seconds: float
    limit: str
    period: Period
    blocks: int
    blocks_per_sm: int
    iterations: int
    flops: float
    bytes: float
    bytes_least: float
    io_bound: float

    @property
    def tflops(self) -> float:
        return self.flops / self.seconds / 1e12 if self.seconds else 0.0


def period(
    attention: Attention, target: Target, tiles: Tiles, resident: int = 1, made: Shares | None = None,
    extra: ElementCost | None = None,
) -> Period:  # fmt: skip
    """The iteration of a block when `resident` blocks share an SM. `extra` is the score's work where more is known than its text, `made` what
    is made by polynomials: what `shares` says when not given.
    """
    r, extra = target.rates, extra or element_cost(attention)
    made = made or shares(attention, target, tiles, extra)
    qk, v = target.pad(attention.dim_qk), target.pad(attention.dim_v)
    elements = tiles.tile_m * tiles.tile_n
    warps = tiles.groups * target.group_warps
    tensor = 2.0 * elements * (qk + v) / r.tensor_flops / r.tensor_share
    softmax = attention.reduction.kind == "softmax"
    special = elements * (softmax - (made.polynomial + made.odd) / SIXTEENTHS + extra.special) / r.mufu / 0.9
    share = r.issue_share[min(3, max(0, warps * resident // r.issue - 1))]
    slots = _instructions(target, tiles, v, extra) * warps + elements / WARP_THREADS * _polynomial_instructions(made, extra)
    if target.has("tensor_memory"):
        slots += ISSUER_INSTRUCTIONS
        if not extra.bounded:
            slots += tiles.tile_m * v / WARP_THREADS * CORRECTION_INSTRUCTIONS + target.group_warps * CORRECTION_LOOP
    issue = slots / (r.issue * share)
    shared = (_shared_cycles(target, tiles, qk, v) + elements * extra.shared_bytes / r.shared_bytes) / 0.9
    fill = 0.0
    if r.fill_bytes and not extra.is_banded:  # the short loops of banded masks wait for other things
        fill = tiles.tile_n * (qk + v) * bytes_of(attention.dtype) * resident / r.fill_bytes / (1 + tiles.pair)
    units = (tensor, special, issue, shared, fill)
    if target.has("async_mma"):
        total = sum(u**OVERLAP for u in units) ** (1.0 / OVERLAP)
    else:
        total = max(units) + (sum(units) - max(units)) / max(1.0, warps * resident / r.issue)
    exposed = r.copy_cycles if tiles.stages < 2 and target.has("roles") else 0.0
    return Period(tensor, special, issue, shared, total + r.step_cycles + exposed, fill)


def shares(attention: Attention, target: Target, tiles: Tiles, extra: ElementCost | None = None) -> Shares:
    """What is best made by polynomials: what makes the model's iteration shortest. Nothing without packed arithmetic, and nothing for f16,
    whose weights would show the polynomial's error."""
    if not target.has("packed_arithmetic") or attention.reduction.kind != "softmax" or attention.dtype != "bf16":
        return Shares()
    extra = extra or element_cost(attention)
    numbers = range(SIXTEENTHS + 1)
    found = (Shares(n, odd) for odd in (numbers if extra.capped else (0,)) for n in numbers)
    return min(found, key=lambda made: period(attention, target, tiles, made=made, extra=extra).total)


def _polynomial_instructions(made: Shares, extra: ElementCost) -> float:
    """For an element, what polynomials take beyond the special function unit's instructions, and what goes with a tanh in the softmax step."""
    exponential = POLYNOMIAL_INSTRUCTIONS - (CLAMP_INSTRUCTIONS if extra.bounded else 0.0)
    tanh = (CAP_INSTRUCTIONS if extra.capped else 0.0) + (NEAR_INSTRUCTIONS if made.odd else 0.0)
    return (exponential * made.polynomial + ODD_INSTRUCTIONS * made.odd) / SIXTEENTHS + tanh


def _instructions(target: Target, tiles: Tiles, dim_v: int, extra: ElementCost) -> float:
    """Warp instructions of one warp in one iteration."""
    threads = target.group_warps * WARP_THREADS
    elements = tiles.group_rows * tiles.tile_n / threads
    rates = target.rates
    if rates.trusting and not (extra.weights or extra.is_banded):  # banded masks have few full tiles
        each, loop = rates.trusting
        return elements * (each + extra.instructions) + loop
    rescale = 0.0 if target.has("tensor_memory") else tiles.group_rows * dim_v / threads
    products = 0.0
    if not target.has("mma_shared_operands"):
        products = 1.5 * tiles.group_rows * tiles.tile_n * (dim_v * 2) / (target.mma.m * target.mma.n_step * target.mma.k)
    return elements * (rates.element_instructions + extra.instructions) + rescale + rates.loop_instructions + products


def _shared_cycles(target: Target, tiles: Tiles, dim_qk: int, dim_v: int) -> float:
    """Cycles of shared memory: what the products read, and the copies that come in. A block of a pair holds half of the second operands."""
    incoming = tiles.tile_n * (dim_qk + dim_v) * 2 // (1 + tiles.pair)
    k_and_v = tiles.tile_n * (dim_qk + dim_v) * 2 * tiles.groups
    q = tiles.tile_m * dim_qk * 2
    if not target.has("mma_shared_operands"):
        return (incoming + k_and_v + q) / target.rates.shared_bytes
    # a product of m rows reads its n x 16 operand in n / 4 cycles and its m x 16 one in m / 4
    first = dim_qk / 16 * (target.mma.m / 4 + tiles.tile_n / 4 / (1 + tiles.pair))
    second = tiles.tile_n / 16 * (dim_v / 4) / (1 + tiles.pair)
    return tiles.groups * (first + second) + incoming / target.rates.shared_bytes


def tile_cycles(
    attention: Attention, target: Target, tiles: Tiles, keys: float, resident: int, extra: ElementCost | None = None
) -> float:
    """Cycles of a query tile that works on `keys` keys; `extra` as for `period`."""
    p = period(attention, target, tiles, resident, extra=extra)
    return (keys / tiles.tile_n + 1.0) * p.total + target.rates.tile_cycles


def overhead(target: Target, p: Period, resident: int, tiles_of_block: str = ALONE) -> float:
    """Cycles of a query tile beside its own iterations. The fixed part of one of an SM's blocks hides under another; several tiles of a
    block hide it under each other, but for the next Q's copy, which waits for an output that lies in its place."""
    r = target.rates
    alone = p.total + r.tile_cycles / resident
    left = r.several_share * alone + (r.copy_cycles if tiles_of_block == OVER_Q else 0.0)
    return alone if tiles_of_block == ALONE else min(alone, left)


def gains_by_several(attention: Attention, target: Target, tiles: Tiles) -> bool:
    """Whether a block had better work on several query tiles, wherever the output lies."""
    resident = resident_blocks(attention, target, tiles)
    p = period(attention, target, tiles, resident)
    return overhead(target, p, resident, OVER_Q) < overhead(target, p, resident)


def resident_blocks(attention: Attention, target: Target, tiles: Tiles) -> int:
    """Blocks that share an SM."""
    shared = shared_memory(
        target, attention.dim_qk, attention.dim_v, attention.dtype, tiles.tile_m, tiles.tile_n, tiles.stages, tiles.pair
    )
    warps = tiles.groups * target.group_warps + (target.group_warps if target.has("roles") else 0)
    if target.has("roles"):
        return 1
    return blocks_per_sm(target, warps * WARP_THREADS, target.registers_thread, shared)


def estimate(
    attention: Attention, target: Target, tiles: Tiles, batch: int, seq_q: int, seq_kv: int, kept: float | None = None,
    visited: int | None = None, extra: ElementCost | None = None, made: Shares | None = None, tiles_of_block: str = ALONE,
) -> Estimate:  # fmt: skip
    """The prediction for one call of the kernel. `extra` and `made` as for `period`, `tiles_of_block` as for `overhead`.

    kept     part of the score cells that the mask keeps (1.0 when not given), for the flop count
    visited  key tiles that all blocks of one batch entry and head visit together; from `kept` when not given
    """
    a, r = attention, target.rates
    kept = 1.0 if kept is None else kept
    heads = batch * a.heads_q
    q_tiles = -(-seq_q // tiles.tile_m)
    iterations = visited if visited is not None else round(q_tiles * -(-seq_kv // tiles.tile_n) * kept)
    resident = resident_blocks(a, target, tiles)
    p = period(a, target, tiles, resident, made, extra)
    # an SM's units are shared by its blocks: the work adds up
    cycles = heads * (iterations * p.total + q_tiles * overhead(target, p, resident, tiles_of_block)) / r.sms
    flops = 2.0 * heads * seq_q * seq_kv * kept * (a.dim_qk + a.dim_v)
    moved = _bytes(a, tiles, batch, seq_q, iterations)
    least = _bytes_least(a, batch, seq_q, seq_kv)
    seconds = max(cycles / (r.clock_ghz * 1e9), least / (r.dram_gbps * 1e9))
    bound = least / (r.dram_gbps * 1e9)
    limit = "memory" if seconds == bound else p.limit
    blocks = heads * q_tiles if tiles_of_block == ALONE else min(heads * q_tiles, r.sms * resident)
    return Estimate(seconds, limit, p, blocks, resident, heads * iterations, flops, moved, least, bound)


def _bytes(a: Attention, tiles: Tiles, batch: int, seq_q: int, iterations: int) -> float:
    """Bytes between L2 and the SMs: Q and O once, K and V once for each visit."""
    size = bytes_of(a.dtype)
    rows = batch * a.heads_q * seq_q
    visits = batch * a.heads_q * iterations * tiles.tile_n / (1 + tiles.pair)
    return float(rows * ((a.dim_qk + a.dim_v) * size + 4) + visits * (a.dim_qk + a.dim_v) * size)


def _bytes_least(a: Attention, batch: int, seq_q: int, seq_kv: int) -> float:
    """Bytes of global memory that any kernel must move: every operand read once, the results written once."""
    size = bytes_of(a.dtype)
    queries = batch * a.heads_q * seq_q * ((a.dim_qk + a.dim_v) * size + 4)
    return float(queries + batch * a.heads_kv * seq_kv * (a.dim_qk + a.dim_v) * size)
