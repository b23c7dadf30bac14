"""Compiled kernels on disk, named by everything that determines them.

An entry is one object file, and the shared library that was linked from it where there is a linker (attncc.runtime.objects). It is written under another name and moved into place, one process compiles it while others wait
for its lock, and an entry that does not load is compiled again: the cache may be deleted, truncated or shared at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from attncc import config
from attncc.runtime import files, load, objects

FUNCTION = "attncc_launch"
"""The name of the function in every object file."""
PACKAGES = ("nvidia-cutlass-dsl", "apache-tvm-ffi")


@lru_cache(maxsize=1)
def environment() -> str:
    """What compiles: versions of attncc, CuTe DSL, TVM-FFI and Python, the machine, and the bytes of attncc/device."""
    import attncc

    parts = [
        attncc.__version__,
        *(metadata.version(p) for p in PACKAGES),
        platform.machine(),
        sys.version.rsplit("(", 1)[0],
    ]
    state = hashlib.sha256(repr(parts).encode())
    device = Path(attncc.__file__).parent / "device"
    for path in sorted(device.glob("**/*.py")):
        state.update(path.relative_to(device).as_posix().encode() + b"\0")
        state.update(path.read_bytes())
    return state.hexdigest()


def key(text: str, options: str, signature: str) -> str:
    """The name of an entry: the generated text, compiler options (architecture included), the argument types, `environment`."""
    return load.digest(text, options, signature, environment())


@dataclass(frozen=True)
class Entry:
    """Where a kept kernel lies: the file's name in the cache's folder, and the libraries it needs when it is a shared one."""

    file: str
    libraries: tuple[str, ...] = ()
    driver: int = 0


def fetch(name: str, compile: Callable[[], object]):
    """(function, entry): the launch function of entry `name`, loaded from disk or made by `compile()` and kept.

    `compile` gives an object with `export_to_c`. Nothing about the cache is an error: where it cannot be read or written
    the compiled object itself is used, and the entry is None.
    """
    if config.settings().cache is None:
        return compile(), None
    path = load.folder("objects") / f"{name}.o"
    found = _find(path)
    if found is not None:
        return found
    with _lock(path):
        found = _find(path)  # another process may have made it meanwhile
        if found is None:
            compiled = compile()
            _keep(compiled, path)
            found = _find(path) or (compiled, None)  # the first call goes the way of all later ones
    return found


def load_entry(entry: Entry):
    """The launch function of an entry; None when it is not there, damaged, or was made for another driver."""
    path = load.folder("objects") / entry.file
    try:
        if entry.driver != objects.driver_version() or not _intact(path, path.read_bytes()):
            return None
        if entry.libraries:
            return objects.load_shared(path, FUNCTION, entry.libraries)
        return objects.load_relocatable(path, FUNCTION)
    except Exception:  # noqa: BLE001 - whatever a damaged entry raises, it is compiled again
        return None


def _find(path: Path):
    """(function, entry) for the shared library beside an object file, else for the object file itself; None without either."""
    if not path.exists():
        return None
    driver = objects.driver_version()
    libraries = objects.runtime_libraries()
    for entry in (Entry(path.with_suffix(".so").name, libraries, driver), Entry(path.name, (), driver)):
        function = load_entry(entry)
        if function is not None:
            return function, entry
    return None


def _checksum(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _intact(path: Path, data: bytes) -> bool:
    """A damaged object could crash the loader, so its checksum is compared first."""
    return _checksum(path).read_text() == hashlib.sha256(data).hexdigest()


def _keep(compiled, path: Path) -> None:
    """Writes an object file, and the shared library linked from it where that can be done."""
    temporary = path.with_name(f"{uuid.uuid4().hex}.o")
    shared = temporary.with_suffix(".so")
    try:
        compiled.export_to_c(str(temporary), function_name=FUNCTION, export_only_tvm_ffi_symbols=True)
        if objects.link(temporary, shared, objects.runtime_libraries()):
            _write(path.with_suffix(".so"), shared.read_bytes())
        _write(path, temporary.read_bytes())
    except Exception:  # noqa: BLE001 - a kernel that cannot be kept is still a kernel
        _checksum(path).unlink(missing_ok=True)
    finally:
        temporary.unlink(missing_ok=True)
        shared.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    files.write(_checksum(path), hashlib.sha256(data).hexdigest().encode())
    files.write(path, data)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time compiles an entry; where locks do not work, several may."""
    import filelock

    lock = filelock.FileLock(str(path.with_suffix(".lock")))
    try:
        lock.acquire(timeout=600)
    except (OSError, NotImplementedError, filelock.Timeout):
        yield
        return
    try:
        yield
    finally:
        lock.release()
