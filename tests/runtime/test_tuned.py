"""Tuning without a GPU: what is tried, what is remembered, and that compilations take it."""

from dataclasses import replace

import pytest
import torch

import attncc
from attncc import tune
from attncc.cli import run
from attncc.explain import Shape
from attncc.lower import load
from attncc.measure import CheckResult
from attncc.runtime import tuned
from attncc.targets import TARGETS
from attncc.targets.choice import Choice, choices
from attncc.targets.tiles import choose_tiles
from tests.runtime.specs import PLAIN

SHAPE = Shape(1, 512, 512)
TEXT = PLAIN.replace("dim 64", "dim 128")


@pytest.fixture
def device(tmp_path, monkeypatch):
    """A machine that says that it has a GPU; its name can be changed."""
    monkeypatch.setenv("ATTNCC_CACHE", str(tmp_path))
    name = ["GPU of a test"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *a: name[0])
    return name


@pytest.fixture(scope="module")
def found():
    return tune.candidates(load(TEXT), TARGETS["hopper"], SHAPE, 2, 8)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_tried(target):
    a = load(TEXT)
    tried = list(choices(a, TARGETS[target], 3))
    usual = choose_tiles(a, TARGETS[target])
    assert (tried[0].tile_m, tried[0].tile_n, tried[0].groups, tried[0].stages) == (usual.tile_m, usual.tile_n, usual.groups, usual.stages)
    assert len(set(tried)) == len(tried) and len({(c.tile_m, c.tile_n, c.groups) for c in tried}) == 3


def test_kernels_differ_and_are_what_was_chosen(found):
    assert found[0].kernel.source.count("\n") and len(found) == 8
    assert len({tune._without_digest(c.kernel.source) for c in found}) == len(found)
    for c in found:
        schedule = c.kernel.schedule
        assert (schedule.tile_m, schedule.tile_n) == (c.choice.tile_m, c.choice.tile_n)
        assert c.predicted.seconds > 0
    untuned = attncc.compile(TEXT, target="hopper").source
    assert tune._without_digest(untuned) == tune._without_digest(found[0].kernel.source)
    turns = {("barrier_arrive(1" in c.kernel.source, c.choice.turns) for c in found if c.choice.turns is not None}
    assert turns <= {(True, True), (False, False)} and len(turns) == 2


def test_compilations_take_what_is_remembered(device, monkeypatch):
    choice = Choice(128, 96, 2, 2, False, False, False)
    kernel = attncc.compile(TEXT, target="hopper")
    assert kernel.schedule.tile_n != 96
    tuned.remember(kernel.digest, "hopper", device[0], choice)

    def tile_n(**options) -> int:
        return attncc.compile(TEXT, **{"target": "hopper", **options}).schedule.tile_n

    assert tile_n() == 96 and attncc.compile(TEXT, target="hopper").packed.schedule.tile_n == 96
    assert attncc.compile(TEXT.replace("causal", "causal and kv_idx > 3"), target="hopper").schedule.tile_n != 96, "another attention"
    assert attncc.compile(TEXT, target="ampere").schedule.target == "ampere", "another target"
    monkeypatch.setenv("ATTNCC_TUNED", "off")
    assert tile_n() != 96
    monkeypatch.delenv("ATTNCC_TUNED")
    device[0] = "another GPU"
    assert tile_n() != 96
    device[0] = "GPU of a test"
    assert tile_n() == 96
    tuned.remember(kernel.digest, "hopper", device[0], None)
    assert tile_n() != 96


def test_cuda_is_not_asked_where_nothing_was_tuned(device, monkeypatch):
    def asked(*a):
        raise AssertionError("a process that only compiles should not touch the GPU")

    monkeypatch.setattr(torch.cuda, "get_device_name", asked)
    assert attncc.compile(TEXT, target="hopper").schedule.target == "hopper"


def test_nothing_is_remembered_without_a_cache(device, monkeypatch):
    monkeypatch.setenv("ATTNCC_CACHE", "off")
    assert not tuned.remember("x", "hopper", device[0], Choice(128, 96, 2, 2))
    assert tuned.remembered("x", "hopper", device[0]) is None


def test_the_fastest_wins_where_that_is_no_accident(found):
    def times(*ms, spread=0.01):
        return [replace(c, ms=t, spread=spread) for c, t in zip(found, ms)]

    clear, close = times(1.0, 0.9, 1.2), times(1.0, 0.995, 1.2)
    assert tune.best(clear) is clear[1] and tune.best(close) is close[0]
    alone = [found[0], replace(found[1], ms=1.0)]
    assert tune.best(alone) is alone[1], "the usual one failed"
    assert tune.best(found) is None


def test_a_wrong_kernel_is_not_timed(found, monkeypatch):
    good = CheckResult((), 0.0, 0, 0.001, 0.01)
    monkeypatch.setattr(tune, "compare", lambda kernel, *a: replace(good, error=0.1) if kernel is found[1].kernel else good)
    assert tune.checked(found[0], device="cpu").ok
    bad = tune.checked(found[1], device="cpu")
    assert not bad.ok and "its error is 1.00e-01, allowed 1.00e-02" in bad.failed

    def crash(*a):
        raise RuntimeError("the launch failed")

    monkeypatch.setattr(tune, "compare", crash)
    assert tune.checked(found[0], device="cpu").failed == "RuntimeError: the launch failed"


def test_the_command_without_a_gpu(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "x.attn").write_text(TEXT)
    assert run(["tune", str(tmp_path / "x.attn"), "--shape", "1x512x512", "--shapes", "2", "--target", "ampere"]) == 0
    out = capfd.readouterr().out
    assert out.count("predicted") == 2 and "measured " not in out.replace("nothing was measured", "")
    assert "nothing was measured and nothing is remembered" in out
    assert run(["tune", str(tmp_path / "x.attn"), "--forget"]) == 0
    assert run(["tune", str(tmp_path / "x.attn"), "--shapes", "0"]) == 1
