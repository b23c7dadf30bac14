"""What is verified: every spec with several head groups and shapes on every target."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from attncc.diagnostics import fail

GROUPS = {1: (2, 2), 4: (4, 1), 7: (7, 1)}
"""Query heads to a key/value head -> (query heads, key/value heads)."""
HEAD_PARAMETERS = ("q_heads", "kv_heads")
SHAPES = ((2, 1, 129), (2, 127, 257), (3, 257, 129), (2, 257, 257), (1, 1000, 1000), (2, 128, 1))
"""(batch, queries, keys): ragged, and with fewer, as many and more queries than keys."""
LONG = (1, 4500, 4500)
"""Long enough for the windows that models use."""


@dataclass(frozen=True)
class Job:
    """One kernel: a spec with parameters on a target. `group` is 0 where the spec fixes its heads."""

    file: str
    parameters: tuple[tuple[str, object], ...]
    target: str
    group: int
    shapes: tuple[tuple[int, int, int], ...] = ()
    chip: str | None = None

    @property
    def title(self) -> str:
        return f"{Path(self.file).stem} {self.target}" + (f" group {self.group}" if self.group else "")

    def message(self, verb: str) -> dict:
        """The job as a worker reads it."""
        return {**asdict(self), "parameters": dict(self.parameters), "verb": verb}


def spec_files(paths: Iterable[str]) -> list[str]:
    """The `.attn` files among `paths` and in the directories among them. E605 when there are none."""
    found = []
    for path in map(Path, paths):
        found += sorted(path.glob("*.attn")) if path.is_dir() else [path]
    missing = [str(p) for p in found if not p.is_file()]
    if missing or not found:
        raise fail(
            "E605", f"there is no spec at {', '.join(missing or paths)}", hint="give .attn files or directories of them"
        )
    return [str(p) for p in found]


def parameters_of(file: str) -> tuple[str, ...]:
    """Names of the compile-time parameters of the first attention in a file."""
    from attncc.lower import read
    from attncc.lower.tree_to_attention import select
    from attncc.syntax import parse

    text, name = read(Path(file))
    return tuple(p.name for p in select(parse(text, name), None).parameters)


def jobs(files: list[str], targets: list[str], quick: bool, chips: dict[str, str]) -> list[Job]:
    """Every spec on every target with groups 1, 4 and 7 (`quick`: one of them, in turn), on all shapes.

    `chips` says for each target what to compile for.
    """
    made = []
    for number, file in enumerate(files):
        groups = {0: ()} if not set(HEAD_PARAMETERS) <= set(parameters_of(file)) else GROUPS
        if quick and groups is GROUPS:
            chosen = list(GROUPS)[number % len(GROUPS)]
            groups = {chosen: GROUPS[chosen]}
        for target in targets:
            for i, (group, heads) in enumerate(groups.items()):
                shapes = SHAPES if i or quick else (*SHAPES, LONG)
                made.append(Job(file, tuple(zip(HEAD_PARAMETERS, heads)), target, group, shapes, chips[target]))
    return made
