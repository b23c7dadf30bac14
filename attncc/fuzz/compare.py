"""One case through every level, each compared with the float64 reference.

A case is a text, a shape, the seed of the data and tile sizes. What is checked:

- L1, L2 and L3 print as text that parses back to an equal program, after every pass or before the first and after the last;
- the L1 interpreter, the tile interpreter after every pass and the schedule interpreter in several interleavings agree with
  the reference: in float64 to 1e-9 of the result's size, in the precision of a kernel as `accuracy` says;
- tiles that a program skips hold no kept cell, tiles of full segments no masked one;
- the generated file is valid Python.

A refusal (an AttnError of a level below L1 whose code is that of an unsupported feature) is not a finding; it is counted.
"""

from __future__ import annotations

import ast
import traceback
from dataclasses import dataclass, field, replace

import torch

from attncc import pipeline
from attncc.accuracy import Yardstick
from attncc.diagnostics import AttnError
from attncc.driver import naive_program
from attncc.emit import emit
from attncc.fuzz.shapes import Shape
from attncc.interp.data import make_inputs
from attncc.interp.inputs import TORCH_TYPES
from attncc.interp.run_attention import run_attention
from attncc.interp.run_schedule import run_schedule
from attncc.interp.run_tile import run_tile
from attncc.ir.attention import TargetHint
from attncc.ir.packing import pack
from attncc.ir.text import format_program, parse_program
from attncc.lower import load
from attncc.lower.attention_to_tile import lower_attention_to_tile
from attncc.lower.tile_to_schedule import lower_tile_to_schedule
from attncc.targets import TARGETS, Target

EXACT = 1e-9
"""Agreement asked of two float64 computations of the same thing, relative to the result's size (at least 1)."""
HINTS = ((64, 64), None, (128, 64), (64, 32))
"""Tile sizes asked of a target, by the case's seed; None leaves the choice to it."""
INTERLEAVINGS = 3
"""Random orders of the roles' steps in which the last schedule of a target is run."""


@dataclass(frozen=True)
class Case:
    """What is run.

    text, parameters   the spec and values of its compile-time parameters
    shape, seed        of the data; the seed also chooses interleavings
    tiles              (tile_m, tile_n) of the tile interpreter
    packed             sequences of up to that length, packed one after another
    """

    text: str
    shape: Shape
    seed: int = 0
    tiles: tuple[int, int] = (16, 16)
    parameters: tuple[tuple[str, object], ...] = ()
    packed: bool = False


@dataclass(frozen=True)
class Finding:
    """What is wrong: the stage at which it shows, and what was seen there."""

    stage: str
    message: str
    case: Case

    def __str__(self) -> str:
        c = self.case
        return (
            f"{self.stage}: {self.message}\n"
            f"{'packed, ' if c.packed else ''}shape (batch x seq_q x seq_kv) {c.shape}, tiles {c.tiles[0]}x{c.tiles[1]}, seed {c.seed}\n{c.text}"
        )


@dataclass(frozen=True)
class Report:
    """The outcome of one case: a finding or none, (target, message) of each refusal, and how many results were compared."""

    case: Case
    finding: Finding | None
    refusals: tuple[tuple[str, str], ...] = ()
    compared: int = 0


class Wrong(Exception):
    """Raised where a level disagrees."""


def check(text: str, shape: Shape, seed: int = 0, tiles=(16, 16), targets: tuple[str, ...] = ()) -> Finding | None:
    """What is wrong with a spec on data of that shape; None when every level agrees. `targets` are names, () for L1 and L2."""
    return examine(Case(text, shape, seed, tiles), targets).finding


