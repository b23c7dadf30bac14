"""Strategies for run-time shapes and tile sizes."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from attncc.fuzz.terms import choose

LENGTHS = (1, 127, 128, 129, 257)
"""Lengths at which tiles are just full, just not, or hold one row."""


@dataclass(frozen=True)
class Shape:
    """Batch size and sequence lengths of one call."""

    batch: int
    seq_q: int
    seq_kv: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.seq_q}x{self.seq_kv}"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From `batch x seq_q x seq_kv`, as printed; ValueError otherwise."""
        batch, seq_q, seq_kv = (int(part) for part in text.split("x"))
        if batch < 1 or seq_q < 1 or seq_kv < 0:
            raise ValueError(f"not a shape: {text}")
        return cls(batch, seq_q, seq_kv)


@st.composite
def shapes(draw, cells: int = 300_000) -> Shape:
    """Shapes with seq_q <, = and > seq_kv; lengths 1..130 and 257, no keys at all now and then. At most `cells` scores a head."""
    batch = choose(draw, (2, 1, 3, 2))
    length = st.one_of(st.integers(1, 130), st.integers(0, len(LENGTHS) - 1).map(lambda i: LENGTHS[i]))
    seq_q = draw(length)
    relation = choose(draw, ("any", "same", "longer", "shorter", "any", "same", "empty", "any"))
    if relation == "same":
        seq_kv = seq_q
    elif relation == "longer":
        seq_kv = seq_q + choose(draw, (1, 3, 64, 127))
    elif relation == "shorter":
        seq_kv = max(1, seq_q - choose(draw, (1, 5, 63, 128)))
    else:
        seq_kv = 0 if relation == "empty" and draw(st.integers(0, 3)) == 3 else draw(length)
    while batch > 1 and batch * seq_q * seq_kv > cells:
        batch -= 1
    return Shape(batch, seq_q, seq_kv)


SMALL_TILES = ((16, 16), (32, 16), (16, 32), (64, 32), (64, 64), (128, 64), (64, 128), (128, 128))
"""Tile sizes for the tile interpreter; small ones make many tiles of a short sequence."""


def tiles():
    """(tile_m, tile_n) for the tile interpreter."""
    return st.integers(0, len(SMALL_TILES) - 1).map(lambda i: SMALL_TILES[i])
