"""Memory for results.

torch's own factory functions pass the dispatcher twice, which takes as long as all else that a call does in Python. What Inductor's generated
code calls goes straight to the allocator of torch: current stream, memory pools and graphs are the same, and so is the tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Shape, strides in elements and type of a tensor."""
Allocate = Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], torch.Tensor]


def contiguous(shape: tuple[int, ...], dtype: torch.dtype) -> Layout:
    """The layout of a contiguous tensor."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(shape), tuple(reversed(strides)), dtype


def allocator(device: torch.device, partly: bool = False) -> Allocate:
    """What gives new tensors on `device`, called with a layout. With `partly` the kernel may leave some of the memory as it is; then torch
    fills it where deterministic algorithms are asked for."""

    def dispatched(shape, strides, dtype):
        return torch.empty_strided(shape, strides, dtype=dtype, device=device)

    direct = _direct(device.type)
    if direct is None:
        return dispatched
    several = device.type == "cuda" and torch.cuda.device_count() > 1
    if not (several or partly):
        return direct
    current = getattr(torch._C, "_cuda_getDevice", None) or torch.cuda.current_device
    fills = torch.are_deterministic_algorithms_enabled

    def checked(shape, strides, dtype):
        if (partly and fills()) or (several and current() != device.index):
            return dispatched(shape, strides, dtype)
        return direct(shape, strides, dtype)

    return checked


def _direct(kind: str) -> Allocate | None:
    """torch's function that allocates on the current device of a kind; None where this torch has none."""
    guards = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
    return getattr(guards, f"_empty_strided_{kind}", None)
