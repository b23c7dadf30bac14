"""Kernel -> Program: every PTX instruction becomes one Python closure over register indices.

Handlers live in the ops_* modules and are registered per opcode with `@op(...)`. A handler receives the decoder
and the instruction, takes operands and modifiers from the decoder (which records what is read and written), and
returns `run(warp) -> status`. Modifiers nobody took are an error: an instruction is never approximated silently.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

from attncc.emulator.findings import PtxError
from attncc.emulator.lanes import FULL, lanes
from attncc.emulator.ptx_parse import TYPE_BITS, Addr, Imm, Instr, Kernel, Module, Not, Pair, Reg, Special, Sym, Vec

#: statuses an instruction may return; None means done
BLOCK, YIELD, EXIT = 1, 2, 3

HANDLERS: dict[str, Callable] = {}

TYPE_BITS.update(
    {
        "f16": 16,
        "bf16": 16,
        "f16x2": 32,
        "bf16x2": 32,
        "f32x2": 64,
        "tf32": 32,
        "e4m3x2": 16,
        "e5m2x2": 16,
        "e2m1x2": 8,
        "ue8m0x2": 16,
        "e4m3": 8,
        "e5m2": 8,
        "s16x2": 32,
        "u16x2": 32,
        "e4m3x4": 32,
        "e5m2x4": 32,
    }
)
TYPES = frozenset(TYPE_BITS)

#: which numpy view of a register row an instruction type works on
VIEW = {
    "b8": "u8",
    "u8": "u8",
    "s8": "s8",
    "b16": "u16",
    "u16": "u16",
    "s16": "s16",
    "f16": "f16",
    "bf16": "u16",
    "b32": "u32",
    "u32": "u32",
    "s32": "s32",
    "f32": "f32",
    "f16x2": "u32",
    "bf16x2": "u32",
    "tf32": "f32",
    "b64": "u64",
    "u64": "u64",
    "s64": "s64",
    "f64": "f64",
    "f32x2": "u64",
    "b128": "b128",
    "e4m3x2": "u16",
    "e5m2x2": "u16",
    "ue8m0x2": "u16",
    "s16x2": "u32",
    "u16x2": "u32",
}

SPECIAL_BITS = {"%clock64": 64, "%globaltimer": 64, "%gridid": 64}


def op(*names: str):
    """Register a handler for opcodes; a name may include leading modifiers ("cp.async.bulk"): the longest wins."""

    def register(handler):
        for name in names:
            HANDLERS[name] = handler
        return handler

    return register


class Mods:
    """The modifiers of one instruction, consumed one by one."""

    def __init__(self, instr: Instr, used: int):
        self.instr = instr
        self.left = list(instr.mods[used:])

    def flag(self, name: str) -> bool:
        """True if modifier `name` is there; it is consumed."""
        if name in self.left:
            self.left.remove(name)
            return True
        return False

    def take(self, *names: str, default: str | None = None) -> str | None:
        """The first of `names` that is there, else `default`."""
        for name in names:
            if self.flag(name):
                return name
        return default

    def need(self, *names: str) -> str:
        """As take, but one of them must be there."""
        found = self.take(*names)
        if found is None:
            raise PtxError(f"line {self.instr.line}: expected one of {', '.join(names)}: {self.instr.text}")
        return found

    def type(self) -> str:
        """The last type modifier."""
        for name in reversed(self.left):
            if name in TYPES:
                self.left.remove(name)
                return name
        raise PtxError(f"line {self.instr.line}: no type modifier: {self.instr.text}")

    def done(self) -> None:
        """Every modifier must have been understood."""
        if self.left:
            raise PtxError(f"line {self.instr.line}: unknown modifier .{self.left[0]}: {self.instr.text}")


class Program:
    """A decoded kernel: closures, register table, constants.

    `ranks` numbers the registers of each width; `files` keeps register files of warps that have ended, for others to use.
    """

    def __init__(self, module: Module, kernel: Kernel):
        self.module, self.kernel = module, kernel
        self.widths: list[int] = []
        self.ranks: list[int] = []
        self.counts: dict[int, int] = {}
        self.files: list = []
        self.names: list[str] = []
        self.index: dict[str, int] = {}
        self.consts: list[tuple[int, int]] = []
        self.specials: list[tuple[int, str]] = []
        self.syms: list[tuple[int, str]] = []
        self.code: list[Callable] = []
        self.stamped: set[int] = set()
        self.min_shared_access = 4

    def new_reg(self, name: str, bits: int) -> int:
        """Add a register, constant or symbol to the table; its index."""
        self.index[name] = len(self.widths)
        self.names.append(name)
        self.widths.append(bits)
        self.ranks.append(self.counts.get(bits, 0))
        self.counts[bits] = self.ranks[-1] + 1
        return len(self.widths) - 1

    def bank_rows(self, indices) -> np.ndarray:
        """Rows of 32-bit registers in a warp's `bank`, to read or write many of them at once."""
        assert all(self.widths[i] == 32 for i in indices)
        return np.array([self.ranks[i] for i in indices])

    def source_of(self, pc: int) -> tuple[int, str, str]:
        """(PTX line, generated source position, text) of instruction `pc`."""
        if not 0 <= pc < len(self.kernel.instrs):
            return 0, "", ""
        instr = self.kernel.instrs[pc]
        name = self.module.files.get(instr.source[0], "")
        short = name.rsplit("/", 1)[-1]
        return instr.line, f"{short}:{instr.source[1]}" if short else "", instr.text


