"""The real launch, captured without a GPU: the compiled host code runs against stub CUDA entry points.

The object that `export_to_c` writes needs about a dozen `_cuda*` symbols. They are linked in as stubs that hand the
launch configuration and the kernel parameters, tensor maps included, to Python. Nothing is described a second time.
"""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from attncc.emulator.artifacts import export_object, registers_per_thread
from attncc.emulator.findings import PtxError
from attncc.emulator.machine import Launch
from attncc.emulator.memory import GlobalMemory, Region, TensorInfo

STUBS = r"""
#include <stdint.h>
#include <string.h>
#include <stdlib.h>
typedef int (*launch_fn)(const void *config, const char *kernel, void **args);
typedef int (*load_fn)(const void *image);
static launch_fn on_launch; static load_fn on_load;
__attribute__((visibility("default"))) void attncc_callbacks(launch_fn a, load_fn b) { on_launch = a; on_load = b; }
struct config { uint32_t grid[3], block[3]; uint64_t shared; void *stream; void *attrs; uint32_t count; };
int _cudaLaunchKernelEx(const void *config, const char *kernel, void **args) { return on_launch(config, kernel, args); }
int _cudaLaunchKernel(const char *kernel, uint32_t gx, uint32_t gy, uint32_t gz, uint32_t bx, uint32_t by, uint32_t bz,
                      void **args, uint64_t shared, void *stream) {
  struct config c = {{gx, gy, gz}, {bx, by, bz}, shared, stream, 0, 0};
  return on_launch(&c, kernel, args);
}
int _cudaLibraryLoadData(void **lib, const void *image, void *a, void *b, int c, void *d, void *e, int f) {
  *lib = (void *)image; return on_load(image);
}
int _cudaLibraryGetKernel(const char **kernel, void *lib, const char *name) { *kernel = strdup(name); return 0; }
int _cudaGetDevice(int *device) { *device = 0; return 0; }
int _cudaSetDevice(int device) { return 0; }
int _cudaDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 97 || attribute == 81 ? 232448 : attribute == 16 ? 132 : 1; return 0;
}
int _cudaFuncSetAttribute(void *f, int attribute, int value) { return 0; }
int _cudaKernelSetAttributeForDevice(void *k, int attribute, int value, int device) { return 0; }
int _cuKernelGetAttribute(int *value, int attribute, void *kernel, int device) { *value = 0; return 0; }
int _cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, void *f, int block, uint64_t shared) { *n = 1; return 0; }
int cuda_dialect_init_library_once(void *state, int (*init)(void **), int (*load)(void **, int), void *error) {
  static void *libs[256]; int r = init(libs); return r ? r : load(libs, 0);
}
void cuda_dialect_unload_library_once(void *state) {}
const char *cuda_dialect_get_error_name(int e) { return "emulated CUDA error"; }
void CuteDSLRT_TVMFFISetRaisedCudaError(void *a, int e) {}
"""

_LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p))
_LOAD = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
CLUSTER_ATTRIBUTE = 4


class HostFunction:
    """The compiled host side of one function, callable on CPU tensors; its launches are captured, not run."""

    def __init__(self, compiled, param_sizes: Callable[[str], list[tuple[int, int]]]):
        self.folder = tempfile.TemporaryDirectory()
        self.param_sizes = param_sizes
        self.launches: list[Launch] = []
        self.registers: dict[str, int] = {}
        self.error: Exception | None = None
        obj = export_object(compiled, self.folder.name, "emulated")
        self.names = _argument_names(obj.read_bytes())
        library = _link(obj, self.folder.name)
        self._callbacks = (_LAUNCH(self._on_launch), _LOAD(self._on_load))
        ctypes.CDLL(str(library)).attncc_callbacks(*self._callbacks)
        import tvm_ffi

        self.module = tvm_ffi.load_module(str(library))
        self.function = self.module["emulated"]

    def __call__(self, *args) -> list[Launch]:
        """Run the host code; the launches it made, in order."""
        self.launches, self.error = [], None
        self.function(*[_as_device(a) for a in args])
        if self.error is not None:
            raise self.error
        if not self.launches:
            raise PtxError("the host code made no launch")
        return self.launches

    def _on_load(self, image: int) -> int:
        head = ctypes.string_at(image, 16)
        size = struct.unpack_from("<Q", head, 8)[0] + struct.unpack_from("<H", head, 6)[0]
        self.registers.update(registers_per_thread(ctypes.string_at(image, size)))
        return 0

    def _on_launch(self, config, kernel, args) -> int:
        try:
            self.launches.append(self._read_launch(config, kernel.decode(), args))
        except (PtxError, KeyError, ValueError, struct.error) as error:  # must not cross the C frames in between
            self.error = error
        return 0

    def _read_launch(self, config: int, kernel: str, args) -> Launch:
        raw = ctypes.string_at(config, 56)
        grid, block = struct.unpack_from("<3I", raw, 0), struct.unpack_from("<3I", raw, 12)
        shared, _, attrs, count = struct.unpack_from("<QQQI", raw, 24)
        cluster, others = (1, 1, 1), []
        for i in range(count):
            entry = ctypes.string_at(attrs + 72 * i, 72)
            (ident,) = struct.unpack_from("<I", entry)
            if ident == CLUSTER_ATTRIBUTE:
                cluster = tuple(max(1, n) for n in struct.unpack_from("<3I", entry, 8))
            others.append((ident, entry[8:24]))
        sizes = self.param_sizes(kernel)
        block_bytes = bytearray(max((o + s for o, s in sizes), default=0))
        for i, (offset, size) in enumerate(sizes):
            block_bytes[offset : offset + size] = ctypes.string_at(args[i], size)
        return Launch(
            kernel, grid, block, cluster, shared, bytes(block_bytes), self.registers.get(kernel, 0), tuple(others)
        )


