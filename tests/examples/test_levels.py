"""Every example: its text, L1, L2 and L3 say the same as the float64 reference, and its tiles are what the dense mask says."""

import pytest
import torch

from attncc import pipeline
from attncc.fuzz.compare import Case, emitted_targets, examine
from attncc.fuzz.shapes import Shape
from attncc.interp.data import make_inputs
from attncc.interp.tile_classes import EMPTY, FULL, PARTIAL, dense_classes, tile_classes
from attncc.ir.text import format_program, parse_program
from attncc.lower import load
from attncc.lower.attention_to_tile import lower_attention_to_tile
from tests.examples.small import EXAMPLES, NAMES, SMALL, parameters

TILES = ((64, 64), (128, 64), (128, 128), (192, 128))
SHAPES = (
    (Shape(2, 129, 257), 4, (64, 64)),
    (Shape(2, 257, 129), 7, (128, 64)),
    (Shape(1, 257, 257), 1, (64, 64)),
    (Shape(2, 127, 127), 7, (128, 128)),
    (Shape(3, 1, 129), 4, (64, 64)),
    (Shape(2, 128, 1), 1, (192, 128)),
)
"""(shape, group, tiles): pairs of lengths with seq_q <, =, > seq_kv, and every group and tile size more than once."""
EVERY_PASS = 1
"""The shape at which L2 and L3 run after every pass; at the others before the first and after the last."""

CONSERVATIVE = {
    "bigbird": "which of a row's random blocks are in a key tile is known up to the least and the greatest",
    "document_windows": "a tile with several documents has bounds of their starts, not their starts",
    "packed_documents": "bounds of causality and of document numbers may both have a cell, and not the same one",
    "shared_prefix": "as packed_documents",
    "tree_verification": "a table of bools is not looked at",
}
"""Examples of which some tile that is empty or full runs as a partial one, and why; a remark of a pass says so."""


def spec(name: str) -> str:
    return EXAMPLES[NAMES.index(name)].read_text(encoding="utf-8")


def case(name: str, shape: Shape, group: int, tiles) -> Case:
    return Case(spec(name), shape, 1, tiles, tuple(parameters(EXAMPLES[NAMES.index(name)], group).items()))


def targets_for(name: str, number: int) -> tuple[str, ...]:
    """One target for each shape, another one for the next, so that each target sees every kind of shape."""
    known = emitted_targets()
    return (known[(NAMES.index(name) + number) % len(known)],)


@pytest.mark.parametrize("name", NAMES)
def test_levels_agree(name):
    for number, (shape, group, tiles) in enumerate(SHAPES):
        report = examine(case(name, shape, group, tiles), targets_for(name, number), every_pass=number == EVERY_PASS)
        assert report.finding is None, str(report.finding)
        assert not report.refusals, f"{name} is refused: {report.refusals}"


def tiled(attention, tiles):
    """The tile program after every pass that does not ask for a target."""
    program = lower_attention_to_tile(attention, *tiles)
    for one in pipeline.TILE_PASSES:
        if not pipeline.takes_target(one):
            program = one(program)
    return program


@pytest.mark.parametrize("name", NAMES)
def test_tile_classes_are_those_of_the_dense_mask(name):
    path = EXAMPLES[NAMES.index(name)]
    for number, tiles in enumerate(TILES):
        attention = load(path.read_text(encoding="utf-8"), **parameters(path, (1, 4, 7)[number % 3]))
        program = tiled(attention, tiles)
        for shape in (Shape(2, 577, 577), Shape(2, 129, 513), Shape(2, 257, 127), Shape(1, 1, 385)):
            inputs = make_inputs(attention, shape.batch, shape.seq_q, shape.seq_kv, seed=number)[3]
            mine = tile_classes(program, shape.batch, shape.seq_q, shape.seq_kv, inputs)
            dense = dense_classes(attention, *tiles, shape.batch, shape.seq_q, shape.seq_kv, inputs)
            sound(name, mine, dense)
            if name in CONSERVATIVE:
                assert program.remarks, f"{name} may run an empty or full tile as a partial one, and no remark says why"
            else:
                assert torch.equal(mine, dense), f"{name}, tiles {tiles}, shape {shape}:\n{picture(mine, dense)}"


def sound(name: str, mine: torch.Tensor, dense: torch.Tensor) -> None:
    """A tile that is skipped or runs without a mask is empty or full; a tile that is neither may always run the mask."""
    wrong = (mine != dense) & (mine != PARTIAL)
    assert not bool(wrong.any()), f"{name}:\n{picture(mine, dense)}"


def picture(mine: torch.Tensor, dense: torch.Tensor) -> str:
    """The classes of the first (b, h) that differs, mine beside the mask's: . empty, o partial, # full."""
    if torch.equal(mine, dense):
        return ""
    b, h = torch.nonzero((mine != dense).any(-1).any(-1))[0].tolist()
    marks = {EMPTY: ".", PARTIAL: "o", FULL: "#"}
    rows = (("".join(marks[int(c)] for c in row) for row in side[b, h]) for side in (mine, dense))
    return f"b = {b}, h = {h}\n" + "\n".join(f"{a}   {d}" for a, d in zip(*rows))


@pytest.mark.parametrize("name", NAMES)
def test_published_sizes_print_and_parse_back(name):
    attention = load(EXAMPLES[NAMES.index(name)])
    assert parse_program(format_program(attention)) == attention


def test_small_values_belong_to_examples():
    assert set(SMALL) <= set(NAMES), "an example was renamed: correct tests/examples/small.py"
    assert len(NAMES) >= 25
