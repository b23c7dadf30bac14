"""What tuning chooses: the shape of a kernel and the manner of its loop, in place of what the resource model and the target say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from attncc.ir.attention import Attention, TargetHint
from attncc.targets.fit import Tiles
from attncc.targets.target import NEVER, STEADY, Manner, Target
from attncc.targets.tiles import candidates, choose_tiles, cost_per_row, short_code


@dataclass(frozen=True)
class Choice:
    """A shape, and a manner: whether groups take turns, maxima are lazy, blocks work on several tiles. None leaves that to the target."""

    tile_m: int
    tile_n: int
    groups: int
    stages: int
    turns: bool | None = None
    lazy: bool | None = None
    several: bool | None = None

    def __str__(self) -> str:
        words = [f"{self.tile_m}x{self.tile_n}", f"{self.groups} group{'s' if self.groups > 1 else ''}"]
        words.append(f"{self.stages} stage{'s' if self.stages > 1 else ''}")
        if self.turns is not None:
            words += ["in turns" if self.turns else "no turns", "lazy maxima" if self.lazy else "exact maxima"]
            words += ["several tiles a block" if self.several else "a tile a block"]
        return ", ".join(words)

    def applied(self, attention: Attention, target: Target) -> tuple[Attention, Target]:
        """`attention` with hints for this shape, and `target` with this manner for its head dims."""
        hint = TargetHint(target.name, self.tile_m, self.tile_n, self.stages, self.groups, attention.target.span)
        if self.turns is not None:
            dims = target.pad(attention.dim_qk), target.pad(attention.dim_v)
            own = Manner(*dims, self.groups, bool(self.turns), bool(self.lazy), STEADY if self.several else NEVER)
            target = replace(target, manners=(own, *target.manners))
        return replace(attention, target=hint), target


def choices(attention: Attention, target: Target, shapes: int) -> Iterator[Choice]:
    """The shape that is taken without tuning and the next best of the resource model, up to `shapes`; then each in every manner that its
    target knows. The first is what is taken without tuning. AttnError when the target has no tile."""
    usual = choose_tiles(attention, target)
    found = [t for t in short_code(candidates(attention, target), attention, target) if t.tile_n >= target.tile_n_least]
    ranked = sorted(found, key=lambda t: cost_per_row(attention, target, t))
    best = [usual, *(t for t in ranked if t != usual)][:shapes]
    yield from (Choice(*_shape(tiles)) for tiles in best)
    if target.has("async_mma") and target.has("named_barriers"):
        for tiles in best:
            yield from (Choice(*_shape(tiles), *manner) for manner in product((False, True), repeat=3))


def _shape(tiles: Tiles) -> tuple[int, int, int, int]:
    return tiles.tile_m, tiles.tile_n, tiles.groups, tiles.stages
