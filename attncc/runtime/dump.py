"""One directory with everything the compiler made, in files whose names sort in pipeline order."""

from __future__ import annotations

from pathlib import Path

from attncc.diagnostics import fail
from attncc.runtime import files
from attncc.stages import LEVELS, Stages


def contents(stages: Stages) -> dict[str, str]:
    """File name -> text: the spec and its tree, each level after each pass that changed it, the generated kernel."""
    found = {f"0-{name}": text for name, text in spec_texts(stages).items()}
    for number, (level, title) in enumerate(LEVELS.items(), 1):
        for i, step in enumerate(stages.level(level)):
            if step.changed:
                found[f"{number}-{title}-{i:02d}-{step.name}.txt"] = step.text
    found["4-kernel.py"] = stages.source
    return found


def spec_texts(stages: Stages) -> dict[str, str]:
    """The `.attn` text and its syntax tree; nothing for an attention that was not made from a text."""
    source = next((span.source for _, span in stages.attention.spans), None)
    if source is None:
        return {}
    from attncc.syntax import parse

    return {"spec.attn": source.text, "tree.txt": tree_text(parse(source.text, source.name)) + "\n"}


def tree_text(node, indent: str = "") -> str:
    """A syntax tree, one node a line, without positions."""
    import dataclasses

    if isinstance(node, (tuple, list)):
        return "\n".join(tree_text(n, indent) for n in node)
    if not dataclasses.is_dataclass(node):
        return f"{indent}{node!r}"
    plain, nested = [], []
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if field.name in ("span", "source") or value is None or value == ():
            continue
        is_nested = dataclasses.is_dataclass(value) or (
            isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value))
        )
        (nested if is_nested else plain).append((field.name, value))
    head = f"{indent}{type(node).__name__}" + "".join(f" {n}={v!r}" for n, v in plain)
    return "\n".join([head, *(f"{indent}  {n}:\n{tree_text(v, indent + '    ')}" for n, v in nested)])


def dump(stages: Stages, folder: Path) -> list[Path]:
    """Writes `contents` to `folder`, which is made when it does not exist; the paths. E603 when it cannot be written."""
    made = contents(stages)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in made.items():
            files.write(folder / name, text.encode())
    except OSError as error:
        hint = "give a directory that can be made and written"
        raise fail("E603", f"{str(folder)!r} cannot be written: {error.strerror}", argument="folder", hint=hint) from None
    return [folder / name for name in made]
