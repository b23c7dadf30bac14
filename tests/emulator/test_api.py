"""The launch as captured, the trace, names of elements out of bounds, strided tensors, sampling of CTAs."""

import itertools
import json

import cutlass
import cutlass.cute as cute
import numpy as np
import pytest
import torch
from cuda.bindings.driver import CUstream
from cutlass import Float32
from cutlass.cute.runtime import make_fake_compact_tensor, make_fake_stream, make_fake_tensor

import attncc
from attncc.emulator import EmulationError, emulate, keep_ptx
from attncc.emulator.findings import PtxError
from attncc.interp.data import make_inputs
from attncc.runtime.emulated import emulate_calls
from tests.emulator.support import SCALE, compiled, inputs

OPTIONS = "--gpu-arch sm_80 --enable-tvm-ffi"


@cute.kernel
def axpy_kernel(x: cute.Tensor, y: cute.Tensor, a: Float32, past: cutlass.Constexpr):
    thread, _, _ = cute.arch.thread_idx()
    block, _, _ = cute.arch.block_idx()
    i = block * 128 + thread
    if i < cute.size(x) + past:
        y[i] = x[i] * a + y[i]


@cute.jit
def axpy(x: cute.Tensor, y: cute.Tensor, a: Float32, past: cutlass.Constexpr, stream: CUstream):
    axpy_kernel(x, y, a, past).launch(grid=(cute.ceil_div(cute.size(x), 128), 1, 1), block=(128, 1, 1), stream=stream)


def compile_axpy(past=0, strided=False):
    """axpy on float32; `past` elements too many; with a run-time stride if `strided`."""
    n = cute.sym_int()
    if strided:
        fakes = [make_fake_tensor(Float32, (n,), (cute.sym_int64(),), assumed_align=4) for _ in range(2)]
    else:
        fakes = [make_fake_compact_tensor(Float32, (n,), assumed_align=16) for _ in range(2)]
    with keep_ptx():
        return cute.compile(
            axpy, *fakes, Float32(1.0), past, make_fake_stream(use_tvm_ffi_env_stream=True), options=OPTIONS
        )


def test_launch_is_the_compiled_functions_own():
    x, y = torch.arange(300.0), torch.ones(300)
    result = emulate(compile_axpy(), x, y, 2.0)
    assert result.ok
    assert torch.equal(y, 2 * torch.arange(300.0) + 1)
    (launch,) = result.launches
    assert (launch.grid, launch.block, launch.shared_bytes) == ((3, 1, 1), (128, 1, 1), 0)
    assert launch.registers > 0


def test_numpy_arrays():
    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    assert emulate(compile_axpy(), x, y, 3.0).ok
    assert (y == 3 * np.arange(64)).all()


def test_access_outside_names_tensor_and_element():
    x, y = torch.zeros(100), torch.zeros(100)
    result = emulate(compile_axpy(past=4), x, y, 1.0)
    assert result.kinds == {"out-of-bounds"}
    assert any("x[100]" in f.message or "y[100]" in f.message for f in result.errors), str(result)
    assert result.errors[0].source.startswith("test_api.py:")
    with pytest.raises(EmulationError):
        result.check()


def test_bytes_between_strided_elements_are_outside():
    memory = torch.zeros(2, 64)
    x, y = memory[0, ::2], torch.zeros(32)
    kernel = compile_axpy(strided=True)
    assert emulate(kernel, x, y, 1.0).ok
    text = kernel.__ptx__
    spot = text.index("ld.global.b32")
    end = text.index("]", spot)
    result = emulate(kernel, x, y, 1.0, ptx=text[:end] + "+4" + text[end:])
    assert "out-of-bounds" in result.kinds


def test_trace_opens_as_json(tmp_path):
    path = tmp_path / "trace.json"
    emulate(compiled("fa3"), *inputs(128), SCALE, trace=str(path))
    events = json.loads(path.read_text())["traceEvents"]
    assert {"run", "wait", "async"} <= {e.get("cat") for e in events}
    assert any("TMA load" in e["name"] for e in events)
    names = {e["args"]["name"] for e in events if e["ph"] == "M"}
    assert names >= {"cta (0, 0, 0)", "warp 0: TMA load", "warp 4: wgmma, TMA store", "warp 11: wgmma"}, names


def test_trace_of_several_launches(tmp_path):
    """One launch after the other, each with its own tracks: slices of a track never overlap, operations are told apart."""
    text = (
        "attention packed { heads q = 1, kv = 1\n dim 64\n dtype bf16\n tensor d: i32[b, seq_q] in 0..4 sorted\n"
        " mask document(d, d) }"
    )
    kernel = attncc.compile(text, target="ampere")
    path = tmp_path / "trace.json"
    results = emulate_calls(kernel, trace=str(path))
    q, k, v, tensors = make_inputs(kernel.attention, 1, 64, 64, 0, "cpu")
    kernel(q, k, v, **tensors)
    assert len(results[0].launches) > 1
    events = json.loads(path.read_text())["traceEvents"]
    names = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert {"launch 1, cta (0, 0, 0)", "launch 2, cta (0, 0, 0)"} <= names
    tracks = {}
    for e in events:
        if e["ph"] == "X":
            tracks.setdefault((e["pid"], e["tid"]), []).append((e["ts"], e["ts"] + e["dur"]))
    for spans in tracks.values():
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    begun = [e["id"] for e in events if e["ph"] == "b"]
    assert len(begun) == len(set(begun)) and sorted(begun) == sorted(e["id"] for e in events if e["ph"] == "e")


def test_some_ctas_only():
    q, k, v, o = inputs(256)
    result = emulate(compiled("fa2"), q, k, v, o, SCALE, clusters=1)
    assert result.ok
    assert int(torch.isnan(o.float()).all(1).sum()) == 256 - 64


def test_compiled_without_ptx_is_refused_with_advice():
    n = cute.sym_int()
    fakes = [make_fake_compact_tensor(Float32, (n,), assumed_align=16) for _ in range(2)]
    bare = cute.compile(axpy, *fakes, Float32(1.0), 0, make_fake_stream(use_tvm_ffi_env_stream=True), options=OPTIONS)
    with pytest.raises(PtxError, match="keep_ptx"):
        emulate(bare, torch.zeros(8), torch.zeros(8), 1.0)
