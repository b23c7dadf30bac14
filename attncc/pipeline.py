"""The passes of each level, in order, written out. A pass is a function from program to program, or of (program, target)."""

from __future__ import annotations

import inspect
from collections.abc import Callable

ATTENTION_PASSES: tuple[Callable, ...] = ()
TILE_PASSES: tuple[Callable, ...] = ()


def run_passes(program, passes: tuple[Callable, ...], check: Callable, target=None, observe: Callable | None = None):
    """`program` after all `passes`, with `check` run on it before the first and after each.

    A pass with two parameters is given `target` as well. `observe(pass_name, before, after)` is called after each pass.
    """
    check(program)
    for one in passes:
        before = program
        program = one(program, target) if takes_target(one) else one(program)
        check(program)
        if observe is not None:
            observe(one.__name__, before, program)
    return program


def takes_target(one: Callable) -> bool:
    """Whether a pass is a function of (program, target)."""
    return len(inspect.signature(one).parameters) == 2
