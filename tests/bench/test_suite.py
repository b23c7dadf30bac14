"""Suites of benchmark cases: the committed one lowers, a wrong one is refused, the table pairs kernels with the best peer."""

import json
from pathlib import Path

import pytest

from attncc.bench import suite
from attncc.cli import main
from attncc.diagnostics import AttnError
from attncc.lower import load

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers.json"


@pytest.mark.parametrize("case", suite.read(str(PEERS)), ids=lambda c: c.name)
def test_every_case_of_the_committed_suite_is_a_spec(case):
    attention = load(case.file, **case.parameters)
    assert attention.dtype == "bf16"
    assert (sum(case.lengths) or case.shape.batch * case.shape.seq_q) == 16384


@pytest.mark.parametrize("text", ["[]", "{", '{"cases": [{}]}', '{"cases": [{"case": "x", "file": "f", "shape": "1xx"}]}'])
def test_what_is_not_a_suite_is_refused(tmp_path, text):
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(AttnError, match="E608"):
        suite.read(str(path))


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def test_an_unknown_suite_is_refused(capsys):
    assert status("bench", "--suite", "nonesuch") == 1
    assert "E608" in capsys.readouterr().err


@pytest.mark.parametrize("lengths", ["", "12,", "3x", "0", "-4", "3000000000", "a"])
def test_lengths_that_are_none_are_refused(lengths, capsys):
    assert status("bench", "dense.attn", "--lengths", lengths) == 1
    assert "E610" in capsys.readouterr().err


def test_lengths():
    assert suite.parse_lengths("777x2,67") == (777, 777, 67)


@pytest.mark.parametrize("arguments", [[], ["dense.attn", "--suite", "peers"]])
def test_a_spec_or_a_suite(arguments, capsys):
    assert status("bench", *arguments) == 1
    assert "E609" in capsys.readouterr().err


def test_the_table_names_the_best_peer():
    rows = [
        {"case": "c", "implementation": "attncc hopper", "tflops": 660.0},
        {"case": "c", "implementation": "fa3", "tflops": 600.0},
        {"case": "c", "implementation": "fa4", "reason": "not installed"},
    ]
    line = suite.lines(rows)[1]
    assert line.split()[-4:] == ["660", "fa3", "600", "1.10"]


def test_the_committed_suite_is_json_with_a_purpose():
    assert "about" in json.loads(PEERS.read_text())
