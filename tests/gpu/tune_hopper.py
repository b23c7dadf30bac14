"""Times variants of hand-written Hopper schedules side by side, to choose tiles and optional passes by measurement.

    python tests/gpu/tune_hopper.py [SET ...]        sets: d64 d96 d128 d192 d256 (all)

One line for each variant: TFLOP/s for each (length, causal) of its set, 16384 tokens in all, and whether a small shape is right.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.gpu import try_hopper

SETS = {
    "d64": ({"dim_qk": 64, "heads": (32, 32)}, ((8192, False), (8192, True), (4096, True))),
    "d96": ({"dim_qk": 96, "heads": (16, 16)}, ((8192, False), (8192, True))),
    "d128": ({"dim_qk": 128, "heads": (16, 16)}, ((1024, False), (4096, False), (1024, True), (4096, True), (16384, True))),
    "d192": ({"dim_qk": 192, "dim_v": 128, "heads": (16, 16)}, ((8192, False), (8192, True))),
    "d256": ({"dim_qk": 256, "heads": (8, 8)}, ((8192, False), (8192, True))),
}
TILES = {
    "d64": ((192, 128), (192, 96), (128, 128), (128, 192), (128, 224)),
    "d96": ((128, 128), (128, 160), (128, 176)),
    "d128": ((128, 128), (128, 160), (128, 176)),
    "d192": ((128, 112), (128, 128)),
    "d256": ((128, 80),),
}
OPTIONS = {
    "ping-pong": {},
    "free": {"pingpong": False},
    "free+slack": {"pingpong": False, "slack": 8.0},
}


def speed(function, schedule, seq: int, causal: bool) -> float:
    """Median TFLOP/s of ten calls."""
    import torch

    tensors = try_hopper.inputs(schedule, 16384 // seq, seq, seq)
    spans = []
    for _ in range(12):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function(*tensors)
        end.record()
        torch.cuda.synchronize()
        spans.append(begin.elapsed_time(end))
    a = schedule.attention
    flop = 2 * 16384 * seq * a.heads_q * (a.dim_qk + a.dim_v) * (0.5 if causal else 1.0)
    return flop / statistics.median(spans[2:]) / 1e9


def right(function, schedule, causal: bool) -> bool:
    """Whether a ragged shape is within twice the eager error."""
    import torch

    q, k, v, o, lse = try_hopper.inputs(schedule, 1, 300, 513)
    function(q, k, v, o, lse)
    exact, _ = try_hopper.attend(q, k, v, causal, "softmax", torch.float64)
    eager, _ = try_hopper.attend(q, k, v, causal, "softmax", q.dtype)
    return ((o.double() - exact).abs().max() <= 2 * (eager.double() - exact).abs().max() + 1e-5).item()


def variant(name: str, tile: tuple[int, int], option: str) -> str:
    """The line of one variant."""
    base, cases = SETS[name]
    shape = {"tile_m": tile[0], "tile_n": tile[1]}
    texts, ok = [], True
    for causal in (False, True):
        wanted = [seq for seq, c in cases if c == causal]
        function, schedule = try_hopper.build({**base, **shape, **OPTIONS[option], "causal": causal})
        ok &= right(function, schedule, causal)
        texts += [f"{'causal' if causal else 'full'} s{seq} {speed(function, schedule, seq, causal):.0f}" for seq in wanted]
    return f"{name} {tile[0]}x{tile[1]} {option:16s} {'ok   ' if ok else 'WRONG'} {'  '.join(texts)}"


def main() -> None:
    for name in sys.argv[1:] or SETS:
        for tile in TILES[name]:
            for option in OPTIONS:
                try:
                    print(variant(name, tile, option), flush=True)
                except (RuntimeError, ValueError) as error:
                    print(f"{name} {tile} {option}: {type(error).__name__} {str(error)[:200]}", flush=True)


if __name__ == "__main__":
    main()
