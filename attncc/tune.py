"""Tuning: several kernels of one attention are compiled, checked, timed side by side, and the fastest is remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from attncc import driver
from attncc.diagnostics import AttnError
from attncc.explain.work import Shape, predict, work
from attncc.ir.attention import Attention
from attncc.ir.check_expr import IllegalProgram
from attncc.measure import CheckResult, compare
from attncc.runtime import tuned
from attncc.runtime.kernel import Kernel
from attncc.targets import Target
from attncc.targets.choice import Choice, choices
from attncc.targets.model import Estimate

CHECKED = (Shape(2, 333, 333), Shape(1, 200, 457))
"""Shapes on which a kernel must be right before it is timed: lengths that are no multiples of tiles."""


@dataclass(frozen=True)
class Candidate:
    """A kernel, what was chosen for it, and the model's prediction. The first of a list is what is compiled without tuning."""

    choice: Choice
    kernel: Kernel
    predicted: Estimate
    check: CheckResult | None = None
    failed: str | None = None
    ms: float | None = None
    spread: float = 0.0

    @property
    def ok(self) -> bool:
        return self.failed is None and (self.check is None or self.check.ok)


def candidates(attention: Attention, target: Target, shape: Shape, shapes: int, most: int) -> list[Candidate]:
    """Up to `most` kernels that differ, of the model's best `shapes` tiles. AttnError when the target has none."""
    found: list[Candidate] = []
    sources: set[str] = set()
    counted: dict[tuple[int, int], object] = {}
    for choice in choices(attention, target, shapes):
        kernel = Kernel(attention, target, driver.lower, choice=choice)
        try:
            stages = kernel.stages()
        except (AttnError, IllegalProgram, ValueError):
            continue  # a shape that the passes cannot make, or not in this manner
        text = _without_digest(stages.source)
        if text in sources:
            continue
        sources.add(text)
        tiles = choice.tile_m, choice.tile_n
        if tiles not in counted:
            counted[tiles] = work(stages.tile, shape)
        found.append(Candidate(choice, kernel, predict(stages.schedule, stages.target, shape, counted[tiles])))
        if len(found) == most:
            break
    return found


def _without_digest(source: str) -> str:
    """A generated text without the line that names its schedule, in which hints of the target show."""
    return "\n".join(line for line in source.split("\n") if not line.startswith("L3 digest"))


def checked(candidate: Candidate, seed: int = 0, device: str = "cuda") -> Candidate:
    """`candidate` after it was compiled and compared with the reference on `device`."""
    from attncc.interp.data import make_inputs

    a = candidate.kernel.attention
    try:
        for shape in CHECKED:
            result = compare(candidate.kernel, *make_inputs(a, shape.batch, shape.seq_q, shape.seq_kv, seed, device))
            if not result.ok:
                said = result.bad or f"its error is {result.error:.2e}, allowed {result.allowed:.2e}"
                return replace(candidate, check=result, failed=f"wrong: {said}")
    except Exception as error:  # noqa: BLE001 - one kernel that does not compile or launch does not end the search
        return replace(candidate, failed=f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")
    return replace(candidate, check=result)


def timed(found: list[Candidate], shape: Shape, rounds: int, progress: Callable[[], None], seed: int = 0) -> list[Candidate]:
    """The candidates that are right with their times, taken in turn round by round so that clocks and temperature are the same for all."""
    from attncc.bench.timing import interleaved
    from attncc.interp.data import make_inputs

    right = [c for c in found if c.ok]
    if not right:
        return found
    q, k, v, given = make_inputs(right[0].kernel.attention, shape.batch, shape.seq_q, shape.seq_kv, seed, "cuda")

    def call(kernel: Kernel):
        return lambda: kernel(q, k, v, **given)

    def count(function, last: bool):
        def run():
            function()
            if last:
                progress()

        return run

    functions = {str(i): call(c.kernel) for i, c in enumerate(found) if c.ok}
    last = list(functions)[-1]
    functions = {name: count(f, name == last) for name, f in functions.items()}
    times = interleaved(functions, rounds)
    return [replace(c, ms=t.ms, spread=t.spread) if (t := times.get(str(i))) else c for i, c in enumerate(found)]


def best(found: list[Candidate]) -> Candidate | None:
    """The fastest; the first one, which needs no tuning, where the difference is within the spread of the times."""
    measured = [c for c in found if c.ms is not None]
    if not measured:
        return None
    fastest, usual = min(measured, key=lambda c: c.ms), found[0]
    if usual.ms is not None and usual.ms <= fastest.ms * (1.0 + min(0.02, max(usual.spread, fastest.spread))):
        return usual
    return fastest


def remember(winner: Candidate, usual: Candidate, device: str) -> bool:
    """Keeps the winner for later compilations on devices of that name; whether there is a cache."""
    choice = None if winner is usual else winner.choice
    return tuned.remember(winner.kernel.digest, winner.kernel.target.name, device, choice)
