"""What happens when attncc itself fails: the details go to a file, the user gets one line with its path."""

from __future__ import annotations

import platform
import re
import tempfile
import traceback
from importlib import metadata
from pathlib import Path

PACKAGES = ("attncc", "torch", "nvidia-cutlass-dsl", "apache-tvm-ffi", "lark", "jinja2")


def report(error: Exception, arguments: list[str]) -> str:
    """Writes the bundle; the message for the user: what failed and where the details lie."""
    headline = f"internal error: {type(error).__name__}: {_first_line(error)}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="attncc-error-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(contents(error, arguments))
    except OSError as problem:
        return f"{headline}\n  note: the details could not be written: {problem.strerror}"
    return f"{headline}\n  note: this is a mistake in attncc, not in what you wrote; the details are in {file.name}"


def contents(error: Exception, arguments: list[str]) -> str:
    """The bundle: command line, versions, traceback and the texts of the specs that were named."""
    parts = [
        f"attncc {' '.join(arguments)}",
        f"python {platform.python_version()} on {platform.platform()}",
        *(f"{name} {version(name)}" for name in PACKAGES),
        "",
        "".join(traceback.format_exception(error)),
    ]
    for argument in arguments:
        if argument.endswith(".attn") and Path(argument).is_file():
            parts += [f"----- {argument}", Path(argument).read_text(encoding="utf-8", errors="replace")]
    return "\n".join(parts)


def version(name: str) -> str:
    """The version of an installed package. That of attncc is its source's: a checkout need not be installed."""
    if name == "attncc":
        import attncc

        return attncc.__version__
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _first_line(error: Exception) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return text.splitlines()[0][:200] if text else "(no message)"
