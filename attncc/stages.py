"""What the compiler made of one attention for one target, level by level, and what each pass changed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from attncc.ir.attention import Attention
from attncc.ir.schedule import Schedule
from attncc.ir.text import format_program
from attncc.ir.tile import TileProgram
from attncc.targets import Target

LEVELS = {"L1": "attention", "L2": "tile", "L3": "schedule"}


@dataclass(frozen=True)
class PassStep:
    """One pass: its name, its level ("L1", "L2" or "L3"), and the program after it. `name` is "lower" for the level's entry."""

    level: str
    name: str
    program: object
    changed: bool

    @cached_property
    def text(self) -> str:
        return format_program(self.program)


@dataclass(frozen=True)
class Stages:
    """The last program of each level, the generated text, and the way there."""

    target: Target
    attention: Attention
    tile: TileProgram
    schedule: Schedule
    source: str
    steps: tuple[PassStep, ...]

    def level(self, name: str) -> tuple[PassStep, ...]:
        """The steps of level "L1", "L2" or "L3"."""
        return tuple(s for s in self.steps if s.level == name)
