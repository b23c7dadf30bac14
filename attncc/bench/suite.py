"""A suite: a JSON file that lists the cases of a benchmark, each a spec with its parameters, sizes and targets."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from attncc.diagnostics import fail
from attncc.explain.work import Shape

FOLDER = Path("benchmarks")
"""Where a suite that is given by its name alone is looked for, below the current directory."""


@dataclass(frozen=True)
class Case:
    """One case: `file` with `parameters` at `shape`. `targets` are the kernels to time, empty for the GPU's own target; `peers` those that
    can say it (the others would only be refused), empty for all. With `lengths` the call's sequences are packed; `shape` has as many of the longest."""

    name: str
    file: Path
    shape: Shape
    parameters: dict[str, object] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()


def read(name: str) -> list[Case]:
    """The cases of the suite `name`: a path, or a name for benchmarks/<name>.json. E608 when it is not one."""
    path = Path(name) if name.endswith(".json") else FOLDER / f"{name}.json"
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["cases"]
        return [_case(path.parent, entry) for entry in listed]
    except OSError as error:
        raise fail("E608", f"the suite {str(path)!r} cannot be read: {error.strerror}", hint=_known()) from None
    except (ValueError, TypeError, KeyError) as error:
        raise fail("E608", f"{str(path)!r} is not a suite: {type(error).__name__}: {error}") from None


def parse_lengths(text: str) -> tuple[int, ...]:
    """`777x21,67`: 21 sequences of 777 and one of 67. ValueError for anything else, and for no sequence or an empty one."""
    out: list[int] = []
    for part in text.lower().split(","):
        length, cross, count = part.partition("x")
        out += [int(length)] * (int(count) if cross else 1)
    if not out or min(out) < 1 or sum(out) >= 2**31:
        raise ValueError(text)
    return tuple(out)


def _case(folder: Path, entry: dict) -> Case:
    lengths = parse_lengths(entry["lengths"]) if "lengths" in entry else ()
    shape = Shape(len(lengths), max(lengths), max(lengths)) if lengths else Shape.parse(entry["shape"])
    parameters, targets, peers = (entry.get(key, ()) for key in ("parameters", "targets", "peers"))
    return Case(str(entry["case"]), folder / entry["file"], shape, dict(parameters), tuple(targets), tuple(peers), lengths)


def _known() -> str:
    names = sorted(p.stem for p in FOLDER.glob("*.json")) if FOLDER.is_dir() else []
    return f"suites here: {', '.join(names)}" if names else "give the path of a .json file that lists cases"


def lines(rows: list[dict]) -> list[str]:
    """One line for each case: our kernels, the best peer, and the ratio."""
    cases: dict[str, list[dict]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    out = [f"{'case':<34} {'kernel':<16} {'TFLOP/s':>8}  {'best peer':<11} {'TFLOP/s':>8} {'ratio':>7}"]
    return out + [line for name, found in cases.items() for line in _case_lines(name, found)]


def _case_lines(name: str, rows: list[dict]) -> list[str]:
    peers = [r for r in rows if not r["implementation"].startswith("attncc") and "tflops" in r]
    best = max(peers, key=lambda r: r["tflops"], default=None)
    beside = f"{best['implementation']:<11} {best['tflops']:>8.0f}" if best else f"{'none':<11} {'-':>8}"
    out = []
    for row in rows:
        if row["implementation"].startswith("attncc"):
            speed = f"{row['tflops']:.0f}" if "tflops" in row else "failed"
            ratio = f"{row['tflops'] / best['tflops']:.2f}" if best and "tflops" in row else "-"
            out.append(f"{name:<34} {row['implementation']:<16} {speed:>8}  {beside} {ratio:>7}")
    return out
