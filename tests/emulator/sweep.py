"""Every example's kernel in the emulator, in several interleavings, compared with the reference; for one target, without a GPU.

    python -m tests.emulator.sweep --target blackwell --seeds 8 --jobs 2 --json benchmarks/emulated-blackwell.json

Small parameters and lengths, one head where the example lets its heads be chosen. Exit status 1 when a result is wrong, the emulator objects, or
two interleavings leave different bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

import attncc
from attncc.accuracy import LSE_ALLOWED, Yardstick, lse_distance
from attncc.interp.data import make_inputs
from attncc.runtime.emulated import emulate_calls
from tests.examples.small import EXAMPLES, SMALL, parameters

SEQ_Q, SEQ_KV = 130, 200
"""Ragged, two parts of a query tile, two or more key tiles of every length that is chosen."""



def kernel_of(path: Path, target: str):
    """The kernel of an example with small parameters and as few heads as its spec allows."""
    declared = parameters(path, 1)
    heads = {name: 1 for name in ("q_heads", "kv_heads") if name in declared}
    for given in (heads, {name: 2 for name in heads}, {}):
        try:
            kernel = attncc.compile(path, target=target, **{**SMALL.get(path.stem, {}), **given})
            kernel.stages()
            return kernel
        except attncc.AttnError:
            continue
    raise AssertionError(f"{path.stem} is refused for {target}")


def examine(path: Path, target: str, seeds: int, first: int = 0) -> dict:
    """One example: the worst error beside what is allowed, what the emulator said, whether all interleavings gave the same bytes."""
    start = time.perf_counter()
    kernel = kernel_of(path, target)
    results = emulate_calls(kernel, seeds=range(first, first + seeds))
    a = kernel.attention
    q, k, v, inputs = make_inputs(a, 1, SEQ_Q, SEQ_KV, first)
    out = torch.full((1, SEQ_Q, a.heads_q, a.dim_v), torch.nan, dtype=q.dtype)
    found = kernel(q, k, v, out=out, return_lse=kernel.has_lse, **inputs)
    yardstick = Yardstick(a, q, k, v, inputs)
    error, allowed = yardstick.worst(out)
    lse_error, bad = lse_distance(found[1], yardstick.lse) if kernel.has_lse else (0.0, None)
    if not error <= allowed or lse_error > LSE_ALLOWED:
        bad = f"error {error}, of the LSE {lse_error}"
    if not all(r.deterministic for r in results):
        bad = "interleavings differ"
    return {
        "name": path.stem, "target": target, "seeds": seeds, "heads": a.heads_q, "error": error, "allowed": allowed,
        "findings": [str(f) for r in results for f in r.errors], "wrong": bad or "", "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def is_bad(row: dict) -> bool:
    return bool(row["findings"] or row["wrong"])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="blackwell")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json")
    parser.add_argument("names", nargs="*", help="examples (default: all)")
    given = parser.parse_args(arguments)
    paths = [path for path in EXAMPLES if not given.names or path.stem in given.names]
    rows = []
    with ProcessPoolExecutor(given.jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for r in pool.map(partial(examine, target=given.target, seeds=given.seeds), paths):
            rows.append(r)
            said = "; ".join([r["wrong"], *r["findings"]]) if is_bad(r) else "right"
            print(f"{r['name']:24} {r['heads']} heads, error {r['error']:.2e} of {r['allowed']:.2e}, {r['seconds']} s: {said}", flush=True)
    print(f"{len(rows)} examples, {sum(map(is_bad, rows))} wrong, {given.seeds} interleavings each")
    if given.json:
        Path(given.json).write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n", encoding="utf-8")
    return int(any(map(is_bad, rows)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
