"""Where the files shipped beside the Python code are: `spec/` and `templates/`.

In a checkout they stand at the top of the repository; in a wheel they lie inside the package. Both places are looked at.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def resource_path(folder: str, name: str = "") -> Path:
    """The path of `name` in `spec` or `templates`; FileNotFoundError when the installation lacks it."""
    places = [root / folder / name for root in (_PACKAGE, _PACKAGE.parent)]
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(f"the installation of attncc is incomplete: no {folder}/{name}")


def spec_path(name: str = "") -> Path:
    """The path of a file or folder in `spec/`."""
    return resource_path("spec", name)


@cache
def spec_text(name: str) -> str:
    """The contents of a file in `spec/`."""
    return spec_path(name).read_text(encoding="utf-8")