class Decoder:
    """Gives handlers their operands and records register use for the initialisation check."""

    def __init__(self, program: Program):
        self.program = program
        self.instr: Instr | None = None
        self.reads: list[int] = []
        self.writes: list[int] = []

    # -- operands ------------------------------------------------------------------------------------------------

    def fail(self, message: str) -> PtxError:
        """A PtxError at the current instruction."""
        return PtxError(f"line {self.instr.line}: {message}: {self.instr.text}")

    def count(self, *allowed: int) -> int:
        """Check the number of operands."""
        if len(self.instr.ops) not in allowed:
            raise self.fail(f"expected {allowed} operands, got {len(self.instr.ops)}")
        return len(self.instr.ops)

    def src(self, operand, kind: str, loose: bool = False) -> int:
        """Index of a source of type `kind`; `loose` accepts wider registers."""
        index = self.raw(operand, kind)
        width, want = self.program.widths[index], TYPE_BITS[kind]
        if width != want and not (loose and width >= want) and not (want == 8 and width == 16):
            raise self.fail(f"operand {operand} has {width} bits, .{kind} wants {want}")
        self.reads.append(index)
        return index

    def raw(self, operand, kind: str) -> int:
        """Index of any operand, unchecked and unrecorded."""
        if isinstance(operand, Reg):
            return self.program.index[operand.name]
        if isinstance(operand, Imm):
            return self.const(operand, kind)
        if isinstance(operand, Special):
            return self.special(operand.name)
        if isinstance(operand, Sym):
            return self.symbol(operand.name, TYPE_BITS[kind])
        if isinstance(operand, Addr) and isinstance(operand.base, Sym) and operand.coords is None:
            return self.symbol(operand.base.name, TYPE_BITS[kind], operand.offset)
        raise self.fail(f"cannot use operand {operand} here")

    def const(self, imm: Imm, kind: str) -> int:
        """Index of a constant row."""
        bits = max(TYPE_BITS[kind], 16) if kind != "pred" else 1
        value = imm.value
        if imm.float_bits == 64 and bits == 32:
            value = struct.unpack("<I", struct.pack("<f", struct.unpack("<d", struct.pack("<Q", value))[0]))[0]
        elif imm.float_bits == 32 and bits == 64:
            value = struct.unpack("<Q", struct.pack("<d", struct.unpack("<f", struct.pack("<I", value))[0]))[0]
        elif imm.float_bits == 0 and kind in ("f32", "f64"):
            fmt = {"f32": ("<I", "<f"), "f64": ("<Q", "<d")}[kind]
            value = struct.unpack(fmt[0], struct.pack(fmt[1], float(value)))[0]
        value &= (1 << bits) - 1
        name = f"#{value}:{bits}"
        if name not in self.program.index:
            self.program.consts.append((self.program.new_reg(name, bits), value))
        return self.program.index[name]

    def special(self, name: str) -> int:
        """Index of a special register's row."""
        if name not in self.program.index:
            self.program.specials.append((self.program.new_reg(name, SPECIAL_BITS.get(name, 32)), name))
        return self.program.index[name]

    def symbol(self, name: str, bits: int, offset: int = 0) -> int:
        """Index of a row that holds a symbol's address."""
        key = f"&{name}+{offset}:{bits}"
        if key not in self.program.index:
            known = name in self.program.kernel.symbols or name in self.program.module.symbols
            if not known and all(p.name != name for p in self.program.kernel.params):
                raise self.fail(f"unknown symbol {name}")
            self.program.syms.append((self.program.new_reg(key, bits), f"{name}+{offset}"))
        return self.program.index[key]

    def dst(self, operand, kind: str, loose: bool = False) -> int:
        """Index of a destination; `_` goes to a register nobody reads."""
        if isinstance(operand, Sym) and operand.name == "_":
            return self.sink(TYPE_BITS[kind])
        if not isinstance(operand, Reg):
            raise self.fail(f"destination must be a register, not {operand}")
        index = self.program.index[operand.name]
        width, want = self.program.widths[index], TYPE_BITS[kind]
        if width != want and not (loose and width >= want) and not (want == 8 and width == 16):
            raise self.fail(f"destination {operand.name} has {width} bits, .{kind} wants {want}")
        self.writes.append(index)
        return index

    def sink(self, bits: int) -> int:
        """A scratch register."""
        name = f"_:{bits}"
        return self.program.index[name] if name in self.program.index else self.program.new_reg(name, bits)

    def pred(self, operand) -> tuple[int, bool]:
        """(index, negated) of a predicate source."""
        negated = isinstance(operand, Not)
        operand = operand.reg if negated else operand
        if isinstance(operand, Imm):
            return self.const(Imm(operand.value & 1), "pred"), negated
        return self.src(operand, "pred"), negated

    def vec(self, operand) -> tuple:
        """Items of a brace list (a single operand counts as a list of one)."""
        return operand.items if isinstance(operand, Vec) else (operand,)

    def srcs(self, operand, kind: str, loose: bool = False) -> list[int]:
        """Sources of a brace list."""
        return [self.src(item, kind, loose) for item in self.vec(operand)]

    def dsts(self, operand, kind: str, loose: bool = False) -> list[int]:
        """Destinations of a brace list."""
        return [self.dst(item, kind, loose) for item in self.vec(operand)]

    def pair(self, operand) -> tuple:
        """(d, p) of `d|p`, or (d, None)."""
        return (operand.first, operand.second) if isinstance(operand, Pair) else (operand, None)

    def addr(self, operand) -> Callable:
        """A function warp -> int64[32] of addresses for `[reg+imm]` or `[symbol+imm]`."""
        if not isinstance(operand, Addr):
            raise self.fail(f"expected an address, got {operand}")
        offset = operand.offset
        if isinstance(operand.base, Reg):
            index = self.program.index[operand.base.name]
            self.reads.append(index)
            view = "u32" if self.program.widths[index] == 32 else "u64"
        elif isinstance(operand.base, Sym):
            index, view = self.symbol(operand.base.name, 64, offset), "u64"
            offset = 0
        else:
            value = operand.base.value + offset
            return lambda w: np.full(32, value, np.int64)
        if view == "u64":
            return (lambda w: w.V["s64"][index] + offset) if offset else (lambda w: w.V["s64"][index])
        # 32-bit addresses wrap like the register they come from
        return lambda w: (w.V["s32"][index] + np.int32(offset)).view(np.uint32).astype(np.int64)

    # -- whole instructions -----------------------------------------------------------------------------------------

    def build(self, instr: Instr) -> Callable:
        """The closure of one instruction, with its guard and its register checks."""
        self.instr, self.reads, self.writes = instr, [], []
        handler, used = find_handler(instr)
        mods = Mods(instr, used)
        body = handler(self, instr, mods)
        mods.done()
        reads, writes = tuple(dict.fromkeys(self.reads)), tuple(dict.fromkeys(self.writes))
        checked = _checked(body, reads, writes)
        body = _forwarding(body, checked, reads, writes) if instr.opcode == "mov" and writes else checked
        stamped = tuple(i for i in self.writes if i in self.program.stamped)
        if stamped and instr.opcode not in ("mov", "wgmma"):
            body = _stamping(body, stamped)
        if instr.guard and instr.opcode not in ("bra", "ret", "exit"):  # these split the path themselves
            body = _guarded(body, self.program.index[instr.guard[0]], instr.guard[1])
        return body


