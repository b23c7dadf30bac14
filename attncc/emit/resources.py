"""Finds the templates: in an installed package they are `attncc/templates`, in a checkout `templates/` beside `attncc/`."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def template_path(*parts: str) -> Path:
    """The path of a file or folder of the templates, for example `template_path("common", "header.jinja")`."""
    for root in (_PACKAGE / "templates", _PACKAGE.parent / "templates"):
        if root.is_dir():
            return root.joinpath(*parts)
    raise FileNotFoundError("the folder `templates` is missing from this installation of attncc")
