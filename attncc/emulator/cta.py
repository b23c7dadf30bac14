"""Clusters and CTAs: shared memory, barriers, special registers, the register pool."""

from __future__ import annotations

import numpy as np

from attncc.emulator.lanes import FULL, LANE
from attncc.emulator.memory import RANK_SHIFT, SHARED_BASE, Region
from attncc.emulator.races import Clock, Shadow
from attncc.emulator.warp import Warp

SHARED_LIMIT = 232_448 + 1024


class Cluster:
    """CTAs that run together and share a cluster barrier."""

    def __init__(self, machine, index: tuple[int, int, int]):
        self.machine, self.index = machine, index
        launch = machine.launch
        self.dims = launch.cluster
        self.ctas: list[Cta] = []
        first = None
        for z in range(self.dims[2]):
            for y in range(self.dims[1]):
                for x in range(self.dims[0]):
                    where = tuple(i * d + o for i, d, o in zip(index, self.dims, (x, y, z)))
                    if all(a < g for a, g in zip(where, launch.grid)):
                        self.ctas.append(Cta(self, where, len(self.ctas)))
                        first = first or self.ctas[0]
        self.arrived: set[int] = set()
        self.generation = 0
        self.clock = Clock.empty(machine.total_warps)
        self.done_clock = Clock.empty(machine.total_warps)

    def finished(self) -> bool:
        """Every warp of every CTA has exited."""
        return all(not cta.running for cta in self.ctas)

    def retire(self) -> None:
        """End-of-life checks; the register files are free again."""
        for cta in self.ctas:
            cta.final_checks()
            self.machine.program.files.extend(w.file for w in cta.warps)

    def check_barrier(self) -> None:
        """Release the cluster barrier once every live warp has arrived."""
        live = {w.gid for cta in self.ctas for w in cta.running}
        if self.arrived and live <= self.arrived:
            self.arrived = set()
            self.generation += 1
            self.done_clock.join(self.clock)
            self.machine.events += 1