def find_handler(instr: Instr):
    """The handler with the longest matching dotted name, and how many modifiers that name used."""
    parts = (instr.opcode,) + instr.mods
    for n in range(len(parts), 0, -1):
        handler = HANDLERS.get(".".join(parts[:n]))
        if handler is not None:
            return handler, n - 1
    raise PtxError(f"line {instr.line}: unknown instruction {'.'.join(parts)}: {instr.text}")


def _checked(body, reads, writes):
    """Wrap with the uninitialised-register check and the marking of written registers."""

    def run(w):
        init, mi = w.init, w.mi
        for r in reads:
            if init[r] & mi != mi:
                w.bad_read(r)
        status = body(w)
        if status is None or status == YIELD:
            for r in writes:
                init[r] |= mi
                if r in w.locked:
                    w.bad_write(r)
        return status

    if len(reads) == 2 and len(writes) == 1:
        a, b = reads
        d = writes[0]

        def run2(w):
            init, mi = w.init, w.mi
            if init[a] & init[b] & mi != mi:
                w.bad_read(a)
                w.bad_read(b)
            status = body(w)
            if status is None:
                init[d] |= mi
                if w.locked and d in w.locked:
                    w.bad_write(d)
            return status

        return run2
    return run


def _forwarding(body, checked, reads, writes):
    """mov copies what it is given: a value whose load is not waited for (the copy is locked until the same wait), or no
    value at all (compilers move undefined values around; their first real use is the finding)."""

    def run(w):
        init, mi = w.init, w.mi
        defined = mi
        for r in reads:
            defined &= init[r]
        if defined == mi:
            return checked(w)
        lock = next((w.locked[r] for r in reads if r in w.locked), None)
        if lock is not None and not lock.soft:
            return checked(w)
        body(w)
        for d in writes:
            if lock is not None:
                w.locked[d] = lock
                init[d] = 0
            else:
                init[d] = (init[d] & ~mi) | defined
        return None

    return run


