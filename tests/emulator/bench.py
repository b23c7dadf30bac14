"""Runs a few lines of PTX on one or more warps: inputs and outputs are one 32-bit (or 64-bit) word per thread."""

from __future__ import annotations

import numpy as np

from attncc.emulator.decode import decode
from attncc.emulator.findings import FindingLog
from attncc.emulator.machine import Launch, Limits, Machine
from attncc.emulator.memory import GlobalMemory, Region, TensorInfo
from attncc.emulator.ptx_parse import parse
from attncc.emulator.races import Shadow

HEADER = """.version 9.4
.target {target}
.address_size 64
.extern .shared .align 1024 .b8 smem[];
.visible .entry k(.param .u64 k_in, .param .u64 k_out)
.reqntid {threads}, 1, 1
{{
.reg .pred %p<64>;
.reg .b16 %h<128>;
.reg .b32 %r<2048>;
.reg .b32 %i<512>;
.reg .b32 %o<512>;
.reg .b64 %d<256>;
.reg .b64 %q<16>;
mov.u32 %r2000, %tid.x;
ld.param.b64 %q0, [k_in];
ld.param.b64 %q1, [k_out];
mul.wide.u32 %q2, %r2000, 4;
add.s64 %q0, %q0, %q2;
add.s64 %q1, %q1, %q2;
mov.b32 %r2001, smem;
"""


def run(
    body: str,
    inputs=(),
    outputs: int = 1,
    threads: int = 32,
    shared: int = 0,
    target: str = "sm_100a",
    seed: int = 0,
    registers: int = 0,
):
    """(uint32[outputs, threads], findings). Input j is in %i<j>, output j is taken from %o<j>; %r2000 is the thread."""
    data = np.zeros((max(len(inputs), 1), threads), np.uint32)
    for j, row in enumerate(inputs):
        data[j] = np.broadcast_to(
            np.asarray(row).astype(np.uint32)
            if np.asarray(row).dtype.kind in "iu"
            else np.asarray(row, np.float32).view(np.uint32),
            threads,
        )
    out = np.zeros((max(outputs, 1), threads), np.uint32)
    text = HEADER.format(target=target, threads=threads)
    text += "".join(f"ld.global.b32 %i{j}, [%q0+{4 * threads * j}];\n" for j in range(len(inputs)))
    text += body + "".join(f"st.global.b32 [%q1+{4 * threads * j}], %o{j};\n" for j in range(outputs)) + "ret;\n}\n"
    module = parse(text)
    program = decode(module, module.kernels["k"])
    memory, log = GlobalMemory(), FindingLog(seed)
    for name, array in (("inputs", data), ("outputs", out)):
        region = Region(name, array.ctypes.data, array.view(np.uint8).reshape(-1))
        region.tensors = [TensorInfo(name, array.ctypes.data, array.shape, (threads, 1), 4)]
        memory.add(region)
    params = np.array([data.ctypes.data, out.ctypes.data], np.uint64).tobytes()
    launch = Launch("k", (1, 1, 1), (threads, 1, 1), (1, 1, 1), shared, params, registers)
    machine = Machine(program, launch, memory, log, Limits())
    for region in memory.regions:
        region.shadow = Shadow(machine, region.name, len(region.data), 4, initialised=True)
    with np.errstate(all="ignore"):
        machine.run()
    return out[:outputs], log.items
