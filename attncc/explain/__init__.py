"""The report of `attncc explain`: what was computed, what each pass did, the work and the limits. Or a level's text."""

from __future__ import annotations

from attncc.diagnostics import did_you_mean, fail
from attncc.explain.report import Measured, report
from attncc.explain.work import Shape
from attncc.ir.text import format_program
from attncc.stages import Stages

USUAL = Shape(1, 4096, 4096)
STAGES = ("L1", "L2", "L3", "kernel")


def explain(stages: Stages, stage: str | None = None, shape: Shape = USUAL, measured: Measured | None = None) -> str:
    """The report for calls of `shape`, with the time `measured` for them if given; with `stage` "L1", "L2" or "L3" that level's text, with "kernel" the generated file."""
    if stage is None:
        return report(stages, shape, measured)
    texts = {
        "L1": lambda: format_program(stages.attention),
        "L2": lambda: format_program(stages.tile),
        "L3": lambda: format_program(stages.schedule),
        "kernel": lambda: stages.source,
    }
    key = next((s for s in STAGES if s.lower() == str(stage).lower()), None)
    if key is None:
        raise fail(
            "E601",
            f"there is no stage `{stage}`",
            hint=did_you_mean(stage, STAGES) or f"the stages are {', '.join(STAGES)}",
        )
    return texts[key]().rstrip("\n")


__all__ = ["STAGES", "Measured", "Shape", "explain"]
