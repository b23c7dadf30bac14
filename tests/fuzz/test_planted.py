"""The fuzzer finds planted mistakes, and says where they are."""

import ast

import pytest

from attncc import pipeline
from attncc.fuzz import compare
from attncc.fuzz.compare import emitted_targets, examine
from attncc.fuzz.run import fuzz
from tests.fuzz import planted

WITHIN = {"L1": 250, "L2": 60, "L3": 60}
"""Cases in which a mistake must be found. Those of L1 need a certain feature, such as the remainder of a negative number."""


def search(targets: tuple[str, ...], cases: int):
    return fuzz(cases=cases, seed=7, run=lambda case: examine(case, targets, every_pass=not targets), shrink_seconds=0)


@pytest.mark.parametrize("mistake", planted.L1, ids=lambda m: m.__name__)
def test_a_mistake_of_an_attention_pass_is_found(monkeypatch, mistake):
    monkeypatch.setattr(pipeline, "ATTENTION_PASSES", (mistake,))
    monkeypatch.setattr(compare._Run, "tile_level", lambda run: None)
    summary = search((), WITHIN["L1"])
    assert summary.finding is not None, f"{mistake.__name__} was not found in {summary.cases} cases"
    assert summary.finding.stage == f"L1 after {mistake.__name__}"


@pytest.mark.parametrize("mistake", planted.L2, ids=lambda m: m.__name__)
def test_a_mistake_of_a_tile_pass_is_found(monkeypatch, mistake):
    after = 1 if mistake is planted.mask_only_last_tile else len(pipeline.TILE_PASSES) - 1
    passes = (*pipeline.TILE_PASSES[:after], mistake)
    monkeypatch.setattr(pipeline, "TILE_PASSES", passes if mistake is not planted.mask_only_last_tile else (mistake,))
    summary = search((), WITHIN["L2"])
    assert summary.finding is not None, f"{mistake.__name__} was not found in {summary.cases} cases"
    assert mistake.__name__ in summary.finding.stage


@pytest.mark.parametrize("mistake", planted.L3, ids=lambda m: m.__name__)
def test_a_mistake_of_a_schedule_pass_is_found(monkeypatch, mistake):
    target = emitted_targets()[0]
    passes = (*pipeline.SCHEDULE_PASSES[target], mistake)
    monkeypatch.setitem(pipeline.SCHEDULE_PASSES, target, passes)
    monkeypatch.setitem(pipeline.CHECKS, "L3", lambda schedule: None)
    monkeypatch.setattr(compare._Run, "tile_level", lambda run: None)
    summary = search((target,), WITHIN["L3"])
    assert summary.finding is not None, f"{mistake.__name__} was not found in {summary.cases} cases"
    assert summary.finding.stage == f"{target}: L3 after {mistake.__name__}"


def test_a_failure_is_shrunk_and_written(monkeypatch, tmp_path):
    """The reproduction is a small spec that can be compiled, headed by the command that runs it again."""
    monkeypatch.setattr(pipeline, "ATTENTION_PASSES", (planted.causal_top_left,))
    monkeypatch.setattr(compare._Run, "tile_level", lambda run: None)
    summary = fuzz(cases=100, seed=3, run=lambda case: examine(case), shrink_seconds=20, directory=tmp_path)
    text = summary.file.read_text()
    assert text.startswith("# run again with: python -m attncc.fuzz ") and "L1 after causal_top_left" in text
    assert len(summary.finding.case.text) < 160, f"it did not get small:\n{text}"
    assert summary.finding.case.shape.seq_q != summary.finding.case.shape.seq_kv
    again = fuzz(cases=1, run=lambda case: examine(summary.finding.case))
    assert again.finding is not None and again.finding.message == summary.finding.message


def test_an_error_inside_a_level_is_a_finding(monkeypatch):
    def broken(attention):
        return ast.parse("(")

    monkeypatch.setattr(pipeline, "ATTENTION_PASSES", (broken,))
    summary = search((), 3)
    assert "SyntaxError" in summary.finding.message and "in broken" in summary.finding.message
