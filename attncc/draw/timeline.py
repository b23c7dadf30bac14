"""The roles of a schedule as lanes over time, from the target's cost model."""

from __future__ import annotations

from dataclasses import dataclass

from attncc.stages import Stages

LANE, BAR, LABEL = 34.0, 22.0, 110.0
COLOURS = {"copy": "#8fb8de", "mma": "#1d7a5a", "softmax": "#e0a03c", "wait": "#e4e6ec", "other": "#b9a6d3"}
TITLES = {
    "copy": "copies",
    "mma": "matrix products",
    "softmax": "scores and softmax",
    "wait": "waiting",
    "other": "other",
}


@dataclass(frozen=True)
class Drawing:
    """SVG whose origin is its top left corner, and its height."""

    body: str
    height: float


def draw_timeline(stages: Stages, width: float) -> Drawing:
    """What every role does in the first key tiles of a query tile; empty when the target has no timeline for the schedule."""
    return Drawing("", 0.0)
