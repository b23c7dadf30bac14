"""What is said about the resource model's error is what the measured table gives."""

import statistics
from pathlib import Path

import pytest

from attncc import driver, lower
from attncc.bench.predictions import OVERHEADS, Comparison, compare, summary
from attncc.bench.suite import read
from attncc.explain import Shape
from attncc.explain.report import report
from attncc.targets import TARGETS, get_target, model_accuracy

MEASURED = Path("benchmarks/peers-h100.json")
ROOT = Path(__file__).resolve().parents[2]
QUICK = frozenset({"d128 full s4096", "d64 full s8192", "d96 full s8192", "d256 full s8192", "d192/128 full s8192", "d128 causal s4096"})


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_stated_error_is_that_of_the_measured_table():
    (target,) = [t for t in TARGETS.values() if t.accuracy is not None]
    rows = compare(target, MEASURED, QUICK)
    assert len(rows) == len(QUICK)
    again = f"python -m attncc.bench.predictions {MEASURED} > docs/predictions.md, then `accuracy` in the target"
    assert statistics.median(abs(r.error) for r in rows) <= target.accuracy.median + 0.05, again
    assert max(abs(r.error) for r in rows) <= target.accuracy.largest + 0.05, again


def test_the_page_says_the_same_as_the_target():
    (target,) = [t for t in TARGETS.values() if t.accuracy is not None]
    a = target.accuracy
    said = f"Median difference {100 * a.median:.0f} %, at most {100 * a.largest:.0f} % ({a.case}), {a.cases} cases."
    assert said in (ROOT / "docs" / "predictions.md").read_text(encoding="utf-8")


def test_summary_names_the_worst_case():
    assert summary([Comparison("a", 1.0, 1.1), Comparison("b", 1.0, 0.5), Comparison("c", 2.0, 2.4)]) == (pytest.approx(0.2), 0.5, "b")


def test_every_overhead_has_its_plain_case():
    names = {case.name for case in read("peers")}
    assert set(OVERHEADS) | set(OVERHEADS.values()) <= names


@pytest.mark.parametrize("name", TARGETS)
def test_explain_states_the_error_beside_every_prediction(name):
    target = get_target(name)
    attention = lower.load("attention plain { heads q = 2, kv = 1\n dim 64\n dtype bf16 }")
    text = report(driver.lower(attention, target), Shape(1, 512, 512))
    measured, a = model_accuracy(target)
    lines = [line.strip() for line in text.splitlines()]
    at = next(i for i, line in enumerate(lines) if line.startswith("predicted "))
    assert f"off by {100 * a.median:.0f} %" in lines[at + 1] and a.device in lines[at + 1]
    assert (f"nothing was measured for {name}" in lines[at + 1]) == (measured is not target)
