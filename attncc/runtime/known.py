"""What earlier processes found out, so that a later one need not parse, lower, print or compile to find it again.

A record is one pickled value in the cache directory, named by everything that determines it: the kind of record, what was asked,
the versions, and the bytes of attncc itself. Like compiled objects records may be deleted, truncated or shared at any time: one that
is not whole is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from functools import lru_cache
from pathlib import Path

from attncc import config
from attncc.runtime import cache, files, load

CHECKSUM = hashlib.sha256().digest_size


@lru_cache(maxsize=1)
def sources() -> str:
    """A digest of everything attncc consists of: its modules, `spec/` and `templates/`."""
    import attncc

    package = Path(attncc.__file__).resolve().parent
    folders = [package] + [package.parent / n for n in ("spec", "templates") if not (package / n).is_dir()]
    state = hashlib.sha256(cache.environment().encode())
    for folder in folders:
        for place, below, names in os.walk(folder):
            below[:] = sorted(n for n in below if n != "__pycache__")
            for name in sorted(names):
                path = Path(place, name)
                state.update(f"{path.relative_to(folder).as_posix()}\0".encode())
                state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()


def name(*parts: object) -> str | None:
    """The name of the record that `parts` determine; None when one of them has no certain spelling (then nothing is kept)."""
    if config.settings().cache is None or not all(_spelled(p) for p in parts):
        return None
    return load.digest(*(repr(p) for p in parts), sources())


def fetch(name: str | None):
    """The value of record `name`, None when there is none."""
    if name is None:
        return None
    try:
        data = _path(name).read_bytes()
        value = data[CHECKSUM:]
        return pickle.loads(value) if hashlib.sha256(value).digest() == data[:CHECKSUM] else None
    except Exception:  # noqa: BLE001 - whatever a damaged record raises, it is made again
        return None


def keep(name: str | None, value: object) -> None:
    """Writes a record; that it cannot be written is no error."""
    if name is None:
        return
    data = pickle.dumps(value)
    with contextlib.suppress(OSError):
        files.write(_path(name), hashlib.sha256(data).digest() + data)


def _path(name: str) -> Path:
    return load.folder("known") / name


def _spelled(part: object) -> bool:
    """Whether `repr` tells `part` from everything else: plain numbers, texts, None, and tuples of them."""
    return type(part) in (str, int, float, bool, type(None)) or (type(part) is tuple and all(_spelled(p) for p in part))
