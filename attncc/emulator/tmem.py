"""Tensor memory of a CTA: 128 lanes x 512 columns of 32 bits, its allocator and its access history (PTX ISA 9.7.17.1).

An address holds the lane in bits 16 and up and the column below. History is kept per 16 lanes and column.
"""

from __future__ import annotations

import numpy as np

from attncc.emulator.races import Shadow

LANES, COLUMNS = 128, 512
ROWS = LANES // 16


class TmemShadow(Shadow):
    """Shadow whose order findings are named for tensor memory."""

    def _rename(self, agent):
        base = agent.report

        def report(kind, message, lane=-1, severity="error"):
            names = {
                "stale-read": "tcgen05-order",
                "overwrite": "tcgen05-order",
                "write-write": "tcgen05-order",
                "uninitialised-memory": "uninitialised-memory",
            }
            base(names.get(kind, kind), message, lane, severity)

        return report

    def read(self, agent, idx, uninit="error"):
        """As Shadow.read."""
        saved, agent.report = agent.report, self._rename(agent)
        super().read(agent, idx, uninit)
        agent.report = saved

    def write(self, agent, idx, same=None):
        """As Shadow.write."""
        saved, agent.report = agent.report, self._rename(agent)
        super().write(agent, idx, same)
        agent.report = saved


class Tmem:
    """Storage and allocator."""

    def __init__(self, cta):
        self.cta = cta
        self.data = np.full((LANES, COLUMNS), 0xFFFFFFFF, np.uint32)
        self.shadow = TmemShadow(
            cta.machine,
            "tensor memory granule ",
            ROWS * COLUMNS,
            1,
            cta.shared.shadow.first_gid,
            len(cta.shared.shadow.rd),
        )
        self.blocks: dict[int, int] = {}
        self.relinquished = False

    @classmethod
    def of(cls, cta) -> Tmem:
        """The CTA's tensor memory, made on first use."""
        if cta.tmem is None:
            cta.tmem = cls(cta)
            cta.extra["tmem"] = cta.tmem
        return cta.tmem

    def allocate(self, columns: int, pick) -> int | None:
        """First column of a free block, or None; `pick` chooses among the aligned candidates."""
        free = [
            c
            for c in range(0, COLUMNS, columns)
            if all(c + columns <= start or start + size <= c for start, size in self.blocks.items())
        ]
        if not free:
            return None
        base = pick(free)
        self.blocks[base] = columns
        return base

    def owned(self, column: int, count: int) -> bool:
        """Do columns [column, column + count) lie inside one allocated block?"""
        return any(start <= column and column + count <= start + size for start, size in self.blocks.items())

    def granules(self, lane: int, lanes: int, column: int, count: int) -> np.ndarray:
        """Granules of a rectangle, sorted."""
        rows = np.arange(lane // 16, (lane + lanes - 1) // 16 + 1)
        return (rows[:, None] * COLUMNS + np.arange(column, column + count)).ravel()

    def check(self, report, lane: int, lanes: int, column: int, count: int) -> bool:
        """Is the rectangle inside allocated tensor memory? A finding if not."""
        if lane + lanes > LANES or column + count > COLUMNS:
            report(
                "tmem",
                f"lanes {lane}..{lane + lanes - 1}, columns {column}..{column + count - 1} lie outside tensor memory",
            )
            return False
        if not self.owned(column, count):
            have = ", ".join(f"{s}..{s + n - 1}" for s, n in self.blocks.items()) or "none"
            report("tmem", f"columns {column}..{column + count - 1} are not allocated (allocated: {have})")
        return True

    def final_check(self, cta) -> None:
        """All columns must have been freed."""
        if self.blocks:
            from attncc.emulator.findings import Finding

            held = ", ".join(f"{s}..{s + n - 1}" for s, n in self.blocks.items())
            cta.machine.log.add(
                Finding(
                    "tmem",
                    f"the CTA ends with tensor-memory columns {held} still allocated",
                    cta=cta.index,
                    seed=cta.machine.log.seed,
                )
            )
