"""Interleaved timing of several functions on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Milliseconds: the median of all rounds, and the spread between the quartiles relative to it."""

    ms: float
    spread: float


def interleaved(functions: dict[str, Callable[[], object]], rounds: int = 15, calls: int = 5) -> dict[str, Timing]:
    """Times every function in turn, `rounds` times, so that clocks and temperature are the same for all of them."""
    for function in functions.values():
        for _ in range(3):
            function()
    torch.cuda.synchronize()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(_once(function, calls))
    return {name: _timing(values) for name, values in times.items()}


def _once(function: Callable[[], object], calls: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / calls


def _timing(values: list[float]) -> Timing:
    ordered = sorted(values)
    quarter, middle = len(ordered) // 4, ordered[len(ordered) // 2]
    return Timing(middle, (ordered[-1 - quarter] - ordered[quarter]) / middle)
