"""What the machine of a schedule knows: of each worker, and of each stage of a ring. And the names of faults."""

from __future__ import annotations

from dataclasses import dataclass, field

from attncc.ir import schedule as l3

FAULTS = ("deadlock", "overwritten", "unfinished", "uninitialised", "protocol", "barrier", "never read")


class Fault(Exception):
    """Something a schedule must not do. `kind` is one of FAULTS; `worker` and `op` say who and what."""

    def __init__(self, kind: str, message: str):
        super().__init__(f"{kind}: {message}")
        self.kind, self.message = kind, message


def ring_name(channel: l3.Channel, part: int) -> str:
    """The ring of one part of a private channel."""
    return f"{channel.name}.{part}"


def in_half(name: str, half: int) -> str:
    """A ring or a buffer of one block of a pair: the first block's go by their own names."""
    return f"{name}@{half}" if half else name


@dataclass(frozen=True)
class Worker:
    """One warp group of a role, and its operations in order with the control flow resolved."""

    role: str
    group: int
    threads: int
    ops: tuple
    parts: tuple[int, ...] = ()
    """The part of the query tile that each operation works on; the group's own when not given."""
    half: int = 0
    """The number of its block in a pair."""

    @property
    def name(self) -> str:
        return in_half(f"{self.role}[{self.group}]", self.half)


@dataclass
class Own:
    """The state of one worker."""

    pc: int = 0
    filled: dict[str, int] = field(default_factory=dict)
    """By channel: stages committed."""
    used: dict[str, int] = field(default_factory=dict)
    """By channel: stages released."""
    acquired: dict[str, bool] = field(default_factory=dict)
    """By channel: an acquired stage, and whether a copy has started in it."""
    waited: frozenset[str] = frozenset()
    products: tuple = ()
    """Unfinished asynchronous products, oldest first: (destination, register operands, (channel, position) operands)."""
    open_group: tuple = ()
    groups: tuple = ()
    """Closed groups of copies that may be in flight: tuples of (channel, position)."""
    meetings: int = 0
    """Times this worker has passed the block's barrier."""
    arrived: tuple | None = None
    """The barrier at which it waits and the round it waits for."""
    known: frozenset[str] = frozenset()
    """Register buffers that hold something."""
    unseen: frozenset[str] = frozenset()
    """Shared buffers written since the last Sync."""
    storing: frozenset[tuple[str, int]] = frozenset()
    """Shared buffers, and the part of each, that an asynchronous store may still read."""
    reading: frozenset[str] = frozenset()
    """Rings whose stage at hand is read by products into tensor memory: until its release, which takes effect when they are done."""
    drained: frozenset[str] = frozenset()
    """Rings of which this worker has seen all stages empty since it filled one."""

    def clone(self) -> Own:
        new = Own.__new__(Own)
        new.__dict__.update(self.__dict__)
        new.filled, new.used, new.acquired = dict(self.filled), dict(self.used), dict(self.acquired)
        return new


@dataclass
class Stage:
    """One stage of a ring: how often it was filled and emptied, and who has a part in it."""

    full: int = 0
    empty: int = 0
    arrivals: int = 0
    landing: int = 0
    """Copies under way ("tma")."""
    committed: int = 0
    """Producers that have committed it: of a pair both must."""
    parts: dict[int, tuple[int, int | None]] = field(default_factory=dict)
    """By worker ("cp_async"): the position it copied last, and after how many meetings it had waited for it (None: not yet)."""
    left: dict[int, int] = field(default_factory=dict)
    """By worker ("cp_async"): meetings passed when it released the stage last."""

    def clone(self) -> Stage:
        new = Stage.__new__(Stage)
        new.__dict__.update(self.__dict__)
        new.parts, new.left = dict(self.parts), dict(self.left)
        return new

    def key(self) -> tuple:
        own = self.full, self.empty, self.arrivals, self.landing, self.committed
        return (*own, *sorted(self.parts.items()), *sorted(self.left.items()))