def examine(case: Case, targets: tuple[str, ...] = (), every_pass: bool = True) -> Report:
    """As `check`, with everything there is to know. No exception leaves it but KeyboardInterrupt.

    every_pass   run L3, and print and parse every level, after each pass, not only before the first and after the last
    """
    run = _Run(case, every_pass)
    finding = None
    try:
        run.everything(targets)
    except (Wrong, AttnError, AssertionError) as error:
        finding = Finding(run.stage, f"{type(error).__name__}: {error}", case)
    except Exception as error:  # noqa: BLE001 - whatever a level raises is what is looked for
        finding = Finding(run.stage, f"{type(error).__name__}: {error}\n{place_of(error)}", case)
    return Report(case, finding, tuple(run.refusals), run.compared)


def place_of(error: Exception) -> str:
    """The last calls that led to an error, one a line."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return "\n".join(f"  {f.filename.rpartition('attncc/')[2]}:{f.lineno} in {f.name}: {f.line}" for f in frames)


def emitted_targets() -> tuple[str, ...]:
    """Names of the targets that schedules can be made for."""
    return tuple(TARGETS)


@dataclass
class _Run:
    """One case on its way down the levels; `stage` names what is being done."""

    case: Case
    every_pass: bool = True
    stage: str = "text -> L1"
    compared: int = 0
    strict: bool = False
    """Whether tensor indices must be in range at masked and padded positions too: after the pass that guards them."""
    refusals: list[tuple[str, str]] = field(default_factory=list)

    def everything(self, targets: tuple[str, ...]) -> None:
        self.front()
        self.attention_level()
        self.tile_level()
        for name in targets:
            self.target_level(TARGETS[name])

    def front(self) -> None:
        """The text's L1, the data, and the reference's result."""
        attention = load(self.case.text, **dict(self.case.parameters))
        self.attention = pack(attention) if self.case.packed else attention
        self.round_trip(self.attention)
        self.stage = "data"
        s = self.case.shape
        *qkv, self.inputs = make_inputs(self.attention, s.batch, s.seq_q, s.seq_kv, self.case.seed)
        self.arguments = (*qkv, self.inputs)
        self.stage = "reference"
        self.yardstick = Yardstick(self.attention, *self.arguments)
        self.out, self.lse = self.yardstick.out, self.yardstick.lse
        if not bool(torch.isfinite(self.out).all()):
            raise Wrong("the reference is not finite")
        self.scale = max(1.0, float(self.out.abs().max())) if self.out.numel() else 1.0

    def round_trip(self, program) -> None:
        text = format_program(program)
        if parse_program(text) != program:
            raise Wrong("the text of the program does not parse back to it")

    def exact(self, out: torch.Tensor, lse: torch.Tensor | None) -> None:
        """Compares a float64 result with the reference."""
        self.compared += 1
        if out.shape != self.out.shape:
            raise Wrong(f"the result has the shape {tuple(out.shape)}, not {tuple(self.out.shape)}")
        _compare("out", out, self.out, EXACT * self.scale)
        if self.lse is not None:
            top = self.lse[torch.isfinite(self.lse)].abs().max() if bool(torch.isfinite(self.lse).any()) else 1.0
            _compare("lse", lse, self.lse, EXACT * max(1.0, float(top)))

    def close(self, out: torch.Tensor) -> None:
        """Compares a result in a kernel's precision with the reference."""
        self.compared += 1
        got = out.to(TORCH_TYPES[self.attention.dtype]).double()
        error, allowed = self.yardstick.worst(got)
        if not error <= allowed:
            _compare("out", got, self.out, self.yardstick.allowed)

    def passes(self, level: str, program, passes: tuple, target=None):
        """`program` and what each pass of a level makes of it, where it makes something new; `stage` says which."""
        where = f"{target.name}: " if target is not None else ""
        self.stage = f"{where}{level}"
        checked = pipeline.CHECKS[level]
        for one in (None, *passes):
            if one is None:
                changed = program
            elif not pipeline.takes_target(one):
                self.stage = f"{where}{level} after {one.__name__}"
                changed = one(program)
            elif target is not None:
                self.stage = f"{where}{level} after {one.__name__}"
                changed = one(program, target)
            else:
                continue
            if one is None or changed != program:
                checked(changed)
                if one is None or self.every_pass:
                    self.round_trip(changed)
                self.strict = self.strict or getattr(one, "__name__", "") == "guard_loads"
                yield changed
            program = changed
        if not self.every_pass:
            self.round_trip(program)

    # L1

    def attention_level(self) -> None:
        for attention in self.passes("L1", self.attention, pipeline.ATTENTION_PASSES):
            self.exact(*run_attention(attention, *self.arguments, dtype=torch.float64))
            self.attention = attention

    # L2

    def tile_level(self) -> None:
        """The naive program of small tiles, and every tile pass on it that asks for no target."""
        naive = lower_attention_to_tile(self.attention, *self.case.tiles)
        for program in self.passes("L2", naive, pipeline.TILE_PASSES):
            self.exact(*run_tile(program, *self.arguments, strict=self.strict))
        self.stage = "L2 in the kernel's precision"
        out, _ = run_tile(program, *self.arguments, dtype=torch.float32, round_weights=True, check=False)
        self.close(out)

    # L3

    def target_level(self, target: Target) -> None:
        """The program that a target gets, its schedule after every pass, several interleavings of the last one, and the file."""
        self.stage, self.strict = f"{target.name}: L1 -> L2", False
        try:
            naive = self.naive_for(target)
        except AttnError as error:
            self.refusals.append((target.name, error.diagnostics[0].message))
            return
        for program in self.passes("L2", naive, pipeline.TILE_PASSES, target):
            pass
        self.exact(*run_tile(program, *self.arguments, strict=self.strict))
        self.stage = f"{target.name}: L2 -> L3"
        plain = lower_tile_to_schedule(program, target)
        for schedule in self.passes("L3", plain, pipeline.SCHEDULE_PASSES[target.name], target):
            if self.every_pass:
                self.exact(*run_schedule(schedule, *self.arguments, seed=self.case.seed, strict=self.strict))
        for seed in range(1, INTERLEAVINGS):
            self.exact(*run_schedule(schedule, *self.arguments, seed=self.case.seed + seed))
        self.exact(*run_schedule(schedule, *self.arguments, mode="in_order"))
        self.stage = f"{target.name}: L3 in the kernel's precision"
        out, _ = run_schedule(schedule, *self.arguments, seed=self.case.seed, dtype=torch.float32, round_weights=True)
        self.close(out)
        self.stage = f"{target.name}: generated file"
        ast.parse(emit(schedule))

    def naive_for(self, target: Target):
        """The naive program with the target's own tiles, or with small ones (more of them in a short sequence) that it can do."""
        hint = HINTS[self.case.seed % len(HINTS)]
        if hint is not None:
            hinted = replace(self.attention, target=TargetHint(target.name, *hint))
            try:
                return naive_program(hinted, target)
            except AttnError:
                pass
        return naive_program(self.attention, target)


def _compare(what: str, got: torch.Tensor, wanted: torch.Tensor, allowed: float | torch.Tensor) -> None:
    """Wrong unless both are equal up to `allowed`, infinities in the same places, and nothing is NaN."""
    got, wanted = got.double(), wanted.double()
    allowed = torch.as_tensor(allowed, dtype=torch.float64, device=got.device).expand_as(got)
    off = ~((got == wanted) | ((got - wanted).abs() <= allowed))
    if not bool(off.any()):
        return
    error = torch.where(torch.isfinite(got) & torch.isfinite(wanted), (got - wanted).abs(), torch.inf)
    place = [int(i) for i in torch.unravel_index(torch.where(off, error - allowed, -1.0).argmax(), error.shape)]
    there = tuple(place)
    raise Wrong(
        f"{what}{place} is {got[there].item():.9g}, the reference says {wanted[there].item():.9g} "
        f"(off by {error[there].item():.3g}, allowed {allowed[there].item():.3g}); {int(off.sum())} of {off.numel()} elements are off"
    )
