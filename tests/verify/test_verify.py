"""Workers that crash or hang lose one job; what is verified and how it is reported."""

import json
from pathlib import Path

import pytest

from attncc.diagnostics import AttnError
from attncc.explain.work import kept_pairs
from attncc.interp.data import make_inputs
from attncc.lower import load
from attncc.verify import workers
from attncc.verify.jobs import GROUPS, LONG, SHAPES, Job, jobs, spec_files
from attncc.verify.table import counts, lines, markdown, outcome
from attncc.verify.worker import answer, plain
from attncc.verify.workers import run_all
from tests.runtime.specs import PLAIN

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def job(name: str) -> Job:
    return Job(name, (), "ampere", 0)


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(workers, "MODULE", "tests.verify.fake_worker")


def test_answers_come_in_order(fake):
    names = [f"job {i}" for i in range(12)]
    seen = []
    answers = run_all([job(n) for n in names], "run", 3, 20, lambda j, a: seen.append(j.file))
    assert [a["file"] for a in answers] == names and sorted(seen) == sorted(names)
    assert len({a["pid"] for a in answers}) <= 3, "a process answers many jobs"


@pytest.mark.parametrize(
    "kind, said", [("crash", "about to die"), ("leave", "status 3"), ("hang", "no answer within 2 s")]
)
def test_a_lost_process_loses_one_job(fake, kind, said):
    answers = run_all([job("a"), job(kind), job("b")], "run", 1, 2)
    assert [a["ok"] for a in answers] == [True, False, True]
    assert said in answers[1]["error"]
    assert answers[0]["pid"] != answers[2]["pid"]


def test_jobs_cover_groups_and_shapes():
    files = spec_files([str(EXAMPLES)])
    assert len(files) >= 25
    made = jobs(files[:3], ["hopper", "ampere"], False, {"hopper": "sm_90a", "ampere": "sm_90a"})
    assert {j.group for j in made} >= set(GROUPS)
    one = [j for j in made if j.file == files[0] and j.target == "hopper"]
    assert sum(LONG in j.shapes for j in one) == 1 and all(set(SHAPES) <= set(j.shapes) for j in one)
    lengths = [(q, k) for _, q, k in SHAPES]
    assert any(q < k for q, k in lengths) and any(q == k for q, k in lengths) and any(q > k for q, k in lengths)
    quick = jobs(files, ["hopper"], True, {"hopper": "sm_90a"})
    assert len(quick) == len(files) and {j.group for j in quick} >= set(GROUPS)
    with pytest.raises(AttnError, match="there is no spec"):
        spec_files(["nowhere.attn"])


def test_a_worker_answers_what_went_wrong(tmp_path):
    (tmp_path / "x.attn").write_text(PLAIN)
    (tmp_path / "y.attn").write_text(PLAIN.replace("64", "1000"))
    base = {"verb": "compile", "target": "ampere", "parameters": {}, "chip": "sm_80", "shapes": []}
    assert answer({**base, "file": str(tmp_path / "x.attn")}) == {"ok": True, "rows": []}
    refused = answer({**base, "file": str(tmp_path / "y.attn")})
    assert not refused["ok"] and "1000" in refused["refused"]
    other = answer({**base, "file": str(tmp_path / "x.attn"), "chip": "sm_1"})
    assert not other["ok"] and "is not for `sm_1`" in other["refused"]
    broken = answer({**base, "file": str(tmp_path / "x.attn"), "verb": "run", "shapes": [[1]]})
    assert not broken["ok"] and broken["error"]
    assert plain("\x1b[91mred\x1b[0m\nline") == "red / line"


def test_the_table():
    good = {"shape": [1, 2, 3], "error": 1e-3, "allowed": 2e-3, "lse_error": 1e-6, "bad": None, "ok": True, "us": 5.0}
    bad = {**good, "error": 1.0, "ok": False, "bad": "a second call gave another result"}
    answers = [
        {"ok": True, "rows": [good]},
        {"ok": True, "rows": [good, bad]},
        {"ok": False, "error": "hang"},
        {"ok": False, "refused": "no"},
    ]
    rows = [outcome(job(f"{n}.attn"), a) for n, a in zip("abcd", answers)]
    assert counts(rows) == {"right": 1, "wrong": 1, "failed": 1, "refused": 1}
    shown = lines(rows)
    assert "50 %" in shown[1] and shown[1].endswith("ok")
    assert "WRONG in 1 of 2 shapes; 1x2x3: a second call" in shown[2]
    assert "FAILED hang" in shown[3] and "refused: no" in shown[4]
    json.dumps(rows)
    page = markdown(rows, {"device": "none", "date": "today"})
    assert "device none, date today." in page and "1 right, 1 wrong, 1 failed, 1 refused of 4 kernels." in page
    assert "| a | ampere | 1 | 1.0e-03 | 2.0e-03 | 1e-06 | ok |" in page and page.count("| ampere |") == 4


@pytest.mark.parametrize(
    "mask, kept",
    [("true", 6 * 7), ("causal", 6 * 7 - 15), ("h == 0", 21), ("b == 1 and kv_idx == 2", 3), ("t[b, kv_idx]", None)],
)
def test_kept_pairs(mask, kept):
    a = load(
        f"attention a {{\n heads q = 2, kv = 1\n dim 16\n dtype bf16\n tensor t: bool[batch, seq_kv]\n mask {mask} and (t[0, 0] or true)\n}}\n"
    )
    inputs = make_inputs(a, 2, 6, 7)[3]
    expected = (
        2 * 2 * kept
        if mask in ("true", "causal")
        else 2 * 42
        if mask == "h == 0"
        else 12
        if kept
        else int(inputs["t"].sum()) * 12
    )
    assert kept_pairs(a, 2, 6, 7, inputs) == expected
