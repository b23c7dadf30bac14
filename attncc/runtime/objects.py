"""Loads compiled objects without importing CuTe DSL.

CuTe DSL exports a relocatable object whose function follows the TVM-FFI calling convention. Linked to a shared library it is loaded by
the system's loader in a millisecond; the undefined symbols are those of CuTe DSL's runtime library and of TVM-FFI. Where no linker
is installed the relocatable object is loaded by CuTe DSL itself, whose import takes one to two seconds.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

LINKERS = (("ld", "-shared"), ("gcc", "-shared", "-nostdlib"), ("cc", "-shared", "-nostdlib"))
_OPEN: dict[str, ctypes.CDLL] = {}
"""Libraries that are kept open so that the loader resolves shared objects against them."""


@lru_cache(maxsize=1)
def driver_version() -> int:
    """The CUDA version of the installed driver (12080 for 12.8), 0 without one. CuTe DSL chooses its runtime library by it."""
    found = ctypes.c_int(0)
    try:
        library = ctypes.CDLL("libcuda.so.1")
        return found.value if library.cuDriverGetVersion(ctypes.byref(found)) == 0 else 0
    except (OSError, AttributeError):
        return 0


def runtime_libraries() -> tuple[str, ...]:
    """The shared libraries that compiled objects call. Imports CuTe DSL."""
    import cutlass.cute as cute

    return tuple(cute.runtime.find_runtime_libraries(enable_tvm_ffi=True))


def link(relocatable: Path, shared: Path, libraries: tuple[str, ...]) -> bool:
    """Makes a shared library of an object file; whether that worked."""
    for name, *options in LINKERS:
        program = shutil.which(name)
        if program is None:
            continue
        command = [program, *options, "-o", str(shared), str(relocatable), *libraries]
        try:
            done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return True
    return False


def load_shared(shared: Path, function: str, libraries: tuple[str, ...]):
    """The function of a shared library that `link` made. OSError or RuntimeError when it does not load."""
    import tvm_ffi

    for path in libraries:
        if path not in _OPEN:
            _OPEN[path] = ctypes.CDLL(path)
    return getattr(tvm_ffi.load_module(str(shared)), function)


def load_relocatable(relocatable: Path, function: str):
    """The function of an object file, by CuTe DSL's loader."""
    import cutlass.cute as cute

    return getattr(cute.runtime.load_module(str(relocatable), enable_tvm_ffi=True), function)
