"""Settings from the environment. Nothing else in attncc reads `os.environ`, and no setting changes what a kernel computes.

ATTNCC_CACHE    where compiled kernels are kept: a directory, or `off` to keep none between processes
                (default: the user's cache directory, for example ~/.cache/attncc)
ATTNCC_TUNED    `off` to compile what the resource model chooses though `attncc tune` found something faster
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

OFF = "off"


@dataclass(frozen=True)
class Settings:
    """`cache` is the directory of compiled kernels, None when nothing is kept on disk; `tuned` whether remembered choices are used."""

    cache: Path | None
    tuned: bool = True


def settings() -> Settings:
    """The settings as the environment says now."""
    tuned = os.environ.get("ATTNCC_TUNED", "").strip().lower() != OFF
    said = os.environ.get("ATTNCC_CACHE", "").strip()
    if said.lower() == OFF:
        return Settings(None, tuned)
    if said:
        return Settings(Path(said).expanduser(), tuned)
    from platformdirs import user_cache_dir

    return Settings(Path(user_cache_dir("attncc", appauthor=False)), tuned)
