"""PTX text -> Module of kernels with parameters, registers, symbols, labels and instructions.

Covers what NVVM prints for CuTe DSL kernels, inline-assembly blocks with their own registers and labels included.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from dataclasses import dataclass, field

from attncc.emulator.findings import PtxError


@dataclass(frozen=True)
class Reg:
    """A register, by its name in the kernel's table (scoped names are already made unique)."""

    name: str


@dataclass(frozen=True)
class Imm:
    """A literal: `value` is an int, or for 0f/0d literals the raw bits (`float_bits` 32 or 64)."""

    value: int
    float_bits: int = 0


@dataclass(frozen=True)
class Special:
    """A special register such as %tid.x."""

    name: str


@dataclass(frozen=True)
class Sym:
    """A parameter, shared, global or local symbol, or a label."""

    name: str


@dataclass(frozen=True)
class Vec:
    """A brace list {a, b, ...}."""

    items: tuple


@dataclass(frozen=True)
class Pair:
    """`d|p`: two destinations."""

    first: object
    second: object


@dataclass(frozen=True)
class Not:
    """`!p`."""

    reg: object


@dataclass(frozen=True)
class Addr:
    """`[base + offset]` or `[base, {coords}]`."""

    base: object
    offset: int = 0
    coords: tuple | None = None
    extra: tuple = ()


@dataclass(frozen=True)
class Instr:
    """One instruction: opcode with modifiers, guard, operands, position."""

    opcode: str
    mods: tuple[str, ...]
    ops: tuple
    guard: tuple[str, bool] | None
    line: int
    source: tuple[int, int]
    text: str


@dataclass(frozen=True)
class Param:
    """A kernel parameter: byte size and alignment, and its offset in parameter space."""

    name: str
    size: int
    align: int
    offset: int


@dataclass(frozen=True)
class Symbol:
    """A variable: state space, size (0 for extern []), alignment, initial bytes."""

    name: str
    space: str
    size: int
    align: int
    init: bytes = b""


@dataclass
class Kernel:
    """An entry point."""

    name: str
    params: list[Param] = field(default_factory=list)
    regs: dict[str, int] = field(default_factory=dict)
    symbols: dict[str, Symbol] = field(default_factory=dict)
    instrs: list[Instr] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    directives: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def param_bytes(self) -> int:
        """Size of the whole parameter block."""
        return max((p.offset + p.size for p in self.params), default=0)


@dataclass
class Module:
    """A PTX file."""

    target: str = ""
    version: str = ""
    kernels: dict[str, Kernel] = field(default_factory=dict)
    symbols: dict[str, Symbol] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)


TYPE_BITS = {"pred": 1}
for _k in ("b", "u", "s", "f"):
    for _n in (8, 16, 32, 64, 128):
        TYPE_BITS[f"{_k}{_n}"] = _n

_LOC = re.compile(r"^\s*\.loc\s+(\d+)\s+(\d+)")
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"')
_LABEL = re.compile(r"^\s*([A-Za-z_$%][\w$]*)\s*:(?!:)")
_VAR = re.compile(
    r"^\.(extern|visible|weak|common)?\s*\.?(shared|global|const|local)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+"
    r"([\w$]+)\s*(?:\[(\d*)\])?\s*(?:=\s*(.*))?$",
    re.DOTALL,
)
_PARAM = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?([\w$]+)(?:\[(\d+)\])?"
)


def parse(text: str) -> Module:
    """Parse a PTX module. Raises PtxError on text it does not know."""
    return _Parser(text).run()


