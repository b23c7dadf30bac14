"""From one level of the compiler to the next. One file per transition, named for both ends.

The parser and the lowering are imported when they are used: a kernel that an earlier process compiled needs neither.
"""

from __future__ import annotations

import os
from pathlib import Path

from attncc.diagnostics import MAX_TEXT, fail
from attncc.ir.attention import Attention

__all__ = ["load", "lower", "read"]


def read(path_or_text) -> tuple[str, str]:
    """(text, name for messages). A string that holds `{` or a newline is the text itself, anything else a path."""
    if isinstance(path_or_text, str) and ("{" in path_or_text or "\n" in path_or_text):
        return path_or_text, "<text>"
    way_out = "give the path of an .attn file, or a text that holds `attention name { ... }`"
    if isinstance(path_or_text, Path):
        way_out = "give the path of an .attn file"
    elif not isinstance(path_or_text, (str, os.PathLike)):
        raise fail("E003", f"a spec is a path or a text, found {type(path_or_text).__name__}", hint=way_out)
    elif isinstance(path_or_text, str) and not path_or_text.strip():
        raise fail("E003", "the spec is empty", hint=way_out)
    try:
        with Path(path_or_text).open("rb") as file:  # a device or a pipe may have no end
            data = file.read(4 * MAX_TEXT + 1)
    except (OSError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise fail("E003", f"cannot read {str(path_or_text)[:200]!r}: {reason}", hint=way_out) from None
    if len(data) > 4 * MAX_TEXT:
        raise fail("E003", f"{path_or_text} is longer than any text may be: the limit is {MAX_TEXT} characters")
    try:
        return data.decode("utf-8"), str(path_or_text)
    except UnicodeDecodeError as error:
        message = f"{path_or_text} is not UTF-8: byte {error.start} is {data[error.start]:#04x}"
        raise fail("E003", message, hint="save the file as UTF-8") from None


def load(path_or_text, /, *, attention: str | None = None, **parameters) -> Attention:
    """Parse and lower a text or a file; `attention` chooses by name when it holds several.

    `parameters` are values for compile-time parameters. Raises AttnError.
    """
    text, name = read(path_or_text)
    return load_text(text, name, attention, parameters)


def load_text(text: str, name: str, attention: str | None, parameters: dict[str, object]) -> Attention:
    """`load` for what `read` gave."""
    from attncc.lower.tree_to_attention import lower
    from attncc.syntax import parse

    return lower(parse(text, name), parameters, attention)


def __getattr__(name: str):
    if name == "lower":
        from attncc.lower.tree_to_attention import lower

        return lower
    raise AttributeError(f"module `attncc.lower` has no attribute `{name}`")
