"""Time from the start of a process to the first result, beside that of a process that only imports torch.

    python -m tests.gpu.warm_start                     on a GPU: empty cache (cold), then filled (warm), medians of five
    python -m tests.gpu.warm_start --without-gpu       everything up to the launch, on any machine

"torch + CUDA + operands" imports torch and makes tensors on the device, which every program that calls a kernel has to do. The aims: at most
6 s cold and 0.5 s warm beyond importing torch.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = "attention plain {\n    heads q = 16, kv = 4\n    dim 128\n    dtype bf16\n    mask causal\n}\n"
TORCH = "import torch"
OPERANDS = """
q, k, v = (torch.randn(1, 512, h, 128, device="cuda", dtype=torch.bfloat16) for h in (16, 4, 4))
"""
CALL = f"""
import attncc
kernel = attncc.compile({TEXT!r})
out = kernel(q, k, v)
torch.cuda.synchronize()
assert not out.isnan().any().item()
"""
NO_GPU = f"""
import torch
import attncc
kernel = attncc.compile({TEXT!r}, target="hopper")
launcher = kernel._compiled(kernel.target, kernel.target.archs[0])
assert callable(launcher.launch)
"""


def seconds(program: str, cache: str) -> tuple[float, float]:
    """(wall, CPU) time of a fresh process that runs `program`, from before it is started until it has ended its work."""
    environment = {**os.environ, "ATTNCC_CACHE": cache, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    program += "\nimport time\nprint(time.time(), time.process_time(), flush=True)"
    start = time.time()
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    end, used = map(float, done.stdout.split()[-2:])
    return end - start, used


def median(program: str, cache: str, repeats: int) -> tuple[float, float]:
    walls, used = zip(*(seconds(program, cache) for _ in range(repeats)))
    return statistics.median(walls), statistics.median(used)


def line(name: str, found: tuple[float, float], base: tuple[float, float]) -> str:
    parts = [f"{name:26}{found[0]:6.2f} s wall {found[1]:6.2f} s CPU"]
    if base is not found:
        parts.append(f"beyond importing torch {found[0] - base[0]:+.2f} s wall {found[1] - base[1]:+.2f} s CPU")
    return "   ".join(parts)


def main(without_gpu: bool, repeats: int) -> None:
    program = NO_GPU if without_gpu else TORCH + OPERANDS + CALL
    with tempfile.TemporaryDirectory() as cache:
        torch = median(TORCH, cache, repeats)
        print(line("import torch", torch, torch), flush=True)
        if not without_gpu:
            print(line("torch + CUDA + operands", median(TORCH + OPERANDS, cache, repeats), torch), flush=True)
        print(line("first result, cold", seconds(program, cache), torch), flush=True)
        print(line("first result, warm", median(program, cache, repeats), torch), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--without-gpu", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    main(arguments.without_gpu, arguments.repeats)
