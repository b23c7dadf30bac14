"""What a compiled kernel holds: its cubins, the resources ptxas gave it, its SASS and the instructions of its loops.

Works without a GPU. `sass` needs nvdisasm: from NVIDIA's CUDA packages on PyPI, from Triton, or on PATH.
"""

from __future__ import annotations

import itertools
import re
import shutil
import struct
import subprocess
import sysconfig
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ELF_MAGIC = b"\x7fELF"
REGISTER_COUNT, FRAME_SIZE = 0x2F, 0x11
"""Attribute numbers in a cubin's .nv.info section."""


@dataclass(frozen=True)
class Resources:
    """Registers of a thread, bytes of its stack frame (more than 0: spills or local arrays), bytes of code."""

    registers: int
    frame: int
    code: int


@dataclass(frozen=True)
class Instruction:
    """One SASS instruction: its byte address, opcode with modifiers ("HGMMA.64x128x16.F32.BF16"), and the operands' text."""

    address: int
    opcode: str
    operands: str
    predicated: bool = False

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]


def cubins(compiled) -> list[bytes]:
    """The device ELFs inside what `cute.compile` returned."""
    found = []
    for op in compiled.ir_module.body.operations:
        if op.operation.name != "llvm.mlir.global" or "value" not in op.attributes:
            continue
        if str(op.attributes["sym_name"]).strip('"').endswith("_binary"):
            found += split_elfs(op.attributes["value"].value_bytes)
    return found


def split_elfs(data: bytes) -> list[bytes]:
    """The 64-bit ELF files that lie in `data`."""
    found, at = [], data.find(ELF_MAGIC)
    while at >= 0:
        end = 0
        for table, size in ((0x28, 0x3A), (0x20, 0x36)):  # section headers, then program headers
            (offset,) = struct.unpack_from("<Q", data, at + table)
            entry, count = struct.unpack_from("<HH", data, at + size)
            end = max(end, at + offset + entry * count)
        found.append(data[at:end])
        at = data.find(ELF_MAGIC, end)
    return found


def resources(cubin: bytes) -> dict[str, Resources]:
    """Kernel name -> resources, from the cubin's section headers and .nv.info."""
    sections = _sections(cubin)
    names = _symbols(cubin, sections)
    code = {s[0][6:]: s[5] for s in sections.values() if s[0].startswith(".text.")}
    found: dict[str, dict[int, int]] = {}
    info = sections[".nv.info"]
    at, end = info[4], info[4] + info[5]
    while at < end:
        form, attribute, size = struct.unpack_from("<BBH", cubin, at)
        if form == 4 and size == 8 and attribute in (REGISTER_COUNT, FRAME_SIZE):
            symbol, value = struct.unpack_from("<II", cubin, at + 4)
            found.setdefault(names[symbol], {})[attribute] = value
        at += 4 + (size if form == 4 else 0)
    return {
        name: Resources(v[REGISTER_COUNT], v.get(FRAME_SIZE, 0), code.get(name, 0))
        for name, v in found.items()
        if REGISTER_COUNT in v
    }


def _sections(cubin: bytes) -> dict[str, tuple]:
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry, count, names_at = struct.unpack_from("<HHH", cubin, 0x3A)
    raw = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + i * entry) for i in range(count)]
    strings = raw[names_at][4]
    return {name: (name, *s[1:]) for s in raw for name in (_text(cubin, strings + s[0]),)}


def _symbols(cubin: bytes, sections: dict[str, tuple]) -> dict[int, str]:
    strings, table = sections[".strtab"][4], sections[".symtab"]
    count = table[5] // 24
    return {i: _text(cubin, strings + struct.unpack_from("<I", cubin, table[4] + 24 * i)[0]) for i in range(count)}


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def nvdisasm() -> str | None:
    """The path of an nvdisasm, or None: PyPI's CUDA packages first, then Triton's, then PATH."""
    site = Path(sysconfig.get_paths()["purelib"])
    places = [*sorted(site.glob("nvidia/cu*/bin/nvdisasm"), reverse=True), *site.glob("nvidia/*/bin/nvdisasm")]
    places += site.glob("triton/backends/nvidia/bin/nvdisasm")
    return next((str(p) for p in places if p.exists()), None) or shutil.which("nvdisasm")


def sass(cubin: bytes) -> str:
    """The disassembly; RuntimeError when there is no nvdisasm or it cannot read the cubin."""
    tool = nvdisasm()
    if tool is None:
        raise RuntimeError("no nvdisasm found: pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "-c", "-hex", file.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{tool} failed: {done.stderr.strip()[:500]}")
    return done.stdout


_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);")
_LABEL = re.compile(r"^(\.L_[A-Za-z0-9_]+):")
_SECTION = re.compile(r"^\.text\.(\S+):")


def functions(text: str) -> dict[str, tuple[list[Instruction], dict[str, int]]]:
    """Kernel name -> (instructions in order, label -> address of the instruction after it)."""
    found: dict[str, tuple[list[Instruction], dict[str, int]]] = {}
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    pending: list[str] = []
    for line in text.splitlines():
        section, label, match = _SECTION.match(line), _LABEL.match(line), _LINE.match(line)
        if section:
            code, labels, pending = [], {}, []
            found[section[1]] = code, labels
        elif label:
            pending.append(label[1])
        elif match:
            address = int(match[1], 16)
            labels.update(dict.fromkeys(pending, address))
            pending = []
            code.append(_instruction(address, match[2]))
    return found


