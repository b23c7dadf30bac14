"""L3: who does what, when. Roles with their operations in order, channels, buffers, registers. Nothing is left to decide.

A schedule is one thread block (CTA) that computes the query tile its block index names, or, where its roles have a Place, several
query tiles one after the other. Each role is a set of warps that run the same body; a role of several warp groups runs its
body once for each group, on its own `rows_per_group` rows.

**Channels** carry tiles from a producer role to consumer roles through `stages` copies of a buffer, as a ring. For each
stage there is a full and an empty barrier:

    producer:  acquire (wait until empty) -> copy or compute -> commit (mark full)
    consumer:  wait (until full) -> use -> release (mark empty; every consumer warp group arrives once)

A role has one position in each channel; commit (producer) and release (consumer) move it on. `kind` says what completes a
stage: "tma" (bytes arrive), "cp_async" (copies of the same threads, waited for by group), "mbarrier" (threads or an MMA
arrive). For a "cp_async" channel the role that copies also consumes, there are no barriers between roles: in a finished
schedule it has no Acquire and no Wait; `CopyWait` waits until at most `pending` later groups are in flight, `Sync` makes all
warps' copies visible and keeps a stage from being refilled while another warp reads it, and Release makes no code but
moves the position on. A Commit whose Copy was skipped by an `If` closes an empty group, so that counts stay the same.

**MMA** operations are asynchronous when `asynchronous` is set (WGMMA, tcgen05): operands may not be overwritten and the result not
be read until an MmaWait with few enough pending groups.

**Weights** are made in place: SoftmaxStep and Weights (with `weights` = `scores`) turn the float32 score tile into weights; a
Convert then rounds them into the MMA operand.

**Tensor memory.** A buffer in space "tensor" lies in the memory of the tensor cores, which has one lane for each row of a part
of the query tile. Part g (the rows of computing group g) starts at column `column + g * pitch`, counted in 32-bit columns. Roles that
compute on it hold a part's rows one to a thread. Products into it are made in order by the role that issues them, and nothing
of them is seen by others before a Commit or Release of that role, which takes effect when all its products so far are done.
A `private` channel is a ring for each part: its operations mean the part at hand, which is the group's own, or that of a
`ForParts`. The producer of such a channel owns the buffer between Acquire and Commit, the consumer between Wait and Release.

**Pairs.** With `cluster` = 2 two neighbouring blocks of the grid work on two query tiles of one head. A role with `pair` runs in the first
of them only, for both: its products read the first operands of each block and write each block's results, and the second operand is
what both blocks hold together, half of its rows (`transposed`) or of its columns in each. A channel with `pair` has one end at such a role.
Where that role consumes, its stage is full when both blocks' producers have committed it, and a release empties the stage of both;
where it produces, its commit fills both blocks' stages, and they are empty when the consumers of both have left them. `pair_half` is the
block's number in its pair. A pair's blocks end together; before that each producer of a channel that such a role empties must have heard of
every release (Drain), since what arrives at a block that has ended is an error.

**Expressions** use the L2 names plus names bound by Let; `block_x`, `block_y`, `block_z` are the block's indices, `group`
the warp group's number within its role. A Let is visible from where it stands to the end of the body it stands in, what a
ColFetch names in its whole role. The prelude binds `q_tiles`, `kv_tiles`, `q_tile`, `b`, `h`, `hkv`; `kv_tile` is bound where a tile is
worked on. Where sequences are packed (ir.packing) the prelude goes on to bind the sequence's first rows and its own seq_q, seq_kv, off, q_tiles and kv_tiles; rows of a Copy or Store
count from the first row, and what is past the sequence's last is zero or not written.

A group's rows of a shared buffer of tile_m rows are private to it where it alone reads and writes them: Q and its alias OUT are
laid out group by group, so no other group needs to be waited for before OUT is written over Q.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from attncc.ir.attention import Attention
from attncc.ir.expr import Expr
from attncc.ir.tile import ColLet, Finalize, Let, Mask, Remark, RowLet, Score, Store, TileTable, Weights

BLOCK_VARIABLES = ("block_x", "block_y", "block_z")
BLOCK_BARRIER = "block"
"""The barrier of all threads of the block; it needs no declaration."""
GROUP_VARIABLE = "group"
"""In a role of several warp groups: the number of the group that runs the body, from 0."""
PAIR_VARIABLE = "pair_half"
"""In a schedule of pairs: the number of the block in its pair, 0 or 1."""
CHANNEL_KINDS = ("tma", "cp_async", "mbarrier")


@dataclass(frozen=True)
class Buffer:
    """`stages` copies of rows x cols of `dtype`. `alias` names a buffer whose memory it shares (their lives do not overlap).

    Register buffers hold the rows of one warp group (`rows` is then rows_per_group). Tensor buffers hold the rows of one part;
    `column` and `pitch` are their place.
    """

    name: str
    space: str
    rows: int
    cols: int
    dtype: str
    stages: int = 1
    alias: str | None = None
    column: int = 0
    pitch: int = 0


@dataclass(frozen=True)
class Channel:
    """A ring of `stages` buffers from role `producer` to role `consumer`; see the module's text.

    `arrivals` is how many consumer arrivals empty a stage (warp groups for "tma"/"mbarrier"; 0 for "cp_async"), `bytes` what
    one stage receives (0 when threads arrive). `second` is another role that reads its stages: each is empty when both have released it.
    `pair`: it connects both blocks of a pair to a role that works for both; arrivals and bytes are those of one block.
    """

    name: str
    kind: str
    buffer: str
    stages: int
    producer: str
    consumer: str
    arrivals: int
    bytes: int
    private: bool = False
    second: str | None = None
    pair: bool = False

    @property
    def consumers(self) -> tuple[str, ...]:
        """The roles that wait for stages and release them."""
        return (self.consumer,) if self.second is None else (self.consumer, self.second)


@dataclass(frozen=True)
class Barrier:
    """A named barrier among `threads` threads (of one role or several).

    With `copies` > 1 there is one copy for each warp group of the role that uses it: `Sync` meets at the own group's copy,
    `Arrive` arrives at the next group's (the last one's next is the first). So `threads` = 128 makes a barrier inside each group, and
    `threads` = 256 the ping-pong in which a group waits for its turn (Sync) and gives the turn on (Arrive); the last
    group gives the first turn: If(group == groups - 1, Arrive).
    """

    name: str
    threads: int
    copies: int = 1


@dataclass(frozen=True)
class If:
    condition: Expr
    body: tuple[Op, ...]


@dataclass(frozen=True)
class For:
    """`counter` runs from `begin` up to `end` exclusive; `label` is shown in the generated file ("full tiles")."""

    counter: str
    begin: Expr
    end: Expr
    label: str
    body: tuple[Op, ...]


@dataclass(frozen=True)
class ForParts:
    """The body once for each part of the query tile (the rows of each computing group), with `group` the part's number."""

    body: tuple[Op, ...]


