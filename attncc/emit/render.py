"""Prints a View through the templates of its target.

A target has a folder of templates: `kernel.py.jinja`, the skeleton, and a macro for each kind of Step in the others (`ops.py.jinja`). A
macro that a target lacks is taken from `common/ops.py.jinja`. A macro takes one argument, the Step; `block(steps)` inside a
template prints nested steps. Undefined names in a template are errors.
"""

from __future__ import annotations

from pathlib import Path
from types import CodeType

import jinja2

import attncc
from attncc.emit.view import Step, View
from attncc.targets import TARGETS

_PACKAGE = Path(attncc.__file__).resolve().parent
TEMPLATE_FOLDERS = (_PACKAGE / "templates", _PACKAGE.parent / "templates")
"""Inside an installed wheel, and in a checkout."""
COMMON = "common/ops.py.jinja"
SKELETON = "kernel.py.jinja"


def render(view: View) -> str:
    """The generated file's text."""
    printer = _Printer(view)
    return printer.template(f"{folder_of(view)}/{SKELETON}").render(view=view)


def folder_of(view: View) -> str:
    """The template folder of the view's target."""
    return TARGETS[view.schedule.target].templates


class _CompiledOnce(jinja2.BytecodeCache):
    """The templates' code, compiled once in a process: a view needs an environment of its own, not templates of its own."""

    def __init__(self):
        self.codes: dict[tuple[str, str], CodeType] = {}

    def load_bytecode(self, bucket) -> None:
        bucket.code = self.codes.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket) -> None:
        self.codes[bucket.key, bucket.checksum] = bucket.code


_COMPILED = _CompiledOnce()


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        bytecode_cache=_COMPILED,
        loader=jinja2.FileSystemLoader([str(f) for f in TEMPLATE_FOLDERS]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        line_comment_prefix="##",
    )


class _Printer:
    """The macros of one target, and the functions that templates call."""

    def __init__(self, view: View):
        self.environment = _environment()
        self.environment.globals.update(view=view, block=self.block, step=self.step, pad=pad)
        folder = folder_of(view)
        own = [name for name in self.environment.list_templates() if name.startswith(f"{folder}/") and name != f"{folder}/{SKELETON}"]
        self.modules = tuple(self.template(name).make_module() for name in (*own, COMMON))

    def template(self, name: str) -> jinja2.Template:
        return self.environment.get_template(name)

    def step(self, step: Step) -> str:
        """One operation's text; KeyError when no template has its macro."""
        for module in self.modules:
            macro = getattr(module, step.macro, None)
            if macro is not None:
                return str(macro(step)).strip("\n")
        raise KeyError(f"no template prints {step.macro!r}")

    def block(self, steps, width: int = 0) -> str:
        """The steps one after the other, indented by `width` spaces; `pass` for none."""
        text = "\n".join(self.step(s) for s in steps)
        return pad(text or "pass", width)


def pad(text: str, width: int) -> str:
    """`text` with every line after an indent of `width` spaces, empty lines left empty."""
    return "\n".join(" " * width + line if line.strip() else "" for line in str(text).split("\n"))
