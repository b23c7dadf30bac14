"""The Python files of the package and what they import, for the architecture tests."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "attncc"


@cache
def python_files(folder: Path = PACKAGE) -> tuple[Path, ...]:
    return tuple(sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name(path: Path) -> str:
    """`attncc/ir/expr.py`, as messages show it."""
    return path.relative_to(ROOT).as_posix()


def module(path: Path) -> str:
    """`attncc.ir.expr` for attncc/ir/expr.py, `attncc.ir` for attncc/ir/__init__.py."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, dotted module) of every import in the file, those inside functions too; `if TYPE_CHECKING:` is left out."""
    found: list[tuple[int, str]] = []

    def visit(node: ast.AST) -> None:
        if is_type_checking(node):
            return
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.extend((node.lineno, target) for target in _targets(node))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree(path))
    return found


def _targets(node: ast.ImportFrom) -> list[str]:
    """`from attncc.ir import expr` imports attncc.ir.expr when that is a module, attncc.ir otherwise."""
    base = PACKAGE.parent.joinpath(*node.module.split("."))
    subs = [f"{node.module}.{a.name}" for a in node.names if _is_module(base / a.name)]
    return subs + ([node.module] if len(subs) < len(node.names) else [])


def _is_module(stem: Path) -> bool:
    return stem.with_suffix(".py").is_file() or stem.is_dir()
