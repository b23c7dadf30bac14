"""What the emulator reports: findings, and the errors that stop it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

#: Every finding kind, with its meaning. `Finding.kind` is always one of these names.
KINDS = {
    "deadlock": "no warp can make progress",
    "livelock": "warps keep running and nothing changes",
    "stale-read": "read of data that no wait or barrier has ordered after its write",
    "write-write": "two writes that nothing orders",
    "overwrite": "a buffer is overwritten while a reader that nothing orders before may still read it",
    "proxy-fence": "a generic write used by the async proxy with no fence.proxy.async in between",
    "accumulator": "wgmma registers touched while the asynchronous MMA may still use them",
    "wgmma-fence": "registers handed to wgmma with no wgmma.fence after their last write",
    "tx-count": "expect_tx bytes and copied bytes do not add up",
    "mbarrier": "an mbarrier used in a way its state does not allow",
    "named-barrier": "participants of a named barrier disagree",
    "uninitialised-register": "a register is read before any write",
    "uninitialised-memory": "shared or local memory is read before any write",
    "out-of-bounds": "an access outside every allocation",
    "misaligned": "an address that is not a multiple of the access size",
    "divergence": "an instruction that needs a converged warp or warp group runs without one",
    "register-pool": "setmaxnreg asks for registers that can never become free, or breaks its rules",
    "descriptor": "a matrix or tensor-map descriptor field that the operation does not accept",
    "exit-pending": "a CTA ends while an asynchronous operation still uses its memory",
    "trap": "the kernel executed trap",
    "tmem": "tensor-memory allocation or addressing broken",
    "tcgen05-order": "tensor memory used with no wait, commit or fence ordering it",
}


@dataclass(frozen=True)
class Finding:
    """One defect seen at run time; `where()` renders its position."""

    kind: str
    message: str
    ptx_line: int = 0
    source: str = ""
    cta: tuple[int, int, int] = (0, 0, 0)
    warp: int = -1
    lane: int = -1
    seed: int = 0
    severity: str = "error"
    instruction: str = ""

    def where(self) -> str:
        """PTX line, source line, CTA, warp and lane in one phrase."""
        parts = [f"ptx:{self.ptx_line}"] if self.ptx_line else []
        if self.source:
            parts.append(self.source)
        if self.warp >= 0:
            parts.append(f"cta{self.cta} warp {self.warp}" + (f" lane {self.lane}" if self.lane >= 0 else ""))
        return ", ".join(parts)

    def __str__(self) -> str:
        text = f"{self.severity}[{self.kind}] {self.message} ({self.where()}; seed {self.seed})"
        return text + (f"\n    {self.instruction}" if self.instruction else "")


class PtxError(Exception):
    """PTX that the emulator does not know or cannot accept; names the instruction and its line."""


class StopEmulation(Exception):
    """Raised inside a run after a finding that leaves no sensible way to go on."""


@dataclass
class FindingLog:
    """Collects findings of one run: errors once per kind and PTX line, warnings once per kind and source line."""

    seed: int = 0
    items: list[Finding] = field(default_factory=list)
    _seen: set[tuple] = field(default_factory=set)

    def add(self, finding: Finding) -> None:
        """Keep `finding` unless one like it is there already."""
        place = (
            finding.source if finding.severity == "warning" and finding.source else finding.ptx_line or finding.message
        )
        key = (finding.kind, finding.severity, place)
        if key not in self._seen:
            self._seen.add(key)
            self.items.append(finding)

    def errors(self) -> list[Finding]:
        """Findings of severity `error`."""
        return [f for f in self.items if f.severity == "error"]


def summary(findings: Iterable[Finding]) -> str:
    """Findings as text, one per paragraph."""
    return "\n".join(str(f) for f in findings)
