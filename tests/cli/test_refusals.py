"""Whatever is given: a message that says what is wrong and what to do, the right exit status, no traceback, no half-written file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import SPEC

CASES = {
    "missing file": (("check", "nothing.attn"), 1, "cannot read 'nothing.attn': No such file or directory"),
    "directory": (("check", "."), 1, "cannot read '.': Is a directory"),
    "text instead of a file": (("check", "attention a { }"), 1, "cannot read"),
    "unknown command": (("chekc", "little.attn"), 1, "there is no command `chekc`; did you mean `check`?"),
    "unknown option": (("check", "little.attn", "--tarjet", "x"), 1, "--tarjet"),
    "no file": (("check",), 1, "Missing argument 'FILE'"),
    "unknown target": (("check", "little.attn", "--target", "hoper"), 1, "did you mean `hopper`?"),
    "parameter without value": (("check", "little.attn", "-p", "window"), 1, "is not of the form name=value"),
    "parameter that is no number": (
        ("check", "little.attn", "-p", "window=wide"),
        1,
        "neither a number nor true or false",
    ),
    "parameter given twice": (("check", "little.attn", "-p", "window=3", "-p", "window=4"), 1, "`window` is given twice"),
    "parameter beyond a float": (("check", "little.attn", "-p", "window=1e400"), 1, "too large for a float"),
    "parameter of another type": (("check", "little.attn", "-p", "window=1.5"), 1, "help: pass a whole number, window=3"),
    "too many tiles": (("explain", "little.attn", "--shape", "100000x100000x100000"), 1, "help: give a smaller --shape"),
    "too many tiles to draw": (("draw", "little.attn", "--shape", "1x1000000x1000000"), 1, "help: give a smaller --shape"),
    "unknown parameter": (("check", "little.attn", "-p", "windw=3"), 1, "did you mean `window`?"),
    "unknown stage": (("explain", "little.attn", "--stage", "L9"), 1, "there is no stage `L9`"),
    "bad shape": (("explain", "little.attn", "--shape", "big"), 1, "'big' is not of the form batch x queries x keys"),
    "huge shape": (("explain", "little.attn", "--shape", "1x99999999999x1"), 1, "is not of the form"),
    "picture of another kind": (("draw", "little.attn", "-o", "mask.png"), 1, "must end in .svg"),
    "picture over the spec": (("draw", "little.attn", "-o", "little.attn"), 1, "must end in .svg"),
    "picture into nowhere": (("draw", "little.attn", "-o", "no/where/mask.svg"), 1, "there is no directory 'no/where'"),
    "head that is not there": (("draw", "little.attn", "--head", "2"), 1, "there are 2 query heads"),
    "nothing to draw": (("draw", "little.attn", "--shape", "1x0x4"), 1, "nothing to draw"),
    "output folder is a file": (
        ("compile", "little.attn", "-o", "little.attn"),
        1,
        "is a file, a directory was expected",
    ),
    "chip of another target": (
        ("compile", "little.attn", "--target", "ampere", "--chip", "sm_70"),
        1,
        "is not for `sm_70`",
    ),
    "chip of a target that was not named": (("compile", "little.attn", "--chip", "sm_120a"), 1, "help: target `ada` is"),
    "option as a parameter": (("run", "little.attn", "-p", "target=3"), 1, "help: write --target 3"),
    "seed beyond any generator": (("run", "little.attn", "--seed", "99999999999999999999"), 1, "--seed"),
    "unknown target to run": (("run", "little.attn", "--target", "hoper"), 1, "did you mean `hopper`?"),
    "trace into nowhere": (("run", "little.attn", "--emulate", "--trace", "no/where.json"), 1, "there is no directory 'no'"),
    "negative seconds": (("fuzz", "--seconds", "-1"), 1, "-1"),
    "nothing to verify": (("verify", "nowhere", "--compile-only"), 1, "there is no spec at nowhere"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(attncc, tmp_path, case):
    arguments, status, message = CASES[case]
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    r = attncc(*arguments)
    assert r.status == status and message in r.err and not r.out
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before, "nothing was written"


@pytest.mark.parametrize("how", [(), ("--emulate",)])
def test_a_call_that_a_cpu_would_not_finish(attncc, monkeypatch, how):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    r = attncc("run", "little.attn", "--shape", "1x100000x100000", *how)
    assert r.status == 1 and "E604" in r.err and "20000000000 scores" in r.err and "help: give a smaller --shape" in r.err


def test_a_bad_spec_shows_its_line(attncc, tmp_path):
    (tmp_path / "bad.attn").write_text(SPEC.replace("causal", "casual"))
    r = attncc("check", "bad.attn")
    assert r.status == 1 and "did you mean `causal`?" in r.err
    assert "bad.attn:5:" in r.err and "^^^^^^" in r.err


def test_check_looks_at_the_target_of_the_text(attncc, tmp_path):
    (tmp_path / "hint.attn").write_text(SPEC.replace("dim 64", "dim 64\n target hopper(tile_m = 77)"))
    r = attncc("check", "hint.attn")
    assert r.status == 1 and "no tile of target hopper fits tile_m = 77" in r.err and "^^^" in r.err


def test_closed_streams(attncc, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    from attncc import cli

    assert cli.run(["check", "little.attn"]) == 0
    assert cli.run(["check", "nothing.attn"]) == 1


def test_no_memory_is_no_mistake_of_attncc(attncc, monkeypatch):
    def huge(*a, **k):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 40000000000 bytes")

    monkeypatch.setattr("attncc.lower.load", huge)
    r = attncc("check", "little.attn")
    assert r.status == 1 and "not enough memory" in r.err and "--shape" in r.err


@pytest.mark.parametrize("command", [("bench", "little.attn"), ("verify", "little.attn")])
def test_commands_that_need_a_device(attncc, monkeypatch, command):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    r = attncc(*command)
    assert r.status == 1 and "error[E606]: there is no CUDA device" in r.err


def test_an_unknown_peer(attncc):
    r = attncc("bench", "little.attn", "--peers", "fa5")
    assert r.status == 1 and "did you mean `fa4`?" in r.err


def test_files_that_are_no_text(attncc, tmp_path):
    (tmp_path / "noise.attn").write_bytes(bytes(range(256)))
    assert attncc("check", "noise.attn").status == 1
    (tmp_path / "empty.attn").write_text("")
    assert attncc("check", "empty.attn").status == 1


def test_an_output_that_cannot_be_written(attncc, monkeypatch):
    from attncc.runtime import files

    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "write", full)
    r = attncc("draw", "little.attn", "-o", "mask.svg")
    assert r.status == 1 and "'mask.svg' cannot be written: No space left on device" in r.err


def test_an_error_inside_attncc_leaves_a_bundle(attncc, monkeypatch):
    def broken(*a, **k):
        raise RuntimeError("\x1b[91mdeep inside\x1b[0m\nsecond line")

    monkeypatch.setattr("attncc.lower.load", broken)
    r = attncc("check", "little.attn")
    assert r.status == 2 and "internal error: RuntimeError: deep inside" in r.err and "second line" not in r.err
    path = r.err.rsplit(" in ", 1)[1].strip()
    text = Path(path).read_text()
    os.unlink(path)
    assert "Traceback" in text and "attncc check little.attn" in text and SPEC in text and "torch" in text


def test_interruption(attncc, monkeypatch):
    def stop(*a, **k):
        raise KeyboardInterrupt

    monkeypatch.setattr("attncc.lower.load", stop)
    r = attncc("check", "little.attn")
    assert (r.status, r.err) == (130, "interrupted\n")


def test_a_closed_pipe_is_quiet(attncc):
    process = subprocess.Popen(
        [sys.executable, "-m", "attncc", "explain", "little.attn", "--stage", "kernel"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait() == 141 and "Traceback" not in err and "Error" not in err
