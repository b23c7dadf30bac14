"""Compiled objects on disk: reused, never stale, never the cause of an error."""

import gc
import hashlib
import multiprocessing
import shutil
import threading

import pytest

from attncc.lower import load
from attncc.runtime import build, cache, objects
from attncc.runtime import load as loading
from tests.runtime.specs import PLAIN

CHIP = "sm_80"
TEXT = """
import cutlass
import cutlass.cute as cute
from cuda.bindings.driver import CUstream

ARGUMENTS = (
    ("q", "operand", "bf16", 4),
    ("k", "operand", "bf16", 4),
    ("v", "operand", "bf16", 4),
    ("o", "operand", "bf16", 4),
    ("lse", "lse", "f32", 3),
    ("t_seen", "tensor", "bool", 1),
    ("p_n", "scalar", "int", 0),
)


@cute.kernel
def kernel(lse: cute.Tensor, n: cutlass.Int32):
    lse[0, 0, 0] = cutlass.Float32(n)


@cute.jit
def launch(
    q: cute.Tensor, k: cute.Tensor, v: cute.Tensor, o: cute.Tensor, lse: cute.Tensor, t_seen: cute.Tensor, p_n: cutlass.Int32,
    stream: CUstream,
):
    kernel(lse, p_n).launch(grid=(1, 1, 1), block=(32, 1, 1), stream=stream)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNCC_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def compiles(monkeypatch):
    """Counts calls of the real compiler."""
    count = []
    real = build.compile_module
    monkeypatch.setattr(build, "compile_module", lambda *a: (count.append(1), real(*a))[1])
    return count


def make():
    return build.build(TEXT, load(PLAIN), CHIP)


def test_garbage_is_collected_again_after_a_build_and_after_one_that_failed(monkeypatch):
    seen = []
    monkeypatch.setattr(loading, "module", lambda path: seen.append(gc.isenabled()) or 1 / 0)
    a = load(PLAIN)
    with pytest.raises(ZeroDivisionError):
        build.build("", a, "sm_90a")
    assert seen == [False] and gc.isenabled()


def test_a_second_build_is_loaded_from_disk(folder, compiles):
    assert make().function is not None and len(compiles) == 1
    assert make().function is not None and len(compiles) == 1
    assert len(list(folder.glob("objects/*.o"))) == 1
    assert make().path.parent == folder / "generated"


def damage(path, data):
    """Replaces a kept file, as a new file: this process may have loaded the old one."""
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("rubbish", [b"", b"\x7fELF garbage", None])
def test_a_damaged_entry_is_compiled_again(folder, compiles, rubbish):
    make()
    kept = [*folder.glob("objects/*.o"), *folder.glob("objects/*.so")]
    assert len(kept) == 2
    for path in kept:
        damage(path, path.read_bytes()[:-100] if rubbish is None else rubbish)
    assert make().function is not None and len(compiles) == 2
    assert make().function is not None and len(compiles) == 2, "the entry was repaired"


def test_a_damaged_object_with_a_matching_checksum_is_no_error(folder, compiles, monkeypatch):
    make()
    elsewhere = folder / "elsewhere"  # the system's loader knows a library that it has loaded by its path
    shutil.copytree(folder / "objects", elsewhere / "objects")
    monkeypatch.setenv("ATTNCC_CACHE", str(elsewhere))
    for path in (*elsewhere.glob("objects/*.o"), *elsewhere.glob("objects/*.so")):
        damage(path, b"not an object")
        path.with_name(path.name + ".sha256").write_text(hashlib.sha256(b"not an object").hexdigest())
    assert make().function is not None and len(compiles) == 2


def test_without_a_linker_the_object_file_is_loaded(folder, compiles, monkeypatch):
    monkeypatch.setattr(objects, "LINKERS", (("no-such-linker", "-shared"),))
    assert make().entry.libraries == ()
    assert not list(folder.glob("objects/*.so"))
    assert make().entry.file.endswith(".o") and len(compiles) == 1


def test_a_linker_that_fails_is_no_error(folder, compiles, monkeypatch):
    monkeypatch.setattr(objects, "LINKERS", (("false",), ("ld", "-shared")))
    assert make().entry.file.endswith(".so"), "the next one is tried"


def test_an_entry_of_another_driver_is_not_loaded(folder, compiles, monkeypatch):
    entry = make().entry
    assert cache.load_entry(entry) is not None
    monkeypatch.setattr(objects, "driver_version", lambda: 99990)
    assert cache.load_entry(entry) is None


def test_the_cache_can_be_turned_off(folder, compiles, monkeypatch):
    monkeypatch.setenv("ATTNCC_CACHE", "off")
    path = make().path
    make()
    assert len(compiles) == 2 and not list(folder.iterdir())
    assert path.read_text() == TEXT and folder not in path.parents


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, compiles, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ATTNCC_CACHE", str(tmp_path / "file"))
    assert make().function is not None


def test_everything_that_matters_is_in_the_key(monkeypatch):
    base = cache.key("text", "options", "signature")
    assert base == cache.key("text", "options", "signature")
    others = [
        cache.key("text2", "options", "signature"),
        cache.key("text", "options2", "signature"),
        cache.key("text", "options", "s"),
    ]
    monkeypatch.setattr(cache, "environment", lambda: "another version")
    others.append(cache.key("text", "options", "signature"))
    assert len({base, *others}) == 5
    assert cache.key("ab", "c", "") != cache.key("a", "bc", "")


def test_device_code_is_in_the_key(monkeypatch, tmp_path):
    import attncc

    before = cache.environment()
    (tmp_path / "device").mkdir()
    monkeypatch.setattr(attncc, "__file__", str(tmp_path / "__init__.py"))
    cache.environment.cache_clear()
    empty = cache.environment()
    (tmp_path / "device" / "arith.py").write_text("changed")
    cache.environment.cache_clear()
    assert len({before, empty, cache.environment()}) == 3
    cache.environment.cache_clear()


def test_another_text_never_has_the_same_file(folder):
    first, second = loading.store("a = 1\n", "same name"), loading.store("a = 2\n", "same name")
    assert first != second
    assert loading.module(first).a == 1 and loading.module(second).a == 2
    second.write_text("a = 3\n")
    assert loading.module(loading.store("a = 2\n", "same name")).a == 2, "a file that was edited is written again"


def test_names_of_files_are_harmless(folder):
    path = loading.store("x = 0\n", "../../évil name;rm -rf")
    assert path.parent == folder / "generated"
    assert path.name.replace(".py", "").replace("_", "").isalnum() and path.name.isascii()


def test_threads_compile_one_after_the_other(folder, compiles):
    results = []
    threads = [threading.Thread(target=lambda: results.append(make().function)) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 4 and all(results)
    assert len(compiles) == 1, "the others waited for the first one's result"


def _make_in_process(folder, queue):
    import os

    os.environ["ATTNCC_CACHE"] = folder
    queue.put(make().function is not None)


def test_processes_share_the_cache(folder):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_make_in_process, args=(str(folder), queue)) for _ in range(2)]
    for w in workers:
        w.start()
    assert [queue.get(timeout=120) for _ in workers] == [True, True]
    for w in workers:
        w.join()
    assert len(list(folder.glob("objects/*.o"))) == 1


def test_lengths_and_strides_are_variables_of_the_compiled_function(folder):
    """The compiled wrapper names what it refuses; the sizes of a call are none of it."""
    import torch

    function = make().function
    q = torch.zeros(1, 3, 4, 64, dtype=torch.bfloat16)
    with pytest.raises(Exception) as error:
        function(q, q, q, q, torch.zeros(1, 4, 3), torch.zeros(3, dtype=torch.uint8), 1)
    assert "device" in str(error.value), "CPU tensors are refused, whatever their sizes"


def test_what_spills_is_compiled_with_less_and_less_reordering(monkeypatch):
    """And what spills least is taken, of equals the first."""
    first, second, third = ("", *build.LESS_REORDERING)

    def taken(*frames):
        tried = dict(zip((first, second, third), frames))
        monkeypatch.setattr(build, "_compile", lambda generated, attention, how: (seen.append(how), how)[1])
        monkeypatch.setattr(build, "spilled", tried.__getitem__)
        seen = []
        return build.compile_module(None, None, ""), seen

    assert taken(0, 1, 1) == (first, [first])
    assert taken(8, 0, 1) == (second, [first, second])
    assert taken(32, 24, 0) == (third, [first, second, third])
    assert taken(24, 32, 24) == (first, [first, second, third])
