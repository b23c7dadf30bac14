"""The strategy of whole cases."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from attncc.fuzz.compare import Case
from attncc.fuzz.shapes import shapes, tiles
from attncc.fuzz.specs import specs


@st.composite
def cases(draw, depth: int = 3) -> Case:
    """A spec with a shape, tile sizes and a seed that fit together."""
    text = draw(specs(depth))
    shape = draw(shapes())
    if shape.seq_kv == 0 and "..seq_kv" in text:
        shape = replace(shape, seq_kv=1)  # no number lies in 0..0
    return Case(text, shape, draw(st.integers(0, 1 << 16)), draw(tiles()))
