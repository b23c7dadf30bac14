"""Size budgets: what keeps a codebase one that people like to open."""

import ast

import pytest

from tests.architecture.sources import PACKAGE, ROOT, name, python_files, tree

FUNCTION_LINES, DEVICE_FUNCTION_LINES = 80, 120
FILE_LINES, PASS_LINES, TEMPLATE_LINES = 600, 300, 450


def functions(path):
    return [n for n in ast.walk(tree(path)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def is_device(path) -> bool:
    return name(path).startswith("attncc/device/")


@pytest.mark.parametrize("path", python_files(), ids=name)
def test_functions_fit_on_a_screen(path):
    limit = DEVICE_FUNCTION_LINES if is_device(path) else FUNCTION_LINES
    long = [
        f"{name(path)}:{f.lineno} {f.name} has {f.end_lineno - f.lineno + 1} lines"
        for f in functions(path)
        if f.end_lineno - f.lineno + 1 > limit
    ]
    assert not long, (
        "\n".join(long)
        + f"\nThe limit is {limit} (aim for 30): split by step, give each step a name that says what it makes."
    )


@pytest.mark.parametrize("path", python_files(), ids=name)
def test_files_have_one_subject(path):
    count = len(path.read_text().splitlines())
    in_pass = path.parent.parent == PACKAGE / "passes"
    limit = PASS_LINES if in_pass else FILE_LINES
    assert count <= limit, f"{name(path)} has {count} lines, the limit is {limit}. " + (
        "One pass is one file with one function: two passes may be hiding in it." if in_pass else "Split it by subject."
    )


def test_templates_are_skeletons():
    long = [
        f"{p.relative_to(ROOT)} has {len(p.read_text().splitlines())} lines"
        for p in sorted((ROOT / "templates").rglob("*.jinja"))
        if len(p.read_text().splitlines()) > TEMPLATE_LINES
    ]
    assert not long, (
        "\n".join(long) + f"\nThe limit is {TEMPLATE_LINES}: move device code to attncc/device, decisions to passes."
    )