def _instruction(address: int, text: str) -> Instruction:
    bare = re.sub(r"^@!?U?P\w+\s+", "", text.strip())
    opcode, _, operands = bare.partition(" ")
    uniform = opcode.startswith("BRA.U") and re.match(r"!?UP\w", operands.strip())  # the predicate stands among the operands
    return Instruction(address, opcode, operands.strip(), bare != text.strip() or bool(uniform))


def loops(code: list[Instruction], labels: dict[str, int]) -> list[list[Instruction]]:
    """The natural loops of a function, smallest first, as instructions in address order.

    A loop is a branch back to a block that dominates it, and all that reaches the branch without leaving through that block. (A wait
    for a barrier retries in a block behind the code that jumps back into it: no loop by this rule but its own retry.)
    """
    blocks = _blocks(code, labels)
    before = _predecessors(blocks)
    dominators = _dominators(blocks, before)
    found = {}
    for start, (_, targets) in blocks.items():
        for target in targets:
            if target in dominators[start]:
                found.setdefault(target, set()).update(_reaching(start, target, before))
    bodies = [[i for at in sorted(body) for i in blocks[at][0]] for body in found.values()]
    return sorted(bodies, key=len)


def _blocks(code: list[Instruction], labels: dict[str, int]) -> dict[int, tuple[list[Instruction], list[int]]]:
    """Address of a basic block -> (its instructions, the addresses of the blocks that may follow)."""
    leaders = {code[0].address, *labels.values()}
    leaders |= {after.address for i, after in itertools.pairwise(code) if i.name in ("BRA", "EXIT", "RET", "BRX")}
    starts = [i for i, x in enumerate(code) if x.address in leaders]
    blocks = {}
    for at, end in zip(starts, [*starts[1:], len(code)]):
        body, last = code[at:end], code[end - 1]
        targets = [
            labels[t] for t in re.findall(r"\.L_[A-Za-z0-9_]+", last.operands) if last.name == "BRA" and t in labels
        ]
        if end < len(code) and not (last.name in ("BRA", "EXIT", "RET") and not last.predicated):
            targets.append(code[end].address)
        blocks[body[0].address] = body, targets
    return blocks


def _predecessors(blocks) -> dict[int, set[int]]:
    before: dict[int, set[int]] = {at: set() for at in blocks}
    for at, (_, targets) in blocks.items():
        for target in targets:
            before[target].add(at)
    return before


def _dominators(blocks, before) -> dict[int, set[int]]:
    """Block -> the blocks that every way from the entry to it goes through (itself included), by iteration to a fixed point."""
    entry, everything = next(iter(blocks)), set(blocks)
    found = {at: {at} if at == entry else everything for at in blocks}
    changed = True
    while changed:
        changed = False
        for at in blocks:
            if at != entry and before[at]:
                new = {at} | set.intersection(*(found[p] for p in before[at]))
                changed, found[at] = changed or new != found[at], new
    return found


def _reaching(start: int, head: int, before) -> set[int]:
    """The blocks from which `start` is reached without going through `head`, and both."""
    body, work = {head}, [start]
    while work:
        at = work.pop()
        if at not in body:
            body.add(at)
            work.extend(before[at])
    return body


def tensor_loops(text: str, name: str = "GMMA") -> list[list[Instruction]]:
    """The innermost loops that run tensor instructions whose name holds `name` ("GMMA", "HMMA"), in a disassembly.

    Where no natural loop holds any (a loop with two ways in): the stretches between a label and a branch back to it.
    """
    found = []
    for code, labels in functions(text).values():
        bodies = loops(code, labels) if code else []
        holding = [body for body in bodies if any(name in i.name for i in body)]
        holding = holding or [body for body in _stretches(code, labels) if any(name in i.name for i in body)]
        found += [b for b in holding if not any(o is not b and set(o) < set(b) for o in holding)]
    return found


def without_detours(text: str, loop: list[Instruction], name: str) -> list[Instruction]:
    """A loop's instructions but the fewest that a branch in it passes over and that hold all its instructions called `name`: what is seldom done.
    The whole loop where it has none, or no branch passes over them all."""
    labels = next(found for code, found in functions(text).values() if loop[0] in code)
    wanted = {i for i in loop if i.name == name}
    detours = []
    for branch in (i for i in loop if i.name == "BRA"):
        for end in (labels[t] for t in re.findall(r"\.L_[A-Za-z0-9_]+", branch.operands) if t in labels):
            passed = {i for i in loop if branch.address < i.address < end}
            if wanted and wanted <= passed:
                detours.append(passed)
    seldom = min(detours, key=len, default=set())
    return [i for i in loop if i not in seldom]


def _stretches(code: list[Instruction], labels: dict[str, int]) -> list[list[Instruction]]:
    """From each label that a later branch goes back to, to that branch."""
    found = []
    for branch in code:
        targets = re.findall(r"\.L_[A-Za-z0-9_]+", branch.operands) if branch.name == "BRA" else []
        for begin in (labels[t] for t in targets if labels.get(t, branch.address) < branch.address):
            found.append([i for i in code if begin <= i.address <= branch.address])
    return found


def census(code: list[Instruction]) -> Counter:
    """How often each opcode (without modifiers) occurs."""
    return Counter(i.name for i in code)
