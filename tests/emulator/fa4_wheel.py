"""Runs forward kernels of the installed flash-attn-4 wheel in the emulator: its own front end, CPU tensors.

The wheel asks the machine for a GPU in a few places (device capability, driver, DLPack on CUDA); those answers are
replaced, nothing else: tile choices, compilation and call arguments are the wheel's own.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import types

ARCHS = {80: "sm_80", 90: "sm_90a", 100: "sm_100a"}


def load(capability: int):
    """Import flash_attn.cute for one architecture (80, 90 or 100); once per process."""
    os.environ["FLASH_ATTENTION_ARCH"] = f"sm_{capability}"
    os.environ["FLASH_ATTENTION_NUM_SMS"] = "132"
    import torch

    _light_quack()
    from cutlass.cutlass_dsl import CuTeDSL

    CuTeDSL._get_dsl().envar.arch = ARCHS[capability]
    torch.Tensor.is_cuda = property(lambda self: True)
    torch.cuda.get_device_capability = lambda *a: (capability // 10, capability % 10)
    import cutlass.utils

    class Hardware:
        """Answers for a GPU with 132 SMs."""

        def __init__(self, *args):
            pass

        def get_max_active_clusters(self, size):
            """CTAs per wave over cluster size."""
            return 132 // size

        def get_device_multiprocessor_count(self):
            """SM count."""
            return 132

    cutlass.utils.HardwareInfo = Hardware
    interface = importlib.import_module("flash_attn.cute.interface")
    interface._get_device_arch.cache_clear()
    interface.to_cute_tensor = fake_tensor
    return interface


def _light_quack():
    """quack's package import pulls in triton; its submodules do not, except the one that installs tensor indexing."""
    if "quack" in sys.modules:
        return
    spec = importlib.util.find_spec("quack")
    package = types.ModuleType("quack")
    package.__path__, package.__spec__ = list(spec.submodule_search_locations), spec
    sys.modules["quack"] = package
    importlib.import_module("quack.dsl")


def fake_tensor(t, assumed_align=16, leading_dim=-1, fully_dynamic=False, enable_tvm_ffi=True):
    """A CuTe fake tensor with the dynamic layout the wheel would give a CUDA tensor."""
    if t is None:
        return None
    import cutlass
    import cutlass.cute as cute
    import torch

    kinds = {
        torch.bfloat16: cutlass.BFloat16,
        torch.float16: cutlass.Float16,
        torch.float32: cutlass.Float32,
        torch.int32: cutlass.Int32,
        torch.float8_e4m3fn: cutlass.Float8E4M3FN,
    }
    dense = None if fully_dynamic else t.ndim - 1 if leading_dim == -1 else leading_dim
    strides = tuple(1 if i == dense else cute.sym_int64() for i in range(t.ndim))
    return cute.runtime.make_fake_tensor(
        kinds[t.dtype],
        tuple(cute.sym_int() for _ in range(t.ndim)),
        strides,
        assumed_align=assumed_align or t.element_size(),
    )


class Recorder(dict):
    """Stands in for the wheel's cache of compiled functions: a call is emulated."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def __getitem__(self, key):
        compiled = dict.__getitem__(self, key)
        return lambda *args: self.run(compiled, args)


def forward(interface, q, k, v, causal=False, seeds=1, **options):
    """(out, lse, results) of the wheel's forward function, every kernel it launches emulated."""
    from attncc.emulator import emulate, keep_ptx

    results = []

    def run(compiled, args):
        results.append(emulate(compiled, *args, seeds=seeds))

    saved = interface._flash_attn_fwd.compile_cache
    interface._flash_attn_fwd.compile_cache = Recorder(run)
    try:
        with keep_ptx():
            out, lse = interface._flash_attn_fwd(q, k, v, causal=causal, return_lse=True, **options)[:2]
    finally:
        interface._flash_attn_fwd.compile_cache = saved
    return out, lse, results


def backward(interface, q, k, v, causal=False, seeds=1):
    """(gradients, expected gradients, results) of the wheel's backward function for a random output gradient."""
    import torch

    from attncc.emulator import emulate, keep_ptx

    wide = [t.float().requires_grad_() for t in (q, k, v)]
    out = reference(*wide, causal)
    grad = torch.randn(out.shape).bfloat16()
    out.backward(grad.float())
    results, saved = [], {}

    def run(compiled, args):
        results.append(emulate(compiled, *args, seeds=seeds, stop_at_first=False))

    for f in vars(interface).values():
        if hasattr(f, "compile_cache"):
            saved[f], f.compile_cache = f.compile_cache, Recorder(run)
    try:
        with keep_ptx():
            lse = torch.logsumexp(scores(q, k, causal), -1)
            found = interface._flash_attn_bwd(q, k, v, out.detach().bfloat16(), grad, lse, causal=causal)[:3]
    finally:
        for f, cache in saved.items():
            f.compile_cache = cache
    return found, [t.grad for t in wide], results


def run_case(interface, case, seeds: int, gradients: bool) -> dict:
    """The results of a case in words, the kinds of its errors, and the largest difference from the reference.

    case: head dim, causal, query heads, key heads, query length, key length.
    """
    import torch

    dim, causal, heads, kv_heads, q_len, k_len = case
    torch.manual_seed(0)
    q = torch.randn(1, q_len, heads, dim).bfloat16()
    k, v = (torch.randn(1, k_len, kv_heads, dim).bfloat16() for _ in range(2))
    if gradients:
        found, wanted, results = backward(interface, q, k, v, bool(causal), seeds)
    else:
        out, _, results = forward(interface, q, k, v, bool(causal), seeds)
        found, wanted = [out], [reference(q, k, v, bool(causal))]
    return {
        "text": "\n".join(map(str, results)),
        "kinds": sorted({kind for r in results for kind in r.kinds}),
        "seeds": [len(r.seeds) for r in results],
        "steps": sum(r.steps for r in results),
        "difference": max((a.float() - b).abs().max().item() for a, b in zip(found, wanted)),
    }


def main(argv):
    """capability. Each line of the input is a JSON list of arguments of `run_case` after the first; its result is a line, too."""
    interface = load(int(argv[0]))
    answers = sys.stdout
    sys.stdout = sys.stderr  # what others print is no answer
    for line in sys.stdin:
        answers.write(json.dumps(run_case(interface, *json.loads(line))) + "\n")
        answers.flush()


def scores(q, k, causal):
    """Scaled scores [b, h, q, k] in float32, causal aligned bottom-right."""
    import torch

    k = k.float().repeat_interleave(q.shape[2] // k.shape[2], 2)
    s = torch.einsum("bqhd,bkhd->bhqk", q.float(), k) / q.shape[-1] ** 0.5
    if causal:
        row = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
        s = s.masked_fill(torch.arange(k.shape[1])[None, :] > row, float("-inf"))
    return s


def reference(q, k, v, causal):
    """Dense float32 attention, [b, s, h, d]."""
    import torch

    v = v.float().repeat_interleave(q.shape[2] // v.shape[2], 2)
    return torch.einsum("bhqk,bkhd->bqhd", torch.softmax(scores(q, k, causal), -1), v)


if __name__ == "__main__":
    main(sys.argv[1:])