def _link(obj: Path, folder: str) -> Path:
    """Link object and stubs so that the stubs win over any CUDA runtime already loaded."""
    source, library = Path(folder) / "stubs.c", Path(folder) / "emulated.so"
    source.write_text(STUBS)
    command = [
        "gcc",
        "-O1",
        "-w",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        "-Wl,-Bsymbolic",
        str(source),
        str(obj),
        "-o",
        str(library),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise PtxError(f"linking the host code failed:\n{done.stderr}")
    return library


def _argument_names(obj: bytes) -> list[str]:
    """Argument names from the signature text that the TVM-FFI wrapper carries for its error messages."""
    match = re.search(rb" when calling: `\w+\((.*?)\)`", obj, re.DOTALL)
    return [n.decode() for n in re.findall(rb"(?:^|, )(\w+): ", match.group(1))] if match else []


def _as_device(value):
    """CPU tensors become tensors that claim to live on a CUDA device; containers are walked."""
    if isinstance(value, tuple):
        items = [_as_device(v) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [_as_device(v) for v in value]
    if not hasattr(value, "__dlpack__"):
        return value
    import tvm_ffi

    source = value.detach() if hasattr(value, "detach") else value
    capsule = source.__dlpack__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = pointer(capsule, b"dltensor")
    ctypes.c_int32.from_address(address + 8).value = 2
    return tvm_ffi.from_dlpack(capsule)


def tensors_in(args, names=None) -> list[tuple[str, object]]:
    """(name, tensor) for every tensor among the arguments, containers included."""
    found = []

    def walk(value, name):
        if isinstance(value, (tuple, list)):
            for i, item in enumerate(value):
                walk(item, f"{name}.{value._fields[i]}" if hasattr(value, "_fields") else f"{name}[{i}]")
        elif hasattr(value, "__dlpack__"):
            found.append((name, value))

    for i, value in enumerate(args):
        walk(value, names[i] if names and i < len(names) else f"arg{i}")
    return found


def tensor_info(name: str, value) -> TensorInfo:
    """Address, shape, strides (in elements) and item size of a torch or numpy tensor."""
    if hasattr(value, "data_ptr"):
        return TensorInfo(name, value.data_ptr(), tuple(value.shape), tuple(value.stride()), value.element_size())
    strides = tuple(s // value.itemsize for s in value.strides)
    return TensorInfo(name, value.ctypes.data, tuple(value.shape), strides, value.itemsize)


def allocations(tensors: list[tuple[str, object]]) -> GlobalMemory:
    """Global memory made of the tensors' own bytes; views of one buffer share a region."""
    memory = GlobalMemory()
    infos = [tensor_info(name, value) for name, value in tensors]
    infos = [i for i in infos if all(n > 0 for n in i.shape)]
    spans = sorted(
        ((i.base, i.base + (sum((n - 1) * s for n, s in zip(i.shape, i.strides)) + 1) * i.itemsize, i) for i in infos),
        key=lambda span: span[:2],
    )
    merged: list[list] = []
    for start, end, info in spans:
        if merged and start < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
            merged[-1][2].append(info)
        else:
            merged.append([start, end, [info]])
    for start, end, members in merged:
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * (end - start)).from_address(start))
        region = Region(members[0].name, start, raw, None, _valid_bytes(start, end, members))
        region.tensors = members
        memory.add(region)
    return memory


def _valid_bytes(start: int, end: int, members: list[TensorInfo]) -> np.ndarray | None:
    """bool per byte: does some tensor have an element there? None if there are no gaps."""
    if sum(int(np.prod(m.shape)) * m.itemsize for m in members) == end - start and len(members) == 1:
        return None
    valid = np.zeros(end - start, bool)
    for m in members:
        view = np.lib.stride_tricks.as_strided(
            valid[m.base - start :], tuple(m.shape) + (m.itemsize,), tuple(s * m.itemsize for s in m.strides) + (1,)
        )
        view[...] = True
    return None if valid.all() else valid
