"""The resource model's times beside measured ones, and for targets that were not measured: the text of docs/predictions.md.

    python -m attncc.bench.predictions MEASURED.json > docs/predictions.md

MEASURED.json is what `attncc bench --suite peers --json` wrote on the device. Needs no GPU. The cases are those of benchmarks/peers.json.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from attncc import driver, lower
from attncc.bench import suite
from attncc.explain.work import predict, work
from attncc.targets import TARGETS, Target
from attncc.targets.model import Estimate

SUITE = "peers"
OVERHEADS = {
    "softcap 30 causal s4096": "d128 causal s4096",
    "ALiBi causal s4096": "d128 causal s4096",
    "forgetting gate causal s4096": "d128 causal s4096",
    "sinks causal s4096": "d128 causal s4096",
    "relative-bias table full s4096": "d128 full s4096",
    "dense bf16 bias full s4096": "d128 full s4096",
}
"""Case -> the plain case with the same sizes and mask."""


@dataclass(frozen=True)
class Comparison:
    """One case: measured and predicted seconds."""

    case: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative to what was measured; positive where the model is too slow."""
        return self.predicted / self.measured - 1.0


def predictions(target: Target, names: frozenset[str] | None = None) -> dict[str, Estimate]:
    """Case -> the model's prediction for the kernel of `target`; of all cases that choose no targets of their own and are not packed, or those named."""
    found = {}
    for case in suite.read(SUITE):
        if not (case.targets or case.lengths) and (names is None or case.name in names):
            stages = driver.lower(lower.load(case.file, **case.parameters), target)
            found[case.name] = predict(stages.schedule, stages.target, case.shape, work(stages.tile, case.shape))
    return found


def measured(target: Target, path: Path) -> dict[str, float]:
    """Case -> measured seconds of the kernel of `target`, from a file that `attncc bench --suite peers --json` wrote."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {r["case"]: r["ms"] / 1e3 for r in rows if r["implementation"] == f"attncc {target.name}" and r.get("ms")}


def compare(target: Target, path: Path, names: frozenset[str] | None = None) -> list[Comparison]:
    """Prediction beside measurement, for every case that has both."""
    times, found = measured(target, path), predictions(target, names)
    return [Comparison(name, times[name], e.seconds) for name, e in found.items() if name in times]


def summary(rows: list[Comparison]) -> tuple[float, float, str]:
    """(median, largest, case of the largest) of the relative differences, without signs."""
    worst = max(rows, key=lambda r: abs(r.error))
    return statistics.median(abs(r.error) for r in rows), abs(worst.error), worst.case


def text(path: Path) -> str:
    """The page."""
    parts = [HEADER]
    device = json.loads(path.read_text(encoding="utf-8"))["device"]
    for target in TARGETS.values():
        if target.accuracy is not None:
            parts.append(_compared(target, device, path))
    parts += [_predicted(t) for t in TARGETS.values() if t.accuracy is None]
    return "\n".join(parts)


HEADER = """# Predicted times

Written by `python -m attncc.bench.predictions`. The resource model (`attncc/targets/model.py`) counts cycles of the matrix units, the special function
unit, instruction issue and shared memory for an iteration; `attncc explain` prints its prediction for any spec and sizes. First, how far it is from
what was measured (kernels of the version that the file of measurements names; the predictions are for those of today); then what it says for
targets on which nothing was measured. Those figures are predictions and nothing else.
"""


def _compared(target: Target, device: str, path: Path) -> str:
    rows = compare(target, path)
    median, largest, case = summary(rows)
    head = f"## {target.title}, measured on {device}\n\nMedian difference {100 * median:.0f} %, at most {100 * largest:.0f} % ({case}), {len(rows)} cases.\n"
    table = ["| case | measured ms | predicted ms | difference |", "|---|---|---|---|"]
    table += [f"| {r.case} | {1e3 * r.measured:.3f} | {1e3 * r.predicted:.3f} | {100 * r.error:+.0f} % |" for r in rows]
    return head + "\n" + "\n".join(table) + "\n"


def _predicted(target: Target) -> str:
    found = predictions(target)
    table = ["| case | predicted ms | TFLOP/s | limited by | over plain |", "|---|---|---|---|---|"]
    for name, e in found.items():
        plain = found.get(OVERHEADS.get(name, ""))
        over = f"{100 * (e.seconds / plain.seconds - 1):+.0f} %" if plain else ""
        table.append(f"| {name} | {1e3 * e.seconds:.3f} | {e.tflops:.0f} | {e.limit} | {over} |")
    known = "".join(f"- published: {what}: {tflops:.0f} TFLOP/s\n" for what, tflops in target.published)
    return f"## {target.title}: predicted, not measured\n\n{target.rates.source}.\n\n{known}\n" + "\n".join(table) + "\n"


if __name__ == "__main__":
    print(text(Path(sys.argv[1])), end="")
