"""The search for disagreements: random cases until time is up, and a small reproduction of the first one that fails."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from attncc.diagnostics import fail
from attncc.fuzz.compare import Case, Finding, Report, examine

SHRINK_SECONDS = 60.0
BATCH = 100
"""Examples of one hypothesis run. Its later examples are small changes of earlier ones, so a run is kept short."""
RECENT = 40


@dataclass(frozen=True)
class Summary:
    """What a search did: distinct cases run, results compared, (target, reason) -> refusals, and the finding, shrunk, if any."""

    cases: int
    compared: int
    seconds: float
    refusals: dict[tuple[str, str], int]
    finding: Finding | None = None
    file: Path | None = None

    @property
    def ok(self) -> bool:
        return self.finding is None


def fuzz(
    seconds: float | None = None,
    seed: int = 0,
    target: str | tuple[str, ...] | None = None,
    progress: Callable[[int, float], None] | None = None,
    *,
    cases: int | None = None,
    directory: Path | str | None = None,
    shrink_seconds: float = SHRINK_SECONDS,
    strategy=None,
    run: Callable[[Case], Report] | None = None,
) -> Summary:
    """Runs random cases for `seconds`, or `cases` of them, or until one fails; a failure is shrunk.

    target     a name or several: the schedules of which targets are run too (None: all that can be emitted, () none)
    progress   called after every case with the number of cases so far and the seconds that have passed
    directory  where the reproduction of a failure is written (None: nowhere); it is shrunk for `shrink_seconds` before
    strategy   of cases, `run` what is done with one: other searches with the same driver

    The same seed draws the same cases. Raises AttnError E501 when hypothesis is not installed.
    """
    _require_hypothesis()
    from attncc.fuzz.cases import cases as drawn

    search = _Search(seconds, cases, progress, run or _runner(target), shrink_seconds)
    search.go(strategy if strategy is not None else drawn(), seed)
    file = None
    if search.best is not None and directory is not None:
        file = write(search.best, Path(directory))
    return Summary(search.count, search.compared, search.elapsed(), search.refusals, search.best, file)


def _require_hypothesis() -> None:
    try:
        import hypothesis  # noqa: F401
    except ImportError:
        hint = "install it with `pip install hypothesis`, or attncc with its `test` extra"
        raise fail("E501", "`attncc fuzz` draws its specs with hypothesis, which is not installed", hint=hint) from None


def _runner(target) -> Callable[[Case], Report]:
    from attncc.fuzz.compare import emitted_targets

    names = emitted_targets() if target is None else (target,) if isinstance(target, str) else tuple(target)
    return lambda case: examine(case, names)


class _Enough(BaseException):
    """Leaves a hypothesis run; not an Exception, which hypothesis would take for a failure of the case."""


class _Failed(Exception):
    """Tells hypothesis that the case at hand fails."""


def _fail() -> None:
    raise _Failed  # in one place: hypothesis tells failures apart by their line


@dataclass
class _Search:
    """State of one search. `best` is the smallest case that fails at the stage where the first failure was."""

    seconds: float | None
    wanted: int | None
    progress: Callable[[int, float], None] | None
    run: Callable[[Case], Report]
    shrink_seconds: float = SHRINK_SECONDS
    started: float = field(default_factory=time.monotonic)
    count: int = 0
    compared: int = 0
    refusals: dict[tuple[str, str], int] = field(default_factory=dict)
    best: Finding | None = None
    failed_at: float = 0.0
    recent: list[frozenset[str]] = field(default_factory=list)
    seen: set[frozenset[str]] = field(default_factory=set)

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def go(self, strategy, seed: int) -> None:
        while self.best is None and not self.finished():
            before = self.count
            try:
                _hypothesis_run(strategy, self.visit, seed)
            except _Enough:
                pass
            except Exception:
                if self.best is None:
                    raise
            seed += 1
            if self.count == before:
                self.recent.clear()
                self.seen.clear()

    def finished(self) -> bool:
        done = self.wanted is not None and self.count >= self.wanted
        return done or (self.seconds is not None and self.elapsed() >= self.seconds)

    def visit(self, case: Case) -> None:
        """Runs one drawn case; raises _Failed where hypothesis is to shrink."""
        if self.best is not None:
            self.shrink(case)
            return
        if self.finished():
            raise _Enough
        if self.is_repetition(case):
            return
        report = self.run(case)
        self.count += 1
        self.compared += report.compared
        for key in report.refusals:
            self.refusals[key] = self.refusals.get(key, 0) + 1
        if self.progress is not None:
            self.progress(self.count, self.elapsed())
        if report.finding is not None:
            self.best, self.failed_at = report.finding, time.monotonic()
            _fail()

    def shrink(self, case: Case) -> None:
        if time.monotonic() - self.failed_at > self.shrink_seconds:
            raise _Enough
        finding = self.run(case).finding
        if finding is None or finding.stage != self.best.stage:
            return
        if _weight(finding.case) <= _weight(self.best.case):
            self.best = finding
        _fail()

    def is_repetition(self, case: Case) -> bool:
        """Whether most lines of the text were in a recent one: hypothesis likes to change one thing at a time."""
        lines = frozenset(line for line in case.text.splitlines() if not line.strip().startswith(("heads", "dim", "dtype", "}")))
        if lines in self.seen or any(2 * len(lines & other) > len(lines | other) for other in self.recent):
            return True
        self.seen.add(lines)
        self.recent = [*self.recent[-RECENT:], lines]
        return False


def _weight(case: Case) -> tuple[int, int]:
    shape = case.shape
    return len(case.text), shape.batch * shape.seq_q * max(1, shape.seq_kv)


def _hypothesis_run(strategy, visit: Callable[[Case], None], seed: int) -> None:
    import hypothesis

    silent = hypothesis.settings(
        max_examples=BATCH,
        database=None,
        deadline=None,
        derandomize=False,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        verbosity=hypothesis.Verbosity.quiet,
    )
    hypothesis.seed(seed)(silent(hypothesis.given(strategy)(visit)))()


def write(finding: Finding, directory: Path) -> Path:
    """Writes the text of a failing case, headed by what failed and the command that runs it again."""
    directory.mkdir(parents=True, exist_ok=True)
    case = finding.case
    file = directory / f"fuzz_{case.seed}_{zlib.crc32(case.text.encode()):08x}.attn"
    command = f"python -m attncc.fuzz {file.name} --shape {case.shape} --tiles {case.tiles[0]}x{case.tiles[1]} --seed {case.seed}"
    command += " --packed" if case.packed else ""
    said = "".join(f"# {line}\n" for line in (f"{finding.stage}: {finding.message}").splitlines())
    file.write_text(f"# run again with: {command}\n{said}{case.text}", encoding="utf-8")
    return file
