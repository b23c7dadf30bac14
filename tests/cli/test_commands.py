"""Every command does what it says; its output files are whole."""

import json
import xml.etree.ElementTree
from pathlib import Path

import pytest

import attncc as package
from attncc.explain import Measured, Shape, explain


def test_check(attncc):
    r = attncc("check", "little.attn")
    assert (r.status, r.err) == (0, "") and r.out == "little.attn: ok: little, 2/1 heads, dim 64, bf16, softmax\n"


def test_parameters_are_passed(attncc):
    assert attncc("check", "little.attn", "-p", "window=3").status == 0
    assert "3" in attncc("explain", "little.attn", "-p", "window=3", "--stage", "L1").out


def test_help_lists_every_command(attncc):
    from attncc.cli import COMMANDS

    out = attncc("--help").out
    assert all(name in out for name in COMMANDS)
    for name in COMMANDS:
        r = attncc(name, "--help")
        assert r.status == 0 and "Usage: attncc " + name in r.out


def test_version(attncc):
    assert attncc("--version").out.startswith("attncc, version ")


@pytest.mark.parametrize(
    "stage, marker", [("L1", "attention"), ("l2", "tile_m"), ("L3", "role"), ("kernel", "import cutlass")]
)
def test_explain_prints_each_level(attncc, stage, marker):
    r = attncc("explain", "little.attn", "--stage", stage)
    assert r.status == 0 and marker in r.out


def test_explain_reports(attncc):
    r = attncc("explain", "little.attn", "--shape", "2x300x500")
    assert r.status == 0
    for part in ("passes", "schedule for", "batch 2, 300 queries, 500 keys", "skipped", "flops", "predicted"):
        assert part in r.out


def test_explain_says_when_blocks_work_on_several_tiles():
    """More tiles than multiprocessors and short rows: 264 of 192 queries for 132 blocks; with longer rows a block for each."""
    stages = package.compile("attention plain { heads q = 4, kv = 2\n dim 64\n dtype bf16 }", target="hopper").stages()
    found = {}
    for batch, keys in ((1, 500), (22, 500), (22, 5000)):
        (found[batch, keys],) = [line.split()[1:] for line in explain(stages, shape=Shape(batch, 500, keys)).splitlines() if " blocks  " in line]
    assert [line[0] for line in found.values()] == ["12,", "132,", "264,"]
    assert [" ".join(line).endswith("several, output apart") for line in found.values()] == [False, True, False]


def test_explain_puts_a_measured_time_beside_the_predicted_one():
    stages = package.compile("attention plain { heads q = 2, kv = 1\n dim 64\n dtype bf16 }", target="hopper").stages()
    lines = explain(stages, shape=Shape(1, 512, 512), measured=Measured(40e-6, "a GPU")).splitlines()
    (predicted,) = [line for line in lines if "predicted" in line]
    (measured,) = [line for line in lines if "measured  " in line]
    seconds = float(predicted.split()[1])
    assert "40.0 us" in measured and "on a GPU" in measured and f"off by {100 * (seconds / 40 - 1):+.0f} %" in measured
    assert lines.index(measured) == lines.index(predicted) + 1


def test_draw_writes_svg(attncc, tmp_path):
    r = attncc("draw", "little.attn", "-o", "mask.svg", "--head", "1", "--shape", "1x300x200")
    assert r.status == 0 and r.out == "mask.svg\n"
    root = xml.etree.ElementTree.parse(tmp_path / "mask.svg").getroot()
    assert root.tag.endswith("svg")
    assert "skipped: never loaded" in (tmp_path / "mask.svg").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["ampere", "hopper"])
def test_compile_writes_kernel_ptx_cubin_and_report(attncc, tmp_path, target):
    r = attncc("compile", "little.attn", "--target", target, "-o", "made/here", "--dump")
    assert r.status == 0, r.err
    folder = tmp_path / "made" / "here"
    report = json.loads((folder / f"little_{target}.json").read_text())
    assert all(k["registers"] > 0 and k["code"] > 0 and k["frame"] == 0 for k in report["kernels"].values())
    assert "no spills" in r.out
    assert (folder / f"little_{target}.cubin").read_bytes()[:4] == b"\x7fELF"
    assert ".version" in (folder / f"little_{target}.ptx").read_text()
    assert "ARGUMENTS" in (folder / f"little_{target}.py").read_text()
    names = [p.name for p in sorted((folder / f"little_{target}_dump").iterdir())]
    assert names[0] == "0-spec.attn" and names[-1] == "4-kernel.py"
    assert [n[0] for n in names] == sorted(n[0] for n in names)


@pytest.mark.slow
def test_run_without_a_gpu(attncc, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    r = attncc("run", "little.attn", "--shape", "2x33x40", "--target", "ampere")
    assert r.status == 0, r.err
    for part in (
        "the CPU interpreter of the tile program, target ampere",
        "q (2, 33, 2, 64), k (2, 40, 1, 64)",
        "against the float64 reference",
        "kernel ",
    ):
        assert part in r.out
    path = r.out.rsplit("kernel", 1)[1].strip()
    assert "ARGUMENTS" in Path(path).read_text(), "the path of the generated kernel is printed"


def test_fuzz_for_a_moment(attncc):
    r = attncc("fuzz", "--seconds", "1", "--seed", "3")
    assert r.status == 0, r.out + r.err
    assert "results compared" in r.out


@pytest.mark.slow
def test_verify_compiles_without_a_device(attncc, tmp_path):
    r = attncc(
        "verify",
        ".",
        "--target",
        "ampere",
        "--compile-only",
        "--jobs",
        "1",
        "--json",
        "out.json",
        "--markdown",
        "out.md",
    )
    assert r.status == 0, r.out + r.err
    assert "1 right, 0 wrong, 0 failed, 0 refused of 1 kernels" in r.out
    assert [row["spec"] for row in json.loads((tmp_path / "out.json").read_text())["rows"]] == ["little"]
    assert "| little | ampere |" in (tmp_path / "out.md").read_text()


def test_check_does_not_wait_for_torch(attncc):
    import subprocess
    import sys

    program = "import sys; from attncc import cli; s = cli.run(['check', 'little.attn']); sys.exit(s or 9 * ('torch' in sys.modules))"
    root = str(Path(__file__).resolve().parents[2])
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {program}"], check=True)


@pytest.mark.slow
def test_run_emulates_a_target_that_is_not_there(attncc):
    r = attncc("run", "little.attn", "--target", "blackwell", "--emulate", "--shape", "1x60x70", "--blocks", "1")
    assert r.status == 0, r.err
    assert "target blackwell" in r.out and "wrote 60 rows" in r.out and "findings   0 errors" in r.out
    assert "lse " in r.out
    empty = attncc("run", "little.attn", "--target", "ampere", "--emulate", "--shape", "1x0x3")
    assert empty.status == 0 and "launches no kernel" in empty.out
    assert attncc("run", "little.attn", "--blocks", "1").status == 1, "--blocks without --emulate"
