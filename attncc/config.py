"""Settings from the environment. Nothing else in attncc reads `os.environ`, and no setting changes what a kernel computes.

ATTNCC_CACHE    where compiled kernels are kept: a directory, or `off` to keep none between processes
                (default: the user's cache directory, for example ~/.cache/attncc)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

OFF = "off"


@dataclass(frozen=True)
class Settings:
    """`cache` is the directory of compiled kernels, None when nothing is kept on disk."""

    cache: Path | None


def settings() -> Settings:
    """The settings as the environment says now."""
    said = os.environ.get("ATTNCC_CACHE", "").strip()
    if said.lower() == OFF:
        return Settings(cache=None)
    if said:
        return Settings(cache=Path(said).expanduser())
    from platformdirs import user_cache_dir

    return Settings(cache=Path(user_cache_dir("attncc", appauthor=False)))
