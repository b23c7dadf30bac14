"""The warp groups of a block as lanes over time."""

from __future__ import annotations

from dataclasses import dataclass

from attncc.draw import svg
from attncc.draw.clock import COPY, MMA, OTHER, SOFTMAX, WAIT, Event, run_clock
from attncc.explain.work import Shape
from attncc.interp.tile_classes import EMPTY, tile_classes
from attncc.stages import Stages

LANE, BAR, LABEL, HEAD = 30.0, 20.0, 104.0, 54.0
COLOURS = {COPY: "#8fb8de", MMA: "#2d8a6a", SOFTMAX: "#e0a03c", OTHER: "#b9a6d3", WAIT: "#eceef3"}
TITLES = {COPY: "copies", MMA: "matrix products", SOFTMAX: "scores and softmax", OTHER: "other", WAIT: "waiting"}
WANTED = 6
"""Key tiles that the drawn query tile should visit: enough to see the steady state."""


@dataclass(frozen=True)
class Drawing:
    """SVG whose origin is its top left corner, and its height."""

    body: str
    height: float


def draw_timeline(stages: Stages, shape: Shape, inputs: dict, batch: int, head: int, width: float) -> Drawing:
    """What each warp group does for one query tile; of the tiles of this head the one that visits nearly WANTED key tiles."""
    classes = tile_classes(stages.tile, shape.batch, shape.seq_q, shape.seq_kv, inputs)[batch, head]
    visits = (classes != EMPTY).sum(1)
    q_tile = int((visits - WANTED).abs().argmin())
    where = {"b": batch, "h": head, "q_tile": q_tile}
    events = run_clock(stages.schedule, stages.target, (shape.batch, shape.seq_q, shape.seq_kv), inputs, where)
    end = max((e.end for e in events), default=0.0)
    if not end:
        return Drawing("", 0.0)
    lanes = sorted({e.lane for e in events}, key=lambda name: (name not in ("copies", "matrix units"), name))
    scale = (width - LABEL) / end
    title = f"query tile {q_tile} on {stages.target.title}: {int(visits[q_tile])} key tiles (durations from the target's rates, a model)"
    parts = [svg.text(0, 12, "one thread block over time", 14, font_weight=600), svg.text(0, 30, title, 11, svg.FAINT)]
    for row, name in enumerate(lanes):
        parts += _lane(name, [e for e in events if e.lane == name], HEAD + row * LANE, scale, width)
    bottom = HEAD + len(lanes) * LANE
    return Drawing("\n".join([*parts, *_axis(end, scale, bottom), *_legend(bottom + 40)]), bottom + 66)


def _lane(name: str, events: list[Event], y: float, scale: float, width: float):
    yield svg.text(LABEL - 10, y + BAR - 6, name, 12, svg.INK, "end")
    yield svg.rect(LABEL, y, width - LABEL, BAR, "#f7f8fa")
    for e in events:
        label = svg.hover(f"{e.label}: {e.end - e.begin:.0f} cycles from {e.begin:.0f}")
        bar = {"x": LABEL + e.begin * scale, "y": y, "width": max(0.4, (e.end - e.begin) * scale), "height": BAR}
        yield svg.element("rect", label, **bar, fill=COLOURS[e.kind], stroke="#ffffff", stroke_width=0.5)


def _axis(end: float, scale: float, y: float):
    step = next((s for s in (100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000) if s * scale >= 70), 100000)
    for at in range(0, int(end) + 1, step):
        yield svg.line(LABEL + at * scale, y, LABEL + at * scale, y + 4, svg.FAINT)
        yield svg.text(LABEL + at * scale, y + 16, f"{at}", 10, svg.FAINT, "middle")
    yield svg.text(LABEL - 10, y + 16, "cycles", 10, svg.FAINT, "end")


def _legend(y: float):
    x = LABEL
    for kind, title in TITLES.items():
        yield svg.rect(x, y, 14, 14, COLOURS[kind], stroke="#d5d8e0")
        yield svg.text(x + 20, y + 11, title, 11)
        x += 34 + 6.6 * len(title)