class Cta:
    """One thread block."""

    def __init__(self, cluster: Cluster, index: tuple[int, int, int], rank: int):
        self.cluster, self.machine, self.index, self.rank = cluster, cluster.machine, index, rank
        machine, launch = self.machine, self.machine.launch
        grid = launch.grid
        self.linear = index[0] + grid[0] * (index[1] + grid[1] * index[2])
        self.threads = int(np.prod(launch.block))
        self.first_gid = self.linear * machine.warps_per_cta
        self.symbols: dict[str, int] = {}
        self._make_shared(machine.program, launch)
        self._make_params(launch)
        self.mbars: dict[int, object] = {}
        self.bars: dict[int, object] = {}
        self.free_registers = 0
        self.tmem = None
        self.extra: dict[str, object] = {}
        self.running: list[Warp] = []
        for i in range(machine.warps_per_cta):
            lanes = min(32, self.threads - 32 * i)
            self.running.append(Warp(machine.program, self, i, FULL if lanes == 32 else (1 << lanes) - 1))
        self.warps = list(self.running)

    # -- memory ----------------------------------------------------------------------------------------------------

    def _make_shared(self, program, launch) -> None:
        """Lay out static shared symbols, then the dynamic block, above the 1 KB that the system reserves."""
        offset = SHARED_BASE
        base = self.rank << RANK_SHIFT
        symbols = {**program.module.symbols, **program.kernel.symbols}
        shared = [s for s in symbols.values() if s.space == "shared"]
        for symbol in sorted(shared, key=lambda s: s.size == 0):
            offset = -(-offset // symbol.align) * symbol.align
            self.symbols[symbol.name] = base + offset
            offset += symbol.size
        size = offset + launch.shared_bytes
        data = np.full(size, 0xFF, np.uint8)
        granule = max(1, program.min_shared_access)
        first, rows = self._reader_rows(launch)
        shadow = Shadow(self.machine, "shared", size, granule, first, rows)
        self.shared = Region(f"shared memory of cta{self.index}", base, data, shadow)

    def _reader_rows(self, launch) -> tuple[int, int]:
        """(first warp, count) of the reader history: the cluster's warps, or all of the grid's where they are not neighbours."""
        if launch.cluster[1:] != (1, 1):
            return 0, self.machine.total_warps
        leader = self if self.rank == 0 else self.cluster.ctas[0]
        return leader.first_gid, self.machine.warps_per_cta * len(range(*self._row(launch)))

    def _row(self, launch) -> tuple[int, int]:
        """x coordinates of the cluster that exist in the grid."""
        start = self.cluster.index[0] * launch.cluster[0]
        return start, min(start + launch.cluster[0], launch.grid[0])

    def _make_params(self, launch) -> None:
        data = np.frombuffer(launch.params, np.uint8)
        self.params = Region("kernel parameters", 0, data)
        for param in self.machine.program.kernel.params:
            self.symbols[param.name] = param.offset
        offset = 0
        for symbol in self.machine.program.kernel.symbols.values():
            if symbol.space == "local":
                offset = -(-offset // symbol.align) * symbol.align
                self.symbols[symbol.name] = offset
                offset += symbol.size
        self.local_bytes = offset
        for name, address in self.machine.memory.symbols.items() if hasattr(self.machine.memory, "symbols") else ():
            self.symbols[name] = address

    def shared_region(self, address: int) -> Region | None:
        """Shared memory of the CTA an address belongs to."""
        rank = (address & ((1 << 56) - 1)) >> RANK_SHIFT
        return self.cluster.ctas[rank].shared if rank < len(self.cluster.ctas) else None

    def cta_of(self, address: int) -> Cta | None:
        """The CTA of the cluster an address belongs to."""
        rank = (address & ((1 << 56) - 1)) >> RANK_SHIFT
        return self.cluster.ctas[rank] if rank < len(self.cluster.ctas) else None

    def space_region(self, kind: str) -> Region | None:
        """Parameter or constant space."""
        return self.params if kind == "param" else None

    def symbol_address(self, name: str) -> int:
        """Address of `symbol+offset` within its own state space."""
        symbol, offset = name.rsplit("+", 1)
        return self.symbols[symbol] + int(offset)

    # -- special registers ---------------------------------------------------------------------------------------------

    def special(self, name: str, w: Warp):
        """Value of a special register: a scalar or a row of 32."""
        launch, base, _, axis = self.machine.launch, *name.partition(".")
        dims = {"x": 0, "y": 1, "z": 2}.get(axis)
        thread = w.id * 32 + LANE
        bx, by, _ = launch.block
        tid = (thread % bx, thread // bx % by, thread // (bx * by))
        vectors = {
            "%tid": tid,
            "%ntid": launch.block,
            "%ctaid": self.index,
            "%nctaid": launch.grid,
            "%clusterid": self.cluster.index,
            "%cluster_nctaid": launch.cluster,
            "%nclusterid": tuple(-(-g // c) for g, c in zip(launch.grid, launch.cluster)),
            "%cluster_ctaid": tuple(i % c for i, c in zip(self.index, launch.cluster)),
        }
        if base in vectors and dims is not None:
            return vectors[base][dims]
        scalars = {
            "%laneid": LANE,
            "%warpid": w.id,
            "%nwarpid": len(self.warps) if hasattr(self, "warps") else 0,
            "%lanemask_eq": 1 << LANE,
            "%lanemask_lt": (1 << LANE) - 1,
            "%lanemask_le": (2 << LANE) - 1,
            "%lanemask_gt": ~((2 << LANE) - 1) & FULL,
            "%lanemask_ge": ~((1 << LANE) - 1) & FULL,
            "%smid": self.linear % 132,
            "%nsmid": 132,
            "%gridid": 1,
            "%cluster_ctarank": self.rank,
            "%cluster_nctarank": int(np.prod(launch.cluster)),
            "%is_explicit_cluster": int(launch.cluster != (1, 1, 1)),
            "%dynamic_smem_size": launch.shared_bytes,
            "%total_smem_size": len(self.shared.data),
            "%clock": 0,
        }
        if base in scalars:
            return scalars[base]
        from attncc.emulator.findings import PtxError

        raise PtxError(f"unknown special register {name}")

    # -- life ------------------------------------------------------------------------------------------------------------

    def warp_done(self, w: Warp) -> None:
        """A warp has exited: barriers that count live warps may complete."""
        self.running.remove(w)
        w.finish()
        for bar in self.bars.values():
            bar.check(self)
        self.cluster.check_barrier()
        if not self.running:
            self._check_pending_reads(w)

    def _check_pending_reads(self, w: Warp) -> None:
        """Shared memory vanishes with the last warp of a CTA: nothing may still use it."""
        for operation in list(self.machine.pending):
            if operation.data.get("uses_shared") is self:
                w.report(
                    "exit-pending", f"the CTA ends while {operation.name} still uses its shared memory", pc=operation.pc
                )

    def final_checks(self) -> None:
        """Leftovers at the end of the cluster."""
        for operation in [o for o in self.machine.pending if o.cta is self]:
            self.machine.complete(operation)
        for check in self.extra.values():
            if hasattr(check, "final_check"):
                check.final_check(self)
