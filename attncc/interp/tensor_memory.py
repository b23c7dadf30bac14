"""Which buffer's contents the columns of tensor memory hold, and what is wrong with reading another."""

from __future__ import annotations

from attncc.ir import schedule as l3
from attncc.ir.schedule_ops import parts, shared_columns, tensor_places


class TensorMemory:
    """What was written last, for each part of each buffer that roles hand on, in each block; `overlaps` are the places that share columns."""

    def __init__(self, schedule: l3.Schedule):
        self.overlaps: dict[tuple[str, int], set[tuple[str, int]]] = {}
        for a, b in shared_columns(tensor_places(schedule)) if parts_exist(schedule) else ():
            self.overlaps.setdefault(a, set()).add(b)
            self.overlaps.setdefault(b, set()).add(a)
        self.mixed = frozenset(name for name, _ in self.overlaps)
        self.valid: frozenset[tuple[str, int, int]] = frozenset()
        self.known: frozenset[tuple[str, int, int]] = frozenset()

    def clone(self) -> TensorMemory:
        new = TensorMemory.__new__(TensorMemory)
        new.__dict__.update(self.__dict__)
        return new

    def key(self) -> tuple:
        return self.valid, self.known

    def is_shared(self, name: str) -> bool:
        """Whether another buffer has some of its columns, so that the order of writes matters."""
        return name in self.mixed

    def write(self, name: str, part: int, half: int = 0) -> None:
        place = (name, part, half)
        self.valid = self.valid.difference((*other, half) for other in self.overlaps.get((name, part), ())) | {place}
        self.known = self.known | {place}

    def read(self, name: str, part: int, half: int = 0) -> tuple[str, str] | None:
        """(kind of fault, sentence), or None when the buffer's own contents are there."""
        if (name, part, half) in self.valid:
            return None
        if (name, part, half) not in self.known:
            return "uninitialised", f"{name} of part {part} holds nothing yet"
        return "overwritten", f"{name} of part {part} was written over before it was read"


def parts_exist(schedule: l3.Schedule) -> bool:
    """Whether anything lies in tensor memory at all."""
    return any(b.space == "tensor" for b in schedule.buffers) and parts(schedule) > 0