@dataclass(frozen=True)
class Acquire:
    channel: str


@dataclass(frozen=True)
class Copy:
    """Starts the copy of tile number `tile` of argument `tensor` into the channel's current stage.

    With `at`, `tensor` is a declared tensor: its rows of query tile `q_tile` and columns of key tile `tile`, the indices
    before those two being `at` (brought to the last element where they exceed it). With `column` the buffer is narrower than the
    tensor's rows: it gets that one of their pieces of the buffer's width.
    """

    channel: str
    tensor: str
    tile: Expr
    at: tuple[Expr, ...] | None = None
    column: Expr | None = None


@dataclass(frozen=True)
class Commit:
    """The current stage's copies are all started ("tma": the bytes will mark it full; "cp_async": closes the group)."""

    channel: str


@dataclass(frozen=True)
class CopyWait:
    """cp.async only: waits until at most `pending` of this role's committed groups are unfinished."""

    pending: int


@dataclass(frozen=True)
class Wait:
    channel: str


@dataclass(frozen=True)
class Release:
    channel: str


@dataclass(frozen=True)
class Drain:
    """Waits until every stage that this role has filled is empty again; nothing is filled after it."""

    channel: str


@dataclass(frozen=True)
class Sync:
    """Arrives at `barrier` and waits until all its threads have arrived; "block" is the whole thread block."""

    barrier: str


@dataclass(frozen=True)
class Arrive:
    """Arrives at a named barrier without waiting (the ping-pong between consumer warp groups)."""

    barrier: str


@dataclass(frozen=True)
class StoreWait:
    """Waits until this warp group's asynchronous stores have read their shared buffers (what they store may still be under way)."""


@dataclass(frozen=True)
class Place:
    """From here on the role works on the query tile that q_tile, h, hkv and b name here: q_idx, copies and stores go by them.

    For blocks that work on several query tiles. A role without one stands at the tile that the prelude names from its start.
    """


@dataclass(frozen=True)
class ColFetch:
    """Starts to load `expr`, an element of a tensor for each column of key tile number `tile`, into registers: that of the columns whose
    numbers the thread makes for its group. Nothing waits for it.

    `expr` depends on kv_idx but not on q_idx, and no index of it is an element. A ColLet in shared memory (without a slot) reads it by its
    `name`, for that key tile of that query tile only; it holds until the next fetch of that name.
    """

    name: str
    tile: Expr
    expr: Expr


@dataclass(frozen=True)
class SetRegisters:
    """Registers a thread of this role from here on (setmaxnreg); `grow` when it is an increase."""

    count: int
    grow: bool


@dataclass(frozen=True)
class Fill:
    """Every element of a register or tensor buffer := value (accumulators, row sums 0, row maxima -inf)."""

    dst: str
    value: float


@dataclass(frozen=True)
class Mma:
    """dst := a . b^T (`transposed`) or a . b; added to dst when `accumulate`. Shared operands are channel or plain buffers.

    A shared operand that is a channel's buffer means its current stage in this role.
    """

    dst: str
    a: str
    b: str
    transposed: bool
    accumulate: bool
    asynchronous: bool


@dataclass(frozen=True)
class MmaWait:
    """Waits until at most `pending` of this warp group's asynchronous MMAs are unfinished."""

    pending: int


