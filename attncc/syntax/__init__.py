"""L0: reading `.attn` texts."""

from attncc.syntax.parser import parse

__all__ = ["parse"]
