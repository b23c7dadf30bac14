"""Times schedules of the mma.sync family beside each other: python tests/gpu/try_ampere_variants.py [CASE ...]

A variant is a choice of tiles, stages and of how O is rescaled. All variants of a case are compiled first, checked
on one ragged shape, then
timed interleaved, with PyTorch's flash backend among them.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
LIMIT = 280

PLAIN, SELDOM, FIRST = {"seldom": False}, {"seldom": True}, {"convert_first": True}
LAZY = {"seldom": True, "slack": 8.0}
D128 = {
    "plain": PLAIN,
    "seldom": SELDOM,
    "lazy": LAZY,
    "convert first, seldom": {**SELDOM, **FIRST},
    "convert first, lazy": {**LAZY, **FIRST},
    "2 stages plain": {**PLAIN, "stages": 2},
    "2 stages lazy": {"stages": 2, **LAZY},
    "2 stages convert first, lazy": {"stages": 2, **LAZY, **FIRST},
    "n32 2 stages lazy": {"tile_n": 32, "stages": 2, **LAZY},
    "n48 plain": {**PLAIN, "tile_n": 48},
    "n48 lazy": {"tile_n": 48, **LAZY},
    "n96 8 warps lazy": {"tile_n": 96, "warps": 8, **LAZY},
}
D256 = {
    "8 warps n64 plain": {**PLAIN, "warps": 8},
    "8 warps n64 lazy": {"warps": 8, **LAZY},
    "8 warps n80 lazy": {"warps": 8, "tile_n": 80, **LAZY},
    "4 warps m64 n64 plain": {**PLAIN, "tile_m": 64},
    "4 warps m64 n64 lazy": {"tile_m": 64, **LAZY},
    "4 warps m64 n32 2 stages lazy": {"tile_m": 64, "tile_n": 32, "stages": 2, **LAZY},
    "8 warps n32 2 stages lazy": {"warps": 8, "tile_n": 32, "stages": 2, **LAZY},
    "8 warps n48 2 stages lazy": {"warps": 8, "tile_n": 48, "stages": 2, **LAZY},
}
D64 = {
    "n64 plain": {**PLAIN, "tile_n": 64},
    "n64 lazy": {"tile_n": 64, **LAZY},
    "n64 2 stages plain": {**PLAIN, "tile_n": 64, "stages": 2},
    "n64 2 stages lazy": {"tile_n": 64, "stages": 2, **LAZY},
    "n112 plain": {**PLAIN, "tile_n": 112},
    "n96 2 stages lazy": {"tile_n": 96, "stages": 2, **LAZY},
    "m64 n64 2 stages lazy": {"tile_m": 64, "stages": 2, **LAZY},
}
CASES = {
    "d128": ({}, D128),
    "d128_causal": ({"causal": True}, D128),
    "d256": ({"dim_qk": 256}, D256),
    "d64": ({"dim_qk": 64}, D64),
}


def compile_variant(options: dict):
    import torch
    from cutlass import cute

    from attncc.emit import emit
    from attncc.runtime import fakes, load
    from tests.emit.ampere_schedules import CAUSAL, ampere_dense
    from tests.gpu.try_ampere import ARCHS

    options = dict(options)
    mask = {"mask": CAUSAL} if options.pop("causal", False) else {}
    schedule = ampere_dense(**options, **mask)
    text = emit(schedule)
    path = Path(tempfile.mkdtemp()) / f"kernel_{hashlib.sha256(text.encode()).hexdigest()[:12]}.py"
    path.write_text(text)
    module = load.module(path)
    arguments = fakes.fake_arguments(module.ARGUMENTS, schedule.attention, module.launch)
    arch = ARCHS[torch.cuda.get_device_capability()]
    return cute.compile(module.launch, *arguments, options=f"--gpu-arch {arch} --enable-tvm-ffi"), schedule


def run_case(name: str) -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from tests.gpu.try_ampere import check, inputs, milliseconds

    base, variants = CASES[name]
    functions = {}
    for label, options in variants.items():
        try:
            functions[label], schedule = compile_variant({**base, **options})
            print(f" {label}", flush=True)
            check(functions[label], schedule, base, (2, 257, 640))
        except Exception as error:  # a variant that fails leaves the others their turn
            functions.pop(label, None)
            print(f" {label}: {str(error)[:200]}", flush=True)
    a = schedule.attention
    tensors = inputs(schedule, 16 // a.heads_q * 4, 4096, 4096)
    q, k, v = (x.transpose(1, 2) for x in tensors[:3])
    causal = base.get("causal", False)

    def peer():
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    spans = milliseconds([*(lambda f=f: f(*tensors) for f in functions.values()), peer])
    flop = 4 * q.shape[0] * a.heads_q * 4096**2 * a.dim_qk * (0.5 if causal else 1.0)
    for label, ms in zip((*functions, "torch flash"), spans):
        print(f" s4096 {label}: {flop / ms / 1e9:.0f} TFLOP/s, {spans[-1] / ms:.3f}", flush=True)


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--inside":
        run_case(sys.argv[2])
        return
    for name in sys.argv[1:] or CASES:
        print(name, flush=True)
        try:
            subprocess.run([sys.executable, __file__, "--inside", name], timeout=LIMIT, check=False)
        except subprocess.TimeoutExpired:
            print(f"  no end within {LIMIT} s", flush=True)


if __name__ == "__main__":
    main()