@dataclass(frozen=True)
class SoftmaxStep:
    """Row statistics of one score tile: updates m and l, turns `scores` into weights in place, leaves the factor by which
    the accumulator must be multiplied in `correction`. Definition as ir.tile.Softmax.

    `first`: nothing came before (m = -inf, l = 0 are not read, no correction is made).
    `guard`: a row may still have no kept key (its maximum may be -inf); false only where every row is known to keep one.
    `slack`: a row keeps its old m while the new maximum exceeds it by no more than this much in the exponent of 2, so that its
    weights reach 2**slack and its correction is exactly 1 (FlashAttention-4's lazy rescaling).
    `polynomial`: of 16 neighbouring pairs of columns, how many take 2**x by a polynomial instead of the special function unit: weights
    within 2**-13 of themselves, and 2**-125 instead of less.
    `half`: "maximum" sets m and the correction alone, "weights" then does the rest, so that others get the correction early.
    `maximum`: with `first` or `sets` m of a row that has a key here, and had none before, becomes the row's maximum, at least that number;
    without, it becomes that number. A row's m that is set stays, and no correction is made.
    `sums`: the sums of the tile's weights go to that buffer, and l is multiplied by the correction only.
    `keeps` (with `sums`): every row keeps the m it has, whatever the scores are: no maximum is taken, no correction made, l not touched. A weight
    may be too large for its type, and NaN where m is -inf; a Repair must follow.
    `cap` (with `maximum`): the scores are tanh(cap * x) of the x in `scores`; of 16 neighbouring pairs of columns `odd` take it by an odd
    polynomial, in warps none of whose cap * x is beyond 1.
    """

    scores: str
    row_max: str
    row_sum: str
    correction: str
    multiplier: float
    first: bool
    guard: bool
    slack: float = 0.0
    half: str = "both"
    polynomial: int = 0
    maximum: float | None = None
    sets: bool = False
    cap: float | None = None
    odd: int = 0
    sums: str | None = None
    keeps: bool = False


@dataclass(frozen=True)
class Rescale:
    """Every row of `dst` is multiplied by its `factor`; with `seldom`, warps whose factors are all 1 skip it."""

    dst: str
    factor: str
    seldom: bool = False


@dataclass(frozen=True)
class Repair:
    """Warps that have a row whose number in `sums` is more than `limit` or NaN do the body for all their rows; the others pass over it.

    What the body reads must still be there: its products (not asynchronous, each warp its own rows) read the stages that the tile's own products
    read, its scores the numbers of columns and distances that the group has staged for the tile.
    """

    sums: str
    limit: float
    body: tuple[Op, ...]


@dataclass(frozen=True)
class Add:
    """Every number of `dst` has that of `src`, a buffer of the same size, added to it."""

    dst: str
    src: str


@dataclass(frozen=True)
class Convert:
    """dst := src rounded to dst's dtype: register to register laid out as an MMA operand, or register to a shared buffer
    (the group's own rows; made visible to asynchronous copies, so that after a Sync of the group a Store may read it). With
    tensor memory also tensor to register, register to tensor, and tensor to shared.

    `factor`: each row is multiplied by its number in that buffer first.
    """

    dst: str
    src: str
    factor: str | None = None


Op = Union[
    Let, RowLet, ColLet, ColFetch, If, For, ForParts, Acquire, Copy, Commit, CopyWait, Wait, Release, Drain, Sync, Arrive, StoreWait, Place, SetRegisters, Fill,
    Mma, MmaWait, Score, Mask, SoftmaxStep, Weights, Rescale, Repair, Add, Convert, Finalize, Store,
]  # fmt: skip


@dataclass(frozen=True)
class Role:
    """`warps` warps from `first_warp` on that run `body`, as `groups` groups of `rows_per_group` tile rows each.

    Producers have groups = 1 and rows_per_group = 0. `registers` is the budget of a thread (None: the launch's). With `pair` the
    first block of a pair runs the body for both.
    """

    name: str
    first_warp: int
    warps: int
    groups: int
    rows_per_group: int
    registers: int | None
    body: tuple[Op, ...]
    pair: bool = False


@dataclass(frozen=True)
class Schedule:
    """A complete kernel for one target.

    `grid` gives the three grid sizes over batch, seq_q, seq_kv, q_tiles; `prelude` binds q_tile, h, b (and more) from the block
    indices for every role. `cluster` is 2 where neighbours in the first direction of the grid are pairs.
    """

    attention: Attention
    target: str
    tile_m: int
    tile_n: int
    threads: int
    grid: tuple[Expr, Expr, Expr]
    buffers: tuple[Buffer, ...]
    channels: tuple[Channel, ...]
    barriers: tuple[Barrier, ...]
    prelude: tuple[Op, ...]
    roles: tuple[Role, ...]
    table: TileTable | None = None
    blocks_per_sm: int = 1
    remarks: tuple[Remark, ...] = ()
    cluster: int = 1

    def buffer(self, name: str) -> Buffer:
        return next(b for b in self.buffers if b.name == name)

    def channel(self, name: str) -> Channel:
        return next(c for c in self.channels if c.name == name)
