"""Puts a generated text in a file and makes a module of it.

CuTe DSL reads the source of the functions it compiles with `inspect`. The same file name with another text would silently
compile another kernel, so the name holds a hash of the text.
"""

from __future__ import annotations

import atexit
import hashlib
import linecache
import shutil
import tempfile
import types
from functools import lru_cache
from pathlib import Path

from attncc import config
from attncc.runtime import files


def digest(*parts: str | bytes) -> str:
    """32 hex digits that stand for `parts`; different lists of parts have different digests."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()[:32]


@lru_cache(maxsize=1)
def private_folder() -> Path:
    """A folder of this process, removed at its end, for files that are not kept."""
    path = Path(tempfile.mkdtemp(prefix="attncc-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def folder(kind: str) -> Path:
    """The folder for files of `kind` ("generated", "objects"): in the cache, or this process's own where that cannot be
    written or is turned off."""
    root = config.settings().cache
    if root is not None:
        path = root / kind
        try:
            path.mkdir(parents=True, exist_ok=True)
            return path
        except OSError:
            pass
    path = private_folder() / kind
    path.mkdir(parents=True, exist_ok=True)
    return path


def store(text: str, name: str) -> Path:
    """Writes a generated text under a name made of `name` and its hash; the file's path."""
    stem = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)[:48] or "kernel"
    path = folder("generated") / f"{stem}_{digest(text)[:16]}.py"
    if not _holds(path, text):
        try:
            files.write(path, text.encode())
        except OSError:  # a cache on a full or read-only disk
            path = private_folder() / path.name
            files.write(path, text.encode())
    return path


def module(path: Path) -> types.ModuleType:
    """The generated file as a module, executed once for each call."""
    text = path.read_text(encoding="utf-8")
    linecache.checkcache(str(path))
    made = types.ModuleType(f"attncc_generated_{path.stem}")
    made.__file__ = str(path)
    exec(compile(text, str(path), "exec"), made.__dict__)  # noqa: S102 - text that attncc.emit wrote
    return made


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False