def _stamping(body, registers):
    """Remember when registers that wgmma uses were last written (for the wgmma.fence rule)."""

    def run(w):
        status = body(w)
        for r in registers:
            w.stamp[r] = w.fence_count
        return status

    return run


def _guarded(body, index, negated):
    """Execute under a predicate by narrowing the active mask."""

    def run(w):
        mi = w.mi
        if w.init[index] & mi != mi:
            w.bad_read(index)
        bits = w.pr[index]
        active = mi & (~bits if negated else bits)
        if not active:
            return None
        w.mi = active
        status = body(w)
        w.mi = mi
        return status

    return run


def put(w, view: str, index: int, value) -> None:
    """Store `value` (32 lanes) under the active mask."""
    if w.mi == FULL:
        w.V[view][index][:] = value
    else:
        np.copyto(w.V[view][index], value, where=lanes(w.mi), casting="unsafe")


def put_rows(w, rows: np.ndarray, values: np.ndarray) -> None:
    """As put, for rows of the bank of 32-bit registers at once."""
    if w.mi == FULL:
        w.bank[rows] = values
    else:
        w.bank[rows] = np.where(lanes(w.mi), values, w.bank[rows])


def decode(module: Module, kernel: Kernel) -> Program:
    """Decode a kernel; raises PtxError naming the first unknown instruction or modifier."""
    from attncc.emulator import handlers  # noqa: F401  (fills HANDLERS)

    program = Program(module, kernel)
    for name, bits in kernel.regs.items():
        program.new_reg(name, bits)
    program.stamped = _wgmma_registers(program)
    decoder = Decoder(program)
    program.code = [decoder.build(instr) for instr in kernel.instrs]
    program.code.append(lambda w: EXIT)
    return program


def _wgmma_registers(program: Program) -> set[int]:
    """Indices of registers that any wgmma.mma_async uses as accumulator or A fragment."""
    found = set()
    for instr in program.kernel.instrs:
        if instr.opcode == "wgmma" and instr.mods and instr.mods[0] == "mma_async":
            for operand in instr.ops:
                if isinstance(operand, Vec):
                    found.update(program.index[r.name] for r in operand.items if isinstance(r, Reg))
    return found
