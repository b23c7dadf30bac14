"""Records of earlier processes: what they name, damage, and that a warm start imports neither the compiler nor CuTe DSL."""

import os
import pickle
import subprocess
import sys
import threading

import pytest

import attncc
from attncc import entry
from attncc.diagnostics import AttnError
from attncc.runtime import known
from tests.runtime.specs import PLAIN, RICH


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNCC_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def lowered(monkeypatch):
    """Counts texts that are parsed."""
    count = []
    real = entry.load_text
    monkeypatch.setattr(entry, "load_text", lambda *a: (count.append(1), real(*a))[1])
    return count


def test_a_text_is_parsed_once(folder, lowered):
    first, second = attncc.compile(RICH), attncc.compile(RICH)
    assert len(lowered) == 1 and first.attention == second.attention and first.key == second.key
    assert second.attention.span("dim").source.text == RICH, "messages still show the line"


def test_what_was_asked_is_in_the_name(folder, lowered):
    text = PLAIN.replace("plain", "plain(window: int = 5)").replace("mask causal", "mask q_idx - kv_idx < window")
    for again in range(2):
        found = [attncc.compile(text), attncc.compile(text, window=6), attncc.compile(text, window=7)]
        assert len({k.key for k in found}) == 3
        attncc.compile(text, target="ampere", window=6)
    assert len(lowered) == 4


def test_true_is_not_one_and_unknown_types_are_not_kept(folder):
    assert known.name("x", 1) != known.name("x", True) != known.name("x", 1.0)
    assert known.name("x", (1, "a")) is not None and known.name("x", object()) is None
    assert known.name("x", (("n", pickle),)) is None


def test_errors_are_not_kept(folder):
    for _ in range(2):
        with pytest.raises(AttnError, match="dim 512"):
            attncc.compile(PLAIN.replace("64", "512"), target="hopper")


@pytest.mark.parametrize("rubbish", [b"", b"\0" * 200, None])
def test_a_damaged_record_is_made_again(folder, lowered, rubbish):
    attncc.compile(PLAIN)
    (record,) = folder.glob("known/*")
    record.write_bytes(record.read_bytes()[:-3] if rubbish is None else rubbish)
    attncc.compile(PLAIN)
    attncc.compile(PLAIN)
    assert len(lowered) == 2, "made again once, then found"


def test_nothing_is_kept_when_the_cache_is_off(folder, lowered, monkeypatch):
    monkeypatch.setenv("ATTNCC_CACHE", "off")
    attncc.compile(PLAIN)
    attncc.compile(PLAIN)
    assert len(lowered) == 2 and not list(folder.iterdir())


def test_every_source_of_attncc_is_in_the_name(monkeypatch, tmp_path):
    package = tmp_path / "attncc"
    for name in ("attncc/device/a.py", "attncc/passes/b.py", "spec/attn.lark", "templates/c.jinja"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    monkeypatch.setattr(attncc, "__file__", str(package / "__init__.py"))
    seen = set()
    for changed in (None, *tmp_path.glob("**/*.*")):
        if changed is not None:
            changed.write_text("two")
        known.sources.cache_clear()
        seen.add(known.sources())
    known.sources.cache_clear()
    assert len(seen) == 5


def test_threads_use_one_record(folder):
    results = []
    threads = [threading.Thread(target=lambda: results.append(attncc.compile(RICH).attention)) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 8 and all(r == results[0] for r in results)


WARM = f"""
import sys, torch
before = set(sys.modules)
import attncc
kernel = attncc.compile({PLAIN!r}, target="ampere")
launcher = kernel._compiled(kernel.target, "sm_80")
q = torch.zeros(1, 3, 4, 64, dtype=torch.bfloat16)
try:
    launcher.launch(q, q[:, :, :2], q[:, :, :2], q, torch.zeros(1, 4, 3))
except Exception as error:
    assert "device" in str(error), error  # the compiled function looks at its arguments: these are on the CPU
heavy = ("cutlass", "lark", "jinja2", "torch._dynamo", "filelock", "attncc.driver", "attncc.pipeline", "attncc.ir.schedule")
print([m for m in heavy if m in sys.modules], len(set(sys.modules) - before))
"""


def test_a_warm_start_imports_no_compiler(folder):
    kernel = attncc.compile(PLAIN, target="ampere")
    assert kernel._compiled(kernel.target, "sm_80").launch
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", WARM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[] "), done.stdout
    assert int(done.stdout.split()[-1]) < 160, f"too many modules: {done.stdout}"


def test_a_kernel_whose_object_was_deleted_is_compiled_again(folder):
    kernel = attncc.compile(PLAIN, target="ampere")
    assert kernel._compiled(kernel.target, "sm_80").launch
    for path in folder.glob("objects/*"):
        path.unlink()
    again = attncc.compile(PLAIN, target="ampere")
    assert again._compiled(again.target, "sm_80").launch
    assert len(list(folder.glob("objects/*.o"))) == 1
