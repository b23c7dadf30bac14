"""What `attncc tune` found, remembered on disk: one choice for each attention, target and device, with these versions of everything."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from attncc import config
from attncc.runtime import known, load

if TYPE_CHECKING:
    from attncc.targets.choice import Choice


def remembered(attention: str, target: str, device: str) -> Choice | None:
    """The choice for an attention (the digest of its text) on a device (its name); None when there is none, or they are turned off."""
    return known.fetch(_name(attention, target, device)) if config.settings().tuned else None


def remember(attention: str, target: str, device: str, choice: Choice | None) -> bool:
    """Keeps `choice` (None: what the resource model says) in place of an earlier one; whether there is a cache to keep it in."""
    name = _name(attention, target, device)
    known.keep(name, choice)
    if name is not None:
        with contextlib.suppress(OSError):
            _mark().touch()
    return name is not None


def anything() -> bool:
    """Whether something was ever remembered here. Where nothing was, nobody need ask CUDA for the device's name."""
    settings = config.settings()
    return settings.tuned and settings.cache is not None and _mark().exists()


def _mark() -> Path:
    return load.folder("known") / "tuned"


def _name(attention: str, target: str, device: str) -> str | None:
    return known.name("tuned", attention, target, device)
