"""Size budgets: what keeps a codebase one that people like to open."""

import ast

from tests.architecture.sources import PACKAGE, ROOT, name, python_files, tree

FUNCTION_LINES, DEVICE_FUNCTION_LINES = 80, 120
FILE_LINES, PASS_LINES, TEMPLATE_LINES = 600, 300, 450


def functions(path):
    return [n for n in ast.walk(tree(path)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def is_device(path) -> bool:
    return name(path).startswith("attncc/device/")


def test_functions_fit_on_a_screen():
    long = [
        f"{name(path)}:{f.lineno} {f.name} has {f.end_lineno - f.lineno + 1} lines"
        for path in python_files()
        for f in functions(path)
        if f.end_lineno - f.lineno + 1 > (DEVICE_FUNCTION_LINES if is_device(path) else FUNCTION_LINES)
    ]
    assert not long, (
        "\n".join(long)
        + f"\nThe limit is {FUNCTION_LINES}, {DEVICE_FUNCTION_LINES} in attncc/device (aim for 30): split by step, give each step a name that says what it makes."
    )


def test_files_have_one_subject():
    wrong = []
    for path in python_files():
        count, in_pass = len(path.read_text().splitlines()), path.parent.parent == PACKAGE / "passes"
        limit = PASS_LINES if in_pass else FILE_LINES
        advice = "two passes may be hiding in it" if in_pass else "split it by subject"
        if count > limit:
            wrong.append(f"{name(path)} has {count} lines, the limit is {limit}: {advice}")
    assert not wrong, "\n".join(wrong)


def test_templates_are_skeletons():
    long = [
        f"{p.relative_to(ROOT)} has {len(p.read_text().splitlines())} lines"
        for p in sorted((ROOT / "templates").rglob("*.jinja"))
        if len(p.read_text().splitlines()) > TEMPLATE_LINES
    ]
    assert not long, (
        "\n".join(long) + f"\nThe limit is {TEMPLATE_LINES}: move device code to attncc/device, decisions to passes."
    )
