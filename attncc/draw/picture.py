"""Puts a picture together: title, mask, legend, and the timeline of the schedule below."""

from __future__ import annotations

from attncc.diagnostics import fail
from attncc.draw import svg
from attncc.draw.mask import COLOURS, TITLES, MaskPicture, draw_mask
from attncc.draw.timeline import draw_timeline
from attncc.explain.work import Shape, check_size, example_inputs, share
from attncc.interp.tile_classes import EMPTY, FULL, PARTIAL
from attncc.ir.attention import Attention
from attncc.stages import Stages

MOST_TILES = 1 << 14
"""Tiles of one head that a picture shows."""
LEFT, TOP, MARGIN, LEGEND = 70.0, 104.0, 28.0, 250.0


def draw(stages: Stages, shape: Shape | None = None, batch: int = 0, head: int = 0, inputs: dict | None = None) -> str:
    """SVG of the mask of one batch entry and head with its tile classes, and of the schedule.

    shape    sizes of the call; by default eight query tiles square. `inputs` are the spec's tensors and scalars (default:
             generated ones).
    """
    a, program = stages.attention, stages.tile
    if shape is None:
        side = 8 * max(program.tile_m, program.tile_n)
        shape = Shape(1, side, side)
    if not (0 <= head < a.heads_q and 0 <= batch < shape.batch):
        raise fail(
            "E604",
            f"there is no batch entry {batch} with head {head}: batch is {shape.batch}, there are {a.heads_q} query heads",
        )
    if 0 in (shape.seq_q, shape.seq_kv):
        raise fail("E604", f"there is nothing to draw at {shape.seq_q} queries and {shape.seq_kv} keys")
    check_size(program, shape, 1, MOST_TILES)
    inputs = inputs or example_inputs(a, shape)
    picture = draw_mask(program, shape, inputs, batch, head)
    below = TOP + picture.height + 46
    timeline = draw_timeline(stages, shape, inputs, batch, head, LEFT + picture.width + LEGEND - 2 * MARGIN)
    width = LEFT + picture.width + LEGEND
    return svg.document(
        width,
        below + timeline.height,
        f"{a.name}: mask and schedule",
        _title(a, stages, shape, batch, head),
        svg.element("g", picture.body, transform=f"translate({svg.number(LEFT)} {svg.number(TOP)})"),
        _legend(picture, program, LEFT + picture.width + 24),
        svg.element("g", timeline.body, transform=f"translate({svg.number(MARGIN)} {svg.number(below)})"),
    )


def _title(a: Attention, stages: Stages, shape: Shape, batch: int, head: int) -> str:
    program = stages.tile
    what = f"batch entry {batch}, head {head}, {shape.seq_q} queries, {shape.seq_kv} keys, tiles of {program.tile_m} x {program.tile_n}"
    return svg.text(MARGIN, 34, a.name, 20, font_weight=600) + svg.text(MARGIN, 56, what, 12, svg.FAINT)


def _legend(picture: MaskPicture, program, x: float) -> str:
    total = sum(picture.counts.values())
    parts = [svg.text(x, TOP + 12, "key tiles", 12, font_weight=600)]
    for row, kind in enumerate((FULL, PARTIAL, EMPTY)):
        y = TOP + 28 + 44 * row
        parts.append(svg.rect(x, y, 22, 22, COLOURS[kind], stroke="#d5d8e0"))
        parts.append(svg.text(x + 32, y + 10, TITLES[kind], 12))
        parts.append(
            svg.text(
                x + 32,
                y + 25,
                f"{picture.counts[kind]} of {total}, {share(picture.counts[kind], total)}",
                11,
                svg.FAINT,
            )
        )
    y = TOP + 28 + 44 * 3
    parts.append(svg.rect(x, y, 22, 22, "#6b6f7a", fill_opacity=0.62))
    parts.append(svg.text(x + 32, y + 15, "a pair that the mask keeps", 12))
    return "".join(parts)
