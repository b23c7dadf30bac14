"""The mask of one head as a picture: kept pairs in ink, over key tiles coloured by what the kernel does with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attncc.draw import svg
from attncc.explain.work import Shape
from attncc.interp.evaluate import evaluate
from attncc.interp.tile_classes import EMPTY, FULL, PARTIAL, tile_classes, tile_environment
from attncc.ir.tile import TileProgram

SIDE = 560.0
"""Length of the picture's longer side."""
CELLS = 256
"""Most rows and columns of cells that are drawn; of a larger mask every n-th is shown."""
COLOURS = {EMPTY: "#f3f4f7", PARTIAL: "#f7d9a8", FULL: "#bfe0d2"}
INK = {PARTIAL: "#a35a00", FULL: "#1d7a5a"}
TITLES = {EMPTY: "skipped: never loaded", PARTIAL: "partial: runs the mask", FULL: "full: runs without mask code"}


@dataclass(frozen=True)
class MaskPicture:
    """`body` is SVG with the origin at the picture's top left corner; labels reach `left` beyond it."""

    body: str
    width: float
    height: float
    counts: dict[int, int]


def draw_mask(program: TileProgram, shape: Shape, inputs: dict, batch: int, head: int) -> MaskPicture:
    """The mask of one batch entry and head at these lengths."""
    classes = tile_classes(program, shape.batch, shape.seq_q, shape.seq_kv, inputs)[batch, head].numpy()
    scale = SIDE / max(shape.seq_q, shape.seq_kv)
    width, height = shape.seq_kv * scale, shape.seq_q * scale
    parts = [
        *_tiles(program, shape, classes, scale),
        *_cells(program, shape, inputs, batch, head, classes, scale),
        *_grid(program, shape, scale),
        *_axes(program, shape, scale),
    ]
    return MaskPicture("\n".join(parts), width, height, {c: int((classes == c).sum()) for c in COLOURS})


def kept(program: TileProgram, shape: Shape, inputs: dict, batch: int, head: int, step: int) -> np.ndarray:
    """(rows, columns) of bools: every `step`-th query and key of the mask."""
    env, tensors = tile_environment(program, shape.batch, shape.seq_q, shape.seq_kv, inputs)
    torch_like = env["h"]
    q_idx = torch_like.new_tensor(list(range(0, shape.seq_q, step))).view(-1, 1)
    kv_idx = torch_like.new_tensor(list(range(0, shape.seq_kv, step))).view(1, -1)
    here = {**env, "b": batch, "h": head, "hkv": head // program.attention.group, "q_idx": q_idx, "kv_idx": kv_idx}
    mask = evaluate(program.attention.mask, here, tensors, valid=(q_idx < 0))
    return mask.expand(q_idx.shape[0], kv_idx.shape[1]).numpy()


def _tiles(program: TileProgram, shape: Shape, classes: np.ndarray, scale: float):
    for (i, j), kind in np.ndenumerate(classes):
        x, y = j * program.tile_n * scale, i * program.tile_m * scale
        w = (min(shape.seq_kv, (j + 1) * program.tile_n) - j * program.tile_n) * scale
        h = (min(shape.seq_q, (i + 1) * program.tile_m) - i * program.tile_m) * scale
        yield svg.rect(x, y, w, h, COLOURS[int(kind)])


def _cells(program: TileProgram, shape: Shape, inputs: dict, batch: int, head: int, classes: np.ndarray, scale: float):
    """Kept cells as horizontal runs, each in the colour of its tile's class: one path for each class."""
    step = max(1, -(-max(shape.seq_q, shape.seq_kv) // CELLS))
    mask = kept(program, shape, inputs, batch, head, step)
    side = step * scale
    paths: dict[int, list[str]] = {PARTIAL: [], FULL: [], EMPTY: []}
    for i, row in enumerate(mask):
        kinds = classes[i * step // program.tile_m][np.arange(len(row)) * step // program.tile_n]
        for first, last in _runs(np.where(row, kinds + 1, 0)):
            x, w = svg.number(first * side), svg.number((last - first) * side)
            paths[int(kinds[first])].append(f"M{x} {svg.number(i * side)}h{w}v{svg.number(side)}h-{w}z")
    inset = 0.62 if step == 1 and side > 6 else 0.55
    for kind, runs in paths.items():
        if runs:
            yield svg.element("path", d="".join(runs), fill=INK.get(kind, "#c02020"), fill_opacity=inset)


def _runs(values: np.ndarray):
    """(first, end) of every stretch of equal values that are not 0."""
    edges = np.flatnonzero(np.diff(values)) + 1
    for first, end in zip((0, *edges), (*edges, len(values))):
        if len(values) and values[first]:
            yield int(first), int(end)


def _grid(program: TileProgram, shape: Shape, scale: float):
    width, height = shape.seq_kv * scale, shape.seq_q * scale
    for at in range(0, shape.seq_kv + 1, program.tile_n):
        yield svg.line(at * scale, 0, at * scale, height, "#ffffff", stroke_width=1)
    for at in range(0, shape.seq_q + 1, program.tile_m):
        yield svg.line(0, at * scale, width, at * scale, "#ffffff", stroke_width=1)
    yield svg.rect(0, 0, width, height, "none", stroke=svg.INK, stroke_width=1)


def _axes(program: TileProgram, shape: Shape, scale: float):
    width, height = shape.seq_kv * scale, shape.seq_q * scale
    for at in _ticks(shape.seq_kv, program.tile_n, scale):
        yield svg.text(at * scale, -6, str(at), 10, svg.FAINT, "middle")
    for at in _ticks(shape.seq_q, program.tile_m, scale):
        yield svg.text(-6, at * scale + 3.5, str(at), 10, svg.FAINT, "end")
    yield svg.text(width / 2, -22, "kv_idx", 12, svg.INK, "middle")
    yield svg.text(
        0, 0, "q_idx", 12, svg.INK, "middle", transform=f"translate(-40 {svg.number(height / 2)}) rotate(-90)"
    )


def _ticks(size: int, tile: int, scale: float) -> list[int]:
    """Tile boundaries at least 30 units apart."""
    every = tile * max(1, -(-30 // max(1, int(tile * scale))))
    return list(range(0, size + 1, every))
