"""The definitions of `spec/prelude/`, read once."""

from __future__ import annotations

from functools import lru_cache

from attncc.syntax import parse, tree
from attncc.syntax.resources import spec_path


@lru_cache(maxsize=1)
def prelude() -> dict[str, tree.Definition]:
    """Name to definition, over all files of the prelude."""
    found: dict[str, tree.Definition] = {}
    for path in sorted(spec_path("prelude").glob("*.attn")):
        for definition in parse(path.read_text(encoding="utf-8"), f"prelude/{path.name}").definitions:
            if definition.name in found:
                raise ValueError(f"{definition.name} is defined twice in the prelude")
            found[definition.name] = definition
    return found
