"""The wheel holds everything: installed elsewhere, without the checkout, it compiles an example."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("attncc", "spec", "templates", "pyproject.toml", "setup.py", "README.md")


def run(*command, cwd, **environment) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that the build leaves nothing in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, source / part)
    run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, source, cwd=out
    )
    (made,) = out.glob("*.whl")
    return made


def files_below(folder: str, pattern: str) -> set[str]:
    return {f"attncc/{folder}/{p.relative_to(ROOT / folder).as_posix()}" for p in (ROOT / folder).rglob(pattern)}


def test_contents(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = files_below("spec", "*.attn") | files_below("spec", "*.lark") | files_below("templates", "*.jinja")
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "attncc").rglob("*.py") if "__pycache__" not in p.parts}
    assert len(wanted) > 5 and not (wanted | modules) - inside
    assert not [n for n in inside if n.startswith(("tests", "examples", "benchmarks"))]


@pytest.mark.slow
def test_an_example_compiles_elsewhere(wheel, tmp_path):
    site = tmp_path / "site"
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        site,
        wheel,
        cwd=tmp_path,
    )
    shutil.copy(ROOT / "examples" / "gemma2_local.attn", tmp_path)
    where = run(
        sys.executable, "-c", "import attncc; print(attncc.__file__)", cwd=tmp_path, PYTHONPATH=str(site)
    ).strip()
    assert Path(where).is_relative_to(site)
    command = (sys.executable, "-m", "attncc", "compile", "gemma2_local.attn", "--target", "ampere", "-o", "out")
    run(*command, cwd=tmp_path, PYTHONPATH=str(site), ATTNCC_CACHE="off")
    report = json.loads((tmp_path / "out" / "gemma2_local_ampere.json").read_text())
    assert report["kernels"]
