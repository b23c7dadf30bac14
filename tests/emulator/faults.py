"""Planted faults: edits of the PTX (or of the kernel) of a correct program, with the findings each must cause."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fault:
    """`change` edits the PTX of kernel `kernel`; one of `kinds` must be found within 8 seeds."""

    name: str
    kernel: str
    change: Callable[[str], str] | None
    kinds: frozenset[str]
    options: dict = field(default_factory=dict)


def swap(pattern: str, new: str, nth: int = 0, last: bool = False) -> Callable[[str], str]:
    """Replace the nth match of a regular expression; it is an error if there is none."""

    def change(text: str) -> str:
        found = list(re.finditer(pattern, text))
        match = found[-1 if last else nth]
        return text[: match.start()] + match.expand(new) + text[match.end() :]

    return change


def drop(pattern: str, nth: int = 0, last: bool = False) -> Callable[[str], str]:
    """Remove the nth match."""
    return swap(pattern, "", nth, last)


def every(pattern: str, new: str) -> Callable[[str], str]:
    """Replace all matches."""

    def change(text: str) -> str:
        text, count = re.subn(pattern, new, text)
        assert count, pattern
        return text

    return change


WAIT = r"LAB_WAIT:[^}]*?mbarrier\.try_wait[^;]*;\s*@P1 bra\.uni DONE;\s*(?:\.loc[^\n]*\n)?\s*bra\.uni\s+LAB_WAIT;\s*(?:\.loc[^\n]*\n)?\s*DONE:"
LOAD = r"(cp\.async\.bulk\.tensor\.2d\.shared[^;]*;)"


def fault(name, kernel, change, *kinds, **options) -> Fault:
    """Short form."""
    return Fault(name, kernel, change, frozenset(kinds), options)


HOPPER = [
    fault("producer_tail given the same state twice", "fa3", None, "deadlock", shared_tail=True),
    fault("consumer arrival count one too high", "fa3", swap(r"(mov\.b32 \s*%r\d+), 8;", r"\1, 9;"), "deadlock"),
    fault(
        "consumer arrival count one too low",
        "fa3",
        swap(r"(mov\.b32 \s*%r\d+), 8;", r"\1, 7;"),
        "mbarrier",
        "overwrite",
        "deadlock",
    ),
    fault("barrier after mbarrier init removed", "fa3", drop(r"bar\.sync \s*0;"), "mbarrier"),
    fault("mbarrier init fence removed", "fa3", drop(r"fence\.mbarrier_init\.release\.cluster;"), "proxy-fence"),
    fault("wgmma wait removed", "fa3", drop(r"wgmma\.wait_group\.sync\.aligned \s*0;"), "accumulator"),
    fault(
        "wgmma wait leaves one group",
        "fa3",
        swap(r"(wgmma\.wait_group\.sync\.aligned \s*)0;", r"\g<1>1;", 1),
        "accumulator",
    ),
    fault("wgmma fences removed", "fa3", every(r"wgmma\.fence\.sync\.aligned;", ""), "wgmma-fence"),
    fault("proxy fence before the TMA store removed", "fa3", drop(r"fence\.proxy\.async\.shared::cta;"), "proxy-fence"),
    fault("barrier before the TMA store removed", "fa3", drop(r"bar\.sync \s*1, 256;", 1), "stale-read"),
    fault("expect_tx too small", "fa3", swap(r"(mov\.b32 \s*%r\d+), 8192;", r"\1, 4096;"), "tx-count"),
    fault("expect_tx too large", "fa3", swap(r"(mov\.b32 \s*%r\d+), 8192;", r"\1, 12288;"), "tx-count"),
    fault(
        "producer does not wait for the empty buffer",
        "fa3",
        drop(WAIT, 0),
        "overwrite",
        "write-write",
        "tx-count",
        "mbarrier",
    ),
    fault("consumer does not wait for Q", "fa3", drop(WAIT, 6), "stale-read"),
    fault("consumer does not wait for K", "fa3", drop(WAIT, 7), "stale-read"),
    fault("consumer does not wait for V", "fa3", drop(WAIT, 8), "stale-read"),
    fault(
        "consumer waits for the wrong parity",
        "fa3",
        swap(r"(mbarrier\.try_wait[^;]*\[%r\d+\], )(%r\d+)(, 10000000)", r"\g<1>1\3", 7),
        "stale-read",
        "deadlock",
    ),
    fault(
        "producer uses a stage more than there is",
        "fa3",
        swap(r"(setp\.eq\.b32 \s*%p\d+, %r\d+), 2;", r"\1, 3;"),
        "mbarrier",
        "deadlock",
        "overwrite",
        "write-write",
        "out-of-bounds",
    ),
    fault("consumer never releases K", "fa3", drop(r"mbarrier\.arrive\.shared\.b64 [^;]*;"), "deadlock"),
    fault("register increase without the decrease", "fa3", drop(r"setmaxnreg\.dec[^;]*;"), "register-pool"),
    fault("register increase too large", "fa3", swap(r"(setmaxnreg\.inc\S* \s*)232;", r"\g<1>248;"), "register-pool"),
    fault(
        "named barrier expects a warp too many", "fa3", swap(r"bar\.sync \s*1, 256;", "bar.sync 1, 288;"), "deadlock"
    ),
    fault(
        "store not waited for before the exit", "fa3", drop(r"cp\.async\.bulk\.wait_group\.read \s*0;"), "exit-pending"
    ),
    fault(
        "every lane issues the load",
        "fa3",
        swap(r"@%p\d+ bra[^;]*;(\s*(?:\.loc[^\n]*\n\s*)?cvta[^;]*;[^;]*;[^;]*;\s*cp\.async\.bulk\.tensor)", r"\1"),
        "tx-count",
        "write-write",
    ),
    fault(
        "load with the wrong box alignment",
        "fa3",
        swap(r"(cp\.async\.bulk\.tensor\.2d\.shared[^\[]*\[%r\d+)\+17408\]", r"\1+17424]"),
        "misaligned",
    ),
]

AMPERE = [
    fault("cp.async wait removed", "fa2", drop(r"cp\.async\.wait_group \s*1;"), "stale-read"),
    fault(
        "cp.async wait leaves the V group",
        "fa2",
        swap(r"cp\.async\.wait_group \s*0;", "cp.async.wait_group 1;"),
        "stale-read",
    ),
    fault("barrier after the K copy removed", "fa2", drop(r"bar\.sync \s*0;"), "stale-read"),
    fault("barrier before the buffers are reused removed", "fa2", drop(r"bar\.sync \s*0;", last=True), "overwrite"),
    fault(
        "store outside the tensor",
        "fa2",
        swap(r"(st\.global\.b32 \s*\[%rd\d+)(\+\d+)?\]", r"\1+1048576]"),
        "out-of-bounds",
    ),
    fault("two CTAs write the same rows", "fa2", every(r"%ctaid\.x", "%ctaid.y"), "write-write"),
    fault(
        "load outside the tensor",
        "fa2",
        swap(r"(cp\.async\.cg[^;]*\[%rd\d+)(\+\d+)?\], 16", r"\1+1048576], 16"),
        "out-of-bounds",
    ),
    fault("shuffle with half a mask", "fa2", swap(r"(shfl\.sync\.bfly[^;]*), -1;", r"\1, 65535;"), "divergence"),
    fault("ldmatrix row not aligned", "fa2", swap(r"(ldmatrix[^;]*\[%r\d+)(\+\d+)?\]", r"\1+8]"), "misaligned"),
    fault(
        "shared offset past the end", "fa2", swap(r"(ldmatrix[^;]*\[%r\d+)(\+\d+)?\]", r"\1+32768]"), "out-of-bounds"
    ),
    fault("accumulator never initialised", "fa2", drop(r"mov\.b32 \s*%r\d+, 0f00000000;"), "uninitialised-register"),
    fault("a buffer that nobody filled", "fa2", drop(r"cp\.async\.cg[^;]*;", 4), "uninitialised-memory"),
]

COMMIT = r"tcgen05\.commit[^;]*;"
BLACKWELL = [
    fault("wait::ld removed", "fa4", drop(r"tcgen05\.wait::ld[^;]*;"), "tcgen05-order"),
    fault("wait::st removed", "fa4", drop(r"tcgen05\.wait::st[^;]*;"), "tcgen05-order"),
    fault("softmax does not wait for S", "fa4", drop(WAIT, 13), "tcgen05-order", "uninitialised-memory"),
    fault("MMA does not wait for P", "fa4", drop(WAIT, 12), "tcgen05-order"),
    fault("MMA does not wait for K", "fa4", drop(WAIT, 9), "stale-read"),
    fault("epilogue does not wait for O", "fa4", drop(WAIT, 15), "tcgen05-order"),
    fault(
        "O placed over P",
        "fa4",
        swap(r"(add\.s32 \s*%r\d+, %r\d+), 128;(\s*\.loc[^\n]*\n\s*shr)", r"\1, 32;\2"),
        "tmem",
    ),
    fault("columns never freed", "fa4", drop(r"tcgen05\.dealloc[^;]*;"), "tmem"),
    fault(
        "fewer columns than used", "fa4", swap(r"(mov\.b32 \s*%r\d+), 256;(\s*tcgen05\.alloc)", r"\1, 128;\2"), "tmem"
    ),
    fault(
        "column count no power of two",
        "fa4",
        swap(r"(mov\.b32 \s*%r\d+), 256;(\s*tcgen05\.alloc)", r"\1, 192;\2"),
        "tmem",
    ),
    fault("wrong block freed", "fa4", swap(r"(mov\.b32 \s*%r\d+), 256;(\s*tcgen05\.dealloc)", r"\1, 128;\2"), "tmem"),
    fault("commit of K removed", "fa4", drop(COMMIT, 0), "deadlock"),
    fault("commit of S removed", "fa4", drop(COMMIT, 1), "deadlock"),
    fault(
        "every lane issues the MMA",
        "fa4",
        swap(
            r"@%p\d+ bra[^;]*;((?:(?!bra)[^;])*;(?:(?!bra)[^;])*;(?:(?!bra)[^;])*;(?:(?!bra)[^;])*;\s*(?:\.loc[^\n]*\n\s*)?tcgen05\.mma)",
            r"\1",
        ),
        "divergence",
    ),
    fault(
        "P read from absolute column 0",
        "fa4",
        every(r"(tcgen05\.mma[^\[]*\[%r\d+\], )\[%r\d+(\+\d+)?\]", r"\1[0]"),
        "tmem",
        "tcgen05-order",
    ),
    fault("address read before the barrier", "fa4", drop(r"bar\.sync \s*1, 160;", last=True), "stale-read", "deadlock"),
]

FAULTS = HOPPER + AMPERE + BLACKWELL
