"""The strategy of whole cases."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from attncc.fuzz.compare import Case
from attncc.fuzz.shapes import Shape, shapes, tiles
from attncc.fuzz.specs import specs
from attncc.fuzz.terms import choose


@st.composite
def cases(draw, depth: int = 3) -> Case:
    """A spec with a shape, tile sizes and a seed that fit together."""
    return _fitting(draw, draw(specs(depth)), draw(shapes()))


@st.composite
def small_cases(draw, depth: int = 2) -> Case:
    """Cases for an emulator of device code, which takes time for every instruction: a few rows, up to three key tiles."""
    shape = Shape(draw(st.integers(1, 2)), draw(st.integers(1, 20)), choose(draw, (1, 20, 64, 127, 129, 140, 257)))
    return _fitting(draw, draw(specs(depth)), shape)


def _fitting(draw, text: str, shape: Shape) -> Case:
    if shape.seq_kv == 0 and "..seq_kv" in text:
        shape = replace(shape, seq_kv=1)  # no number lies in 0..0
    return Case(text, shape, draw(st.integers(0, 1 << 16)), draw(tiles()))
