"""Compiled kernels on disk, named by everything that determines them.

An entry is one object file. It is written under another name and moved into place, one process compiles it while others wait
for its lock, and an entry that does not load is compiled again: the cache may be deleted, truncated or shared at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import sys
import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from attncc import config
from attncc.runtime import files, load

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


def fetch(name: str, compile: Callable[[], object]):
    """The launch function of entry `name`, loaded from disk or made by `compile()` and kept.

    `compile` gives an object with `export_to_c`. Nothing about the cache is an error: where it cannot be read or written
    the compiled object itself is used.
    """
    if config.settings().cache is None:
        return compile()
    path = load.folder("objects") / f"{name}.o"
    function = _load(path)
    if function is not None:
        return function
    with _lock(path):
        function = _load(path)  # another process may have made it meanwhile
        if function is None:
            compiled = compile()
            _keep(compiled, path)
            function = _load(path) or compiled  # the first call goes the way of all later ones
    return function


def _load(path: Path):
    """The function in an object file; None when there is none or it is damaged."""
    try:
        data = path.read_bytes()
        if not _intact(path, data):
            return None
        import cutlass.cute as cute

        return getattr(cute.runtime.load_module(str(path), enable_tvm_ffi=True), FUNCTION)
    except Exception:  # noqa: BLE001 - whatever a damaged entry raises, it is compiled again
        return None


def _checksum(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _intact(path: Path, data: bytes) -> bool:
    """A damaged object could crash the loader, so its checksum is compared first."""
    return _checksum(path).read_text() == hashlib.sha256(data).hexdigest()


def _keep(compiled, path: Path) -> None:
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.o")
    try:
        compiled.export_to_c(str(temporary), function_name=FUNCTION, export_only_tvm_ffi_symbols=True)
        data = temporary.read_bytes()
        files.write(_checksum(path), hashlib.sha256(data).hexdigest().encode())
        files.write(path, data)
    except Exception:  # noqa: BLE001 - a kernel that cannot be kept is still a kernel
        _checksum(path).unlink(missing_ok=True)
    finally:
        temporary.unlink(missing_ok=True)


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
