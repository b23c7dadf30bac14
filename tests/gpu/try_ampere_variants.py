"""Times ways of writing the mma.sync loop beside each other: python tests/gpu/try_ampere_variants.py [CASE ...]

A variant edits the generated text (it is tried before it becomes an operation or a pass). All variants of a case are compiled first, checked on
one ragged shape, then timed interleaved, with PyTorch's flash backend among them.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
LIMIT = 280

STEP = re.compile(
    r"""softmax.step\(S_cells, row_max, row_sum, correction, ([0-9.e-]+), False, (\w+), ([0-9.]+)\)
(\s+)(.*rescale.*)
\s+softmax.convert\(P, S\)
\s+ampere.multiply_register\(O, P, V, O_P_V_b, V_read, True, DTYPE\)"""
)
INTERLEAVED = r"""shifts = ampere_overlap.statistics(S_cells, row_max, correction, \1, \2, \3)
\4\5
\4ampere_overlap.weigh_and_multiply(O, S_cells, row_sum, shifts, correction, \1, V, O_P_V_b, V_read, DTYPE)"""


def interleaved(text: str) -> str:
    return STEP.sub(INTERLEAVED, text).replace("import ampere,", "import ampere, ampere_overlap,")


def same(text: str) -> str:
    return text


PLAIN, SELDOM, FIRST = {"seldom": False}, {"seldom": True}, {"convert_first": True}
LAZY = {"seldom": True, "slack": 8.0}
D128 = {
    "plain": (PLAIN, same),
    "seldom": (SELDOM, same),
    "lazy": (LAZY, same),
    "convert first, seldom": ({**SELDOM, **FIRST}, same),
    "convert first, lazy": ({**LAZY, **FIRST}, same),
    "interleaved plain": (PLAIN, interleaved),
    "interleaved lazy": (LAZY, interleaved),
    "2 stages plain": ({**PLAIN, "stages": 2}, same),
    "2 stages lazy": ({"stages": 2, **LAZY}, same),
    "2 stages convert first, lazy": ({"stages": 2, **LAZY, **FIRST}, same),
    "n32 2 stages lazy": ({"tile_n": 32, "stages": 2, **LAZY}, same),
    "n48 plain": ({**PLAIN, "tile_n": 48}, same),
    "n48 lazy": ({"tile_n": 48, **LAZY}, same),
    "n96 8 warps lazy": ({"tile_n": 96, "warps": 8, **LAZY}, same),
}
D256 = {
    "8 warps n64 plain": ({**PLAIN, "warps": 8}, same),
    "8 warps n64 lazy": ({"warps": 8, **LAZY}, same),
    "8 warps n80 lazy": ({"warps": 8, "tile_n": 80, **LAZY}, same),
    "4 warps m64 n64 plain": ({**PLAIN, "tile_m": 64}, same),
    "4 warps m64 n64 lazy": ({"tile_m": 64, **LAZY}, same),
    "4 warps m64 n32 2 stages lazy": ({"tile_m": 64, "tile_n": 32, "stages": 2, **LAZY}, same),
    "8 warps n32 2 stages lazy": ({"warps": 8, "tile_n": 32, "stages": 2, **LAZY}, same),
    "8 warps n48 2 stages lazy": ({"warps": 8, "tile_n": 48, "stages": 2, **LAZY}, same),
}
D64 = {
    "n64 plain": ({**PLAIN, "tile_n": 64}, same),
    "n64 lazy": ({"tile_n": 64, **LAZY}, same),
    "n64 2 stages plain": ({**PLAIN, "tile_n": 64, "stages": 2}, same),
    "n64 2 stages lazy": ({"tile_n": 64, "stages": 2, **LAZY}, same),
    "n112 plain": ({**PLAIN, "tile_n": 112}, same),
    "n96 2 stages lazy": ({"tile_n": 96, "stages": 2, **LAZY}, same),
    "m64 n64 2 stages lazy": ({"tile_m": 64, "stages": 2, **LAZY}, same),
    "n64 interleaved lazy": ({"tile_n": 64, **LAZY}, interleaved),
}
CASES = {
    "d128": ({}, D128),
    "d128_causal": ({"causal": True}, D128),
    "d256": ({"dim_qk": 256}, D256),
    "d64": ({"dim_qk": 64}, D64),
}


def compile_variant(options: dict, edit):
    import torch
    from cutlass import cute

    from attncc.emit import emit
    from attncc.runtime import fakes, load
    from tests.emit.ampere_schedules import CAUSAL, ampere_dense
    from tests.gpu.try_ampere import ARCHS

    options = dict(options)
    mask = {"mask": CAUSAL} if options.pop("causal", False) else {}
    schedule = ampere_dense(**options, **mask)
    text = edit(emit(schedule))
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
    for label, (options, edit) in variants.items():
        try:
            functions[label], schedule = compile_variant({**base, **options}, edit)
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
