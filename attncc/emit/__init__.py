"""From an L3 schedule to the text of a Python file that holds the kernel."""

from __future__ import annotations

from attncc.ir.schedule import Schedule


def emit(schedule: Schedule) -> str:
    """The generated file for `schedule`: CuTe-DSL source that imports `attncc.device`. Deterministic."""
    from attncc.emit.flatten import view_of
    from attncc.emit.render import render

    return render(view_of(schedule))
