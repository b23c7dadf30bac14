"""What several commands share: options, parameters, progress, output files."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from attncc.diagnostics import fail
from attncc.runtime import files


def spec_options(function):
    """The spec to work on: FILE, `-p name=value`, `--attention NAME`."""
    return click.argument("file", type=str)(spec_choices(function))


def spec_choices(function):
    """How the spec is to be read: `-p name=value`, `--attention NAME`."""
    function = click.option("--attention", metavar="NAME", help="which attention, when the file holds several")(
        function
    )
    return click.option(
        "-p",
        "--param",
        "parameters",
        multiple=True,
        metavar="NAME=VALUE",
        help="a compile-time parameter; may be repeated",
    )(function)


def target_option(function):
    """`--target NAME`."""
    return click.option(
        "--target", metavar="NAME", help="the target (default: the GPU's, or the best one without a GPU)"
    )(function)


def seed_option(what: str = "of the generated data"):
    """`--seed N`, a number that torch's generators take."""
    return click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help=what)


def shape_option(default: str | None = None):
    """`--shape BxQxK`, given to the command as an explain.Shape or None."""
    return click.option(
        "--shape",
        metavar="BATCHxQxKV",
        default=default,
        callback=_parse_shape,
        help="sizes of the call, for example 2x4096x4096",
    )


def _parse_shape(ctx, option, value):
    if value is None:
        return None
    from attncc.explain import Shape

    try:
        return Shape.parse(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not of the form batch x queries x keys, for example 2x4096x4096"
        ) from None


def parse_parameters(given: tuple[str, ...]) -> dict[str, object]:
    """`("window=1024", "cap=50.0")` -> {"window": 1024, "cap": 50.0}; E602 for anything that is not name=value."""
    found: dict[str, object] = {}
    for item in given:
        name, sign, value = item.partition("=")
        if not sign or not name.strip().isidentifier():
            raise fail(
                "E602", f"the parameter {item!r} is not of the form name=value", hint="for example -p window=1024"
            )
        if name.strip() in ("target", "attention"):
            raise fail("E602", f"`{name.strip()}` is an option, not a parameter of a spec", hint=f"write --{name.strip()} {value.strip()}")
        if name.strip() in found:
            raise fail("E602", f"the parameter `{name.strip()}` is given twice", hint="keep one of the values")
        found[name.strip()] = _value(value.strip(), item)
    return found


def _value(text: str, item: str):
    words = {"true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (lambda t: int(t, 0), float):
        with contextlib.suppress(ValueError):
            number = kind(text)
            if number in (math.inf, -math.inf) and "inf" not in text.lower():
                raise fail("E602", f"the value in {item!r} is too large for a float", hint="write inf for infinity")
            return number
    raise fail("E602", f"the value in {item!r} is neither a number nor true or false")


def load_spec(file: str, parameters: tuple[str, ...], attention: str | None):
    """L1 of the spec that the options name. A file name is always a path here, never a text."""
    from attncc.lower import load

    return load(Path(file), attention=attention, **parse_parameters(parameters))


def make_kernel(file: str, parameters: tuple[str, ...], attention: str | None, target: str | None):
    """attncc.compile for the options of a command."""
    from attncc import entry

    return entry.compile(Path(file), target=target, attention=attention, **parse_parameters(parameters))


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Shows on stderr that something takes time: a spinner on a terminal, one line elsewhere."""
    if not sys.stderr.isatty():
        print(f"{title} ...", file=sys.stderr, flush=True)
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(title):
        yield


def output_file(path: str, suffix: str, inputs: tuple[str, ...] = ()) -> Path:
    """`path` as a file to write, checked before the work begins: its folder exists, and it is neither a folder, nor of another
    kind than `suffix`, nor one of `inputs`. E603."""
    out = Path(path)
    if out.suffix != suffix:
        raise fail(
            "E603",
            f"the output {path!r} must end in {suffix}",
            hint="so that no file of another kind is overwritten by mistake",
        )
    if out.is_dir():
        raise fail("E603", f"the output {path!r} is a directory")
    if not out.parent.is_dir():
        raise fail("E603", f"the output {path!r} cannot be written: there is no directory {str(out.parent)!r}")
    if any(Path(i).exists() and out.exists() and out.samefile(i) for i in inputs):
        raise fail("E603", f"the output {path!r} is also an input")
    return out


def output_folder(path: str) -> Path:
    """`path` as a directory to write to, made when it does not exist. E603."""
    out = Path(path)
    if out.exists() and not out.is_dir():
        raise fail("E603", f"the output {path!r} is a file, a directory was expected")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise fail("E603", f"the directory {path!r} cannot be made: {error.strerror}") from None
    return out


def write(path: Path, data: str | bytes) -> None:
    """Writes an output whole or not at all; E603 with the reason when it cannot be."""
    try:
        files.write(path, data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise fail("E603", f"{str(path)!r} cannot be written: {error.strerror}") from None
