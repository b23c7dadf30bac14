"""PTX, object file and register counts of what `cute.compile` returned."""

from __future__ import annotations

import contextlib
import struct
import tempfile
from pathlib import Path

from attncc.emulator.findings import PtxError


@contextlib.contextmanager
def keep_ptx(directory: str | None = None):
    """Inside this context every `cute.compile` keeps its PTX (with line info), whatever options it is given.

    The DSL writes and reads the PTX through a dump directory: a private temporary one unless `directory` is given.
    """
    from cutlass.cutlass_dsl import CuTeDSL

    settings = CuTeDSL._get_dsl().envar
    names = ("keep_ptx", "lineinfo", "dump_dir")
    before = {name: getattr(settings, name) for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        settings.keep_ptx, settings.lineinfo, settings.dump_dir = True, True, directory or temporary
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(settings, name, value)


def ptx_of(compiled) -> str:
    """PTX text of a compiled function; raises PtxError if it was not kept."""
    text = getattr(compiled, "__ptx__", None)
    if not text:
        raise PtxError(
            "the compiled function kept no PTX: compile inside `with attncc.emulator.keep_ptx():` "
            "or with options='... --keep-ptx --dump-dir DIR'"
        )
    return text if "\n" in text else Path(text).read_text()


def export_object(compiled, directory: str, name: str) -> Path:
    """The relocatable object of a function compiled with --enable-tvm-ffi."""
    path = Path(directory) / f"{name}.o"
    try:
        compiled.export_to_c(str(path), function_name=name, export_only_tvm_ffi_symbols=True)
    except Exception as error:
        raise PtxError(
            f"cannot export the compiled function (is it compiled with --enable-tvm-ffi?): {error}"
        ) from error
    return path


def registers_per_thread(fatbin: bytes) -> dict[str, int]:
    """{kernel: registers} from every ELF in a fat binary (.nv.info, EIATTR_REGCOUNT 0x2F)."""
    counts: dict[str, int] = {}
    at = fatbin.find(b"\x7fELF")
    while at >= 0:
        counts.update(_elf_registers(fatbin[at:]))
        at = fatbin.find(b"\x7fELF", at + 4)
    return counts


def _elf_registers(elf: bytes) -> dict[str, int]:
    try:
        (table,) = struct.unpack_from("<Q", elf, 0x28)
        entry, count, names_at = struct.unpack_from("<HHH", elf, 0x3A)
        sections = [struct.unpack_from("<IIQQQQIIQQ", elf, table + i * entry) for i in range(count)]

        def text(offset: int) -> str:
            return elf[offset : elf.index(b"\0", offset)].decode()

        named = {text(sections[names_at][4] + s[0]): s for s in sections}
        symbols, strings, info = named[".symtab"], named[".strtab"], named[".nv.info"]
        symbol = [
            text(strings[4] + struct.unpack_from("<I", elf, symbols[4] + 24 * i)[0]) for i in range(symbols[5] // 24)
        ]
        counts, at = {}, info[4]
        while at < info[4] + info[5]:
            form, attribute, size = struct.unpack_from("<BBH", elf, at)
            if (form, attribute, size) == (4, 0x2F, 8):
                index, value = struct.unpack_from("<II", elf, at + 4)
                counts[symbol[index]] = value
            at += 4 + (size if form == 4 else 0)
        return counts
    except (struct.error, KeyError, IndexError, ValueError):
        return {}
