"""What a compilation target is: a value that holds limits, rates and capabilities, and checks itself.

Passes ask `target.has("async_mma")` and read limits; they never ask which chip it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

WARP_THREADS = 32

CAPABILITIES: dict[str, str] = {
    "cp_async": "threads copy from global to shared memory asynchronously, in groups that can be waited for",
    "tma": "one thread starts the copy of a whole tile; a barrier in shared memory counts its bytes",
    "tma_store": "a tile goes from shared to global memory by one instruction",
    "mbarrier": "barriers in shared memory with phases, on which roles can wait for each other",
    "roles": "warps may be given different work and different register budgets",
    "async_mma": "matrix products run beside the warps that start them and are waited for by group",
    "mma_shared_operands": "the second operand of a product is read from shared memory by the product itself",
    "set_registers": "a warp group can give registers back and take more",
    "named_barriers": "barriers among some of a block's threads",
    "score_blocks": "a tile of a bias with a number for every pair is copied like a tile of keys, and read as scores lie in registers",
    "warp_products": "beside the products of a warp group, a warp alone can multiply a group's tiles, and has what it holds of the group's result",
    "tensor_memory": "accumulators may lie in a memory of the tensor cores",
    "mma_pairs": "one instruction multiplies for two neighbouring blocks, each of which holds half of the second operand",
    "packed_arithmetic": "one instruction adds or multiplies two float32 numbers",
}
"""Every capability a target may claim, and what it means."""


@dataclass(frozen=True)
class Mma:
    """The matrix instruction: `m` rows for `warps` warps together, n a multiple of `n_step` up to `n_max`, depth `k`."""

    m: int
    warps: int
    n_step: int
    n_max: int
    k: int


@dataclass(frozen=True)
class Rates:
    """Per SM and clock unless said otherwise; `source` tells where the figures are from.

    tensor_flops   multiply and add counted as two, 16-bit operands, float32 accumulation
    mufu           results of exp2, tanh, reciprocal
    issue          warp instructions
    issue_share    part of the issue slots that softmax code gets, by the number of its warps per scheduler: 1, 2, 3, 4
    shared_bytes   bytes of shared memory
    dram_gbps      bytes of global memory for the whole chip, 1e9 a second
    l2_bytes       capacity of the L2 cache
    clock_ghz      under load
    tile_cycles    cycles of a query tile outside its iterations: block start, first copies, output
    several_share  part of them, and of the iteration in which a query tile's pipeline fills, that is left where a block works on several
                   query tiles and the output has memory of its own; 1: not known, or that one tile a block is as good
    step_cycles    cycles of an iteration in which a block's units wait for each other
    copy_cycles    latency of a tile's copy
    fill_bytes     bytes that copies bring to an SM from the L2 cache when all SMs copy; None: no limit is known
    tensor_share   part of the peak that a long chain of products reaches (power, instruction gaps)
    element_instructions, loop_instructions
                   of softmax, for a score element, and for a warp and iteration (counted in compiled kernels)
    trusting       the same two where full tiles keep their maxima (passes/schedule/trust_maxima), which leaves O alone; None: they never do
    """

    sms: int
    clock_ghz: float
    tensor_flops: int
    mufu: int
    issue: int
    issue_share: tuple[float, ...]
    shared_bytes: int
    dram_gbps: float
    l2_bytes: int
    tile_cycles: float
    step_cycles: float
    copy_cycles: float
    tensor_share: float
    source: str
    fill_bytes: float | None = None
    several_share: float = 1.0
    element_instructions: float = 4.5
    loop_instructions: float = 105.0
    trusting: tuple[float, float] | None = None


@dataclass(frozen=True)
class RegisterPlan:
    """Registers of a thread of the copying role, of the computing role and of the role that corrects sums in tensor memory, when
    there are `groups` computing groups. `corrects`: whether that role has sums to correct, or only begins and ends them, which takes fewer."""

    groups: int
    copy: int
    compute: int
    correct: int = 0
    corrects: bool = True


NEVER, UNMASKED, STEADY = "never", "unmasked", "steady"
"""When blocks work on several query tiles: never; where nothing is masked and scores cost nothing; wherever costs are known beforehand."""


@dataclass(frozen=True)
class Manner:
    """How the loop of a kernel ran fastest on the device, by its padded head dims and computing groups.

    turns    groups take turns at the tensor cores (passes/schedule/ping_pong)
    lazy     rows keep a maximum that is nearly right (passes/schedule/lazy_rescaling)
    several  when a block works on several query tiles (passes/schedule/persistent_blocks)
    """

    dim_qk: int
    dim_v: int
    groups: int
    turns: bool
    lazy: bool
    several: str


@dataclass(frozen=True)
class Accuracy:
    """How far the resource model's times were from measured ones: relative differences over `cases` cases on `device`, their
    median and the largest, and in which case that was. `python -m attncc.bench.predictions` computes it."""

    device: str
    cases: int
    median: float
    largest: float
    case: str


@dataclass(frozen=True)
class Target:
    """One compilation target.

    name, title      how users write it, and how reports show it
    templates        the template folder
    archs            GPU architectures the kernel may be compiled for, the usual one first
    group_warps      warps of one computing group (the warps that share a row of the matrix instruction)
    splits           how a query tile may be divided: (groups, rows of each)
    shared_limit     bytes of shared memory a block may ask for; `shared_sm` an SM has
    registers_sm     32-bit registers of an SM; `registers_thread` the most for one thread
    fragment_limit   by number of computing warps: registers of a thread that S, P and O may take together
    dim_step, dim_max   head dims accepted; `dim_padding` what they are padded to a multiple of
    tile_n_step      key tile lengths are multiples of it; `tile_n_max` the longest,
                     `tile_n_usual` the longest without a hint, `tile_n_least` the shortest where there is a choice
    stages           copies of K and V that are worth having
    tensor_columns   32-bit columns of tensor memory that a block may have
    measured         shapes found best on the device for a simple score: (dim_qk, dim_v, tile_m, tile_n, groups), head dims padded.
                     They come before the resource model's choice, whose error is larger than what lies between good tiles
    measured_windows   the same where a short mask cuts keys off at both ends: shorter tiles have fewer keys outside
    manners          how their loops run best
    accuracy         how well the resource model does where it was compared with the device; None where nothing was measured
    published        what others published for the device: (what, TFLOP/s)
    """

    name: str
    title: str
    templates: str
    archs: tuple[str, ...]
    capabilities: frozenset[str]
    mma: Mma
    group_warps: int
    splits: tuple[tuple[int, int], ...]
    shared_limit: int
    shared_sm: int
    registers_sm: int
    registers_thread: int
    fragment_limit: tuple[tuple[int, int], ...]
    register_plans: tuple[RegisterPlan, ...]
    max_threads: int
    dtypes: tuple[str, ...]
    dim_step: int
    dim_max: int
    dim_padding: int
    tile_n_step: int
    tile_n_max: int
    tile_n_usual: int
    tile_n_least: int
    stages: int
    memory_spaces: tuple[str, ...]
    rates: Rates
    tensor_columns: int = 0
    measured: tuple[tuple[int, int, int, int, int], ...] = ()
    measured_windows: tuple[tuple[int, int, int, int, int], ...] = ()
    manners: tuple[Manner, ...] = ()
    accuracy: Accuracy | None = None
    published: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        problems = tuple(_problems(self))
        if problems:
            raise ValueError(f"target {self.name}: " + "; ".join(problems))

    def has(self, capability: str) -> bool:
        """Whether the target can do `capability` (a key of CAPABILITIES; KeyError otherwise)."""
        if capability not in CAPABILITIES:
            raise KeyError(f"unknown capability {capability!r}")
        return capability in self.capabilities

    def without(self, capability: str) -> Target:
        """The same target, not using `capability`."""
        return replace(self, capabilities=self.capabilities - {capability})

    def pad(self, dim: int) -> int:
        """`dim` rounded up to what is stored in shared memory and multiplied."""
        return -(-dim // self.dim_padding) * self.dim_padding

    def manner(self, dim_qk: int, dim_v: int, groups: int) -> Manner | None:
        """How loops with these head dims (padded here) and computing groups run best; None where that was not measured."""
        shape = self.pad(dim_qk), self.pad(dim_v), groups
        return next((m for m in self.manners if (m.dim_qk, m.dim_v, m.groups) == shape), None)

    def plan(self, groups: int, corrects: bool = True) -> RegisterPlan | None:
        """Register budgets for `groups` computing groups; None when the target does not move registers between roles."""
        own = [p for p in self.register_plans if p.groups == groups and (p.corrects or not corrects)]
        return min(own, key=lambda p: p.corrects != corrects, default=None)

    def fragments(self, computing_warps: int) -> int:
        """Registers of a thread that S, P and O may take when `computing_warps` warps compute; 0 when that many do not fit."""
        return next((limit for warps, limit in self.fragment_limit if computing_warps <= warps), 0)


def _problems(t: Target):
    """What contradicts itself in a target, as phrases."""
    unknown = t.capabilities - set(CAPABILITIES)
    if unknown:
        yield f"unknown capabilities {sorted(unknown)}"
    if not t.archs:
        yield "no architecture"
    if t.has("tma") and not t.has("mbarrier"):
        yield "tma needs mbarrier"
    if not (t.has("tma") or t.has("cp_async")):
        yield "no way to copy a tile"
    if t.has("set_registers") and not t.has("roles"):
        yield "set_registers needs roles"
    if t.shared_limit > t.shared_sm:
        yield "a block may have more shared memory than there is"
    if t.dim_padding % t.mma.k or t.dim_padding % t.dim_step:
        yield f"padding {t.dim_padding} is not a multiple of the matrix depth {t.mma.k} and the step {t.dim_step}"
    if t.tile_n_step % t.mma.k or t.tile_n_step % t.mma.n_step:
        yield f"key tile step {t.tile_n_step} does not fit the matrix instruction"
    if any(rows % t.mma.m for _, rows in t.splits) or t.group_warps != t.mma.warps:
        yield "a group's rows do not fit the matrix instruction"
    for plan in t.register_plans:
        yield from _plan_problems(t, plan)
    if len(t.rates.issue_share) != 4:
        yield "issue_share needs four entries"


def _plan_problems(t: Target, plan: RegisterPlan):
    threads = t.group_warps * WARP_THREADS
    if threads * (plan.copy + plan.correct + plan.groups * plan.compute) > t.registers_sm:
        yield f"register plan for {plan.groups} groups takes more than {t.registers_sm} registers"
    if any(r % 8 or not 24 <= r <= t.registers_thread for r in (plan.copy, plan.compute, *([plan.correct] if plan.correct else ()))):
        yield f"register plan for {plan.groups} groups: counts are multiples of 8 from 24 to {t.registers_thread}"