class _Parser:
    """Statement reader with brace scopes."""

    def __init__(self, text: str):
        text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), text, flags=re.DOTALL)
        self.lines = [line.split("//", 1)[0] for line in text.split("\n")]
        self.module = Module()
        self.kernel: Kernel | None = None
        self.scopes: list[dict[str, str]] = []
        self.label_scopes: list[dict[str, str]] = []
        self.first: list[int] = []
        self.source = (0, 0)
        self.serial = 0

    def run(self) -> Module:
        """Drive the statement reader over all lines."""
        for line, statement in self.statements():
            if statement == "{":
                self.open_scope()
            elif statement == "}":
                self.close_scope()
            elif self.kernel is not None and self.scopes:
                self.body_statement(statement, line)
            else:
                self.module_statement(statement, line)
        return self.module

    # -- splitting ----------------------------------------------------------------------------------------------

    def statements(self):
        """Yield (line number, statement) for `;`-terminated statements, scope braces, labels and entry headers."""
        buffer, start, header = "", 0, False
        for number, raw in enumerate(self.lines, 1):
            if self.directive_line(raw, number):
                continue
            for char_line in self.split_labels(raw):
                for piece in re.split(r"([;{}])", char_line):
                    if not buffer.strip():
                        buffer, start = "", number
                    if piece == "{" and (not buffer.strip() or header):
                        if buffer.strip():
                            yield start, buffer.strip()
                        yield number, "{"
                        buffer, header = "", False
                    elif piece == "}" and not buffer.strip():
                        yield number, "}"
                        buffer = ""
                    elif piece == ";" and buffer.count("{") == buffer.count("}"):
                        if buffer.strip():
                            yield start, buffer.strip()
                        buffer = ""
                    else:
                        buffer += piece
                        header = header or ".entry" in piece
                if buffer.strip().endswith(":") and not header:
                    yield start, buffer.strip()
                    buffer = ""
            buffer += "\n" if buffer else ""

    @staticmethod
    def split_labels(raw: str):
        """`L: stmt` -> `L:` and `stmt`."""
        match = _LABEL.match(raw)
        if match and not raw.lstrip().startswith("."):
            return [raw[: match.end()], raw[match.end() :]]
        return [raw]

    def directive_line(self, raw: str, number: int) -> bool:
        """Handle newline-terminated directives; True if the line was one."""
        match = _LOC.match(raw)
        if match:
            # lines inside an inline-assembly block count from the statement that holds it: keep the first position
            if len(self.scopes) <= 1:
                self.source = (int(match.group(1)), int(match.group(2)))
            return True
        match = _FILE.match(raw)
        if match:
            self.module.files[int(match.group(1))] = match.group(2)
            return True
        match = re.match(r"^\s*\.(version|target|address_size)\s+(.*)$", raw)
        if match:
            if match.group(1) != "address_size":
                setattr(self.module, match.group(1), match.group(2).strip())
            return True
        if re.match(r"^\s*\.section\b", raw):
            raise PtxError(f"line {number}: .section (debug PTX) is not supported")
        return False

    # -- scopes --------------------------------------------------------------------------------------------------

    def open_scope(self) -> None:
        self.scopes.append({})
        self.label_scopes.append({})
        self.first.append(len(self.kernel.instrs) if self.kernel else 0)

    def close_scope(self) -> None:
        self.scopes.pop()
        self.bind_branches(self.first.pop(), self.label_scopes.pop())
        if not self.scopes and self.kernel is not None:
            _fix_labels(self.kernel)
            self.kernel = None

    def declare(self, name: str, bits: int) -> None:
        """Declare a register in the innermost scope under a unique name."""
        unique = name
        if unique in self.kernel.regs:
            self.serial += 1
            unique = f"{name}@{self.serial}"
        self.kernel.regs[unique] = bits
        self.scopes[-1][name] = unique

    def lookup(self, name: str) -> str | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    # -- module level ---------------------------------------------------------------------------------------------

    def module_statement(self, text: str, line: int) -> None:
        if ".entry" in text:
            self.entry(text, line)
        elif _VAR.match(text):
            symbol = _symbol(text)
            self.module.symbols[symbol.name] = symbol
        elif not text.startswith(".pragma"):
            raise PtxError(f"line {line}: unknown module-level statement: {text[:120]}")

    def entry(self, text: str, line: int) -> None:
        match = re.search(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?\s*((?:\.\w+[^.()]*)*)$", text, re.DOTALL)
        if match is None:
            raise PtxError(f"line {line}: cannot read the entry header: {text[:120]}")
        self.kernel = Kernel(match.group(1))
        offset = 0
        for part in (match.group(2) or "").split(","):
            if part.strip():
                param = _param(part.strip(), offset, line)
                self.kernel.params.append(param)
                offset = param.offset + param.size
        for name, values in re.findall(r"\.(\w+)([^.]*)", match.group(3) or ""):
            self.kernel.directives[name] = tuple(int(v) for v in re.findall(r"\d+", values))
        self.module.kernels[self.kernel.name] = self.kernel

    # -- kernel body -----------------------------------------------------------------------------------------------

    def body_statement(self, text: str, line: int) -> None:
        if text.endswith(":"):
            self.label(text[:-1].strip())
        elif text.startswith(".reg"):
            self.registers(text, line)
        elif _VAR.match(text):
            symbol = _symbol(text)
            self.kernel.symbols[symbol.name] = symbol
        elif text.startswith((".pragma", ".loc")):
            pass
        elif text.startswith("."):
            raise PtxError(f"line {line}: unknown directive: {text[:120]}")
        else:
            self.kernel.instrs.append(self.instruction(" ".join(text.split()), line))

    def label(self, name: str) -> None:
        """Bind a label; inside an inline-assembly block it gets a name of its own."""
        self.serial += 1
        unique = name if len(self.scopes) == 1 else f"{name}@{self.serial}"
        self.kernel.labels[unique] = len(self.kernel.instrs)
        self.label_scopes[-1][name] = unique

    def bind_branches(self, first: int, labels: dict[str, str]) -> None:
        """Rename branches of a closing scope, forward ones included, to that scope's labels."""
        for i in range(first, len(self.kernel.instrs)):
            instr = self.kernel.instrs[i]
            if instr.opcode == "bra" and instr.ops[0].name in labels:
                ops = (Sym(labels[instr.ops[0].name]),)
                self.kernel.instrs[i] = dataclasses.replace(instr, ops=ops)

    def registers(self, text: str, line: int) -> None:
        match = re.match(r"\.reg\s+(?:\.v\d\s+)?\.(\w+)\s+(.*)$", text, re.DOTALL)
        if match is None or match.group(1) not in TYPE_BITS:
            raise PtxError(f"line {line}: unknown register declaration: {text}")
        bits = TYPE_BITS[match.group(1)]
        for name in match.group(2).split(","):
            name = name.strip()
            many = re.match(r"^([\w%$]+)<(\d+)>$", name)
            if many:
                for i in range(int(many.group(2))):
                    self.declare(f"{many.group(1)}{i}", bits)
            else:
                self.declare(name, bits)

    def instruction(self, text: str, line: int) -> Instr:
        full, guard = text, None
        match = re.match(r"^@(!?)\s*([\w%$]+)\s+(.*)$", text)
        if match:
            name = self.lookup(match.group(2))
            if name is None:
                raise PtxError(f"line {line}: unknown guard register {match.group(2)}")
            guard, text = (name, bool(match.group(1))), match.group(3)
        parts = text.split(None, 1)
        pieces = _split_mods(parts[0])
        ops = tuple(self.operand(p, line) for p in _split_top(parts[1])) if len(parts) > 1 else ()
        return Instr(pieces[0], tuple(pieces[1:]), ops, guard, line, self.source, full)

    # -- operands ----------------------------------------------------------------------------------------------------

    def operand(self, text: str, line: int):
        """One operand; unknown names stay symbols and are checked when the instruction is decoded."""
        text = text.strip()
        if text.startswith("{"):
            return Vec(tuple(self.operand(p, line) for p in _split_top(text[1 : text.rindex("}")])))
        if text.startswith("["):
            return self.address(text[1 : text.rindex("]")], line)
        if text.startswith("!"):
            return Not(self.operand(text[1:], line))
        if "|" in text:
            first, second = text.split("|")
            return Pair(self.operand(first, line), self.operand(second, line))
        value = _literal(text)
        if value is not None:
            return value
        name = self.lookup(text)
        if name is not None:
            return Reg(name)
        if text.startswith("%"):
            return Special(text)
        if re.fullmatch(r"[\w$]+", text):
            return Sym(text)
        match = re.fullmatch(r"([\w$%]+)\s*\+\s*(-?\w+)", text)
        if match:
            return Addr(self.operand(match.group(1), line), int(match.group(2), 0))
        raise PtxError(f"line {line}: cannot read operand {text!r}")

    def address(self, text: str, line: int) -> Addr:
        parts = _split_top(text)
        match = re.fullmatch(r"\s*([\w$%]+)\s*(?:\+\s*(-?\w+))?\s*", parts[0])
        if match is None:
            raise PtxError(f"line {line}: cannot read address [{text}]")
        base = self.operand(match.group(1), line)
        offset = int(match.group(2), 0) if match.group(2) else 0
        coords = self.operand(parts[1], line) if len(parts) > 1 else None
        extra = tuple(self.operand(p, line) for p in parts[2:])
        return Addr(
            base, offset, coords.items if isinstance(coords, Vec) else None if coords is None else (coords,), extra
        )


def _fix_labels(kernel: Kernel) -> None:
    """Every branch target must exist."""
    for instr in kernel.instrs:
        if instr.opcode == "bra" and isinstance(instr.ops[0], Sym) and instr.ops[0].name not in kernel.labels:
            raise PtxError(f"line {instr.line}: unknown label {instr.ops[0].name}")


def _split_mods(opcode: str) -> list[str]:
    return opcode.split(".")


def _split_top(text: str) -> list[str]:
    """Split at commas outside brackets."""
    out, depth, current = [], 0, ""
    for char in text:
        if char in "{[(":
            depth += 1
        elif char in "}])":
            depth -= 1
        if char == "," and depth == 0:
            out.append(current)
            current = ""
        else:
            current += char
    if current.strip():
        out.append(current)
    return [part.strip() for part in out]


def _literal(text: str) -> Imm | None:
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        return Imm(int.from_bytes(bytes.fromhex(text[2:]), "big"), 32)
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        return Imm(int.from_bytes(bytes.fromhex(text[2:]), "big"), 64)
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        return Imm(int(text.rstrip("U"), 0) if not re.fullmatch(r"-?0\d+U?", text) else int(text.rstrip("U"), 8))
    if re.fullmatch(r"-?\d+\.\d*(e[+-]?\d+)?", text):
        return Imm(struct.unpack("<Q", struct.pack("<d", float(text)))[0], 64)
    if text == "WARP_SZ":
        return Imm(32)
    return None


def _param(text: str, offset: int, line: int) -> Param:
    match = _PARAM.match(text)
    if match is None:
        raise PtxError(f"line {line}: unknown parameter declaration: {text}")
    align, kind, name, count = match.groups()
    unit = TYPE_BITS[kind] // 8
    size = unit * int(count) if count else unit
    alignment = int(align) if align else unit
    return Param(name, size, alignment, -(-offset // alignment) * alignment)


def _symbol(text: str) -> Symbol:
    _, space, align, kind, name, count, init = _VAR.match(text).groups()
    unit = TYPE_BITS[kind] // 8
    size = 0 if count == "" else unit * int(count) if count else unit
    data = b""
    if init:
        values = [int(v, 0) & ((1 << (unit * 8)) - 1) for v in re.findall(r"-?\b(?:0x[0-9a-fA-F]+|\d+)\b", init)]
        data = b"".join(v.to_bytes(unit, "little") for v in values)
    return Symbol(name, space, size, int(align) if align else unit, data)
