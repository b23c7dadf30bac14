"""Imports point one way, torch and cutlass stay behind the runtime, and chips are named where chips are described."""

import ast
import re

from tests.architecture.sources import PACKAGE, ROOT, imports, module, name, python_files, tree

LAYERS = (
    ("attncc.diagnostics", "attncc.config"),
    ("attncc.syntax",),
    ("attncc.ir",),
    ("attncc.formats",),
    ("attncc.targets",),
    ("attncc.lower",),
    ("attncc.passes",),
    ("attncc.pipeline", "attncc.stages"),
    ("attncc.interp",),
    ("attncc.accuracy",),
    ("attncc.explain",),
    ("attncc.draw",),
    ("attncc.emit",),
    ("attncc.device",),
    ("attncc.emulator",),
    ("attncc.runtime",),
    ("attncc.driver",),
    ("attncc.entry",),
    ("attncc",),
    ("attncc.measure",),
    ("attncc.fuzz", "attncc.bench", "attncc.verify"),
    ("attncc.tune",),
    ("attncc.commands",),
    ("attncc.cli",),
    ("attncc.__main__",),
)
"""From the bottom up. A module imports its own package and packages of lower rows, not those beside it or above."""

HEAVY = ("torch", "cutlass", "tvm_ffi", "cuda")
HEAVY_ALLOWED = (
    "attncc.explain",
    "attncc.draw",
    "attncc.interp", "attncc.accuracy", "attncc.device", "attncc.runtime", "attncc.emulator", "attncc.driver", "attncc.entry", "attncc.fuzz", "attncc.bench", "attncc.measure", "attncc.tune",
    "attncc.commands",
)  # fmt: skip
CHIPS = re.compile(r"sm_?\d{2,3}a?\b|hopper|ampere|blackwell|\bada\b|wgmma|tcgen05|\b(?:h|a|b)[1-9]00\b", re.IGNORECASE)
CHIPS_ALLOWED = ("attncc/targets/", "attncc/pipeline.py", "attncc/device/", "attncc/emulator/")


def package(dotted: str) -> str | None:
    """The row entry a module belongs to: the longest one that is a prefix of it."""
    entries = [e for row in LAYERS for e in row]
    return max((e for e in entries if dotted == e or dotted.startswith(e + ".")), key=len, default=None)


def level(entry: str) -> int:
    return next(i for i, row in enumerate(LAYERS) if entry in row)


def test_imports_point_one_way():
    wrong = []
    for path in python_files():
        here = package(module(path))
        for line, target in imports(path):
            there = package(target) if target.startswith("attncc.") else None
            if there not in (None, here) and level(there) >= level(here):
                wrong.append(f"{name(path)}:{line} imports {target}")
    assert not wrong, (
        "\n".join(wrong)
        + "\nA package may import only what stands below it in LAYERS. Move the function down to the layer "
        "that both need, or pass the value in as an argument."
    )


def test_nothing_before_the_runtime_imports_torch_or_cutlass():
    wrong = [
        f"{name(path)}:{line} imports {target}"
        for path in python_files()
        if package(module(path)) not in HEAVY_ALLOWED
        for line, target in imports(path)
        if target.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong) + "\nThe compiler up to the generated text needs neither torch nor cutlass."


def words(path) -> list[tuple[int, str]]:
    """(line, text) of each identifier and string of the file that is not a docstring."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found.append((node.lineno, node.value))
        for field in ("id", "attr", "arg", "name"):
            if isinstance(getattr(node, field, None), str):
                found.append((getattr(node, "lineno", 0), getattr(node, field)))
    return found


def test_chips_are_named_only_where_they_are_described():
    wrong = [
        f"{name(path)}:{line}: {text[:60]!r}"
        for path in python_files()
        if not name(path).startswith(CHIPS_ALLOWED)
        for line, text in words(path)
        if CHIPS.search(text)
    ]
    assert not wrong, (
        "\n".join(wrong)
        + "\nAsk the target for a capability (attncc/targets), or put the choice in attncc/pipeline.py: a new "
        "target must not need an edit here."
    )


def test_only_config_reads_the_environment():
    wrong = [
        f"{name(p)}:{node.lineno}"
        for p in python_files()
        if name(p) != "attncc/config.py"
        for node in ast.walk(tree(p))
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"))
    ]
    assert not wrong, "\n".join(wrong) + "\nAdd a setting to attncc/config.py and read it there."


def test_generated_code_is_the_only_code_executed_from_text():
    allowed = {"attncc/runtime/load.py"}
    wrong = [
        f"{name(p)}:{node.lineno}"
        for p in python_files()
        if name(p) not in allowed
        for node in ast.walk(tree(p))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("exec", "eval")
    ]
    assert not wrong, (
        "\n".join(wrong) + "\nOnly attncc/runtime/load.py turns text into code, and only text that emit wrote."
    )


def test_templates_hold_no_decisions():
    """An `if` in a template may ask whether something is there, never what the hardware or the algorithm is."""
    decision = re.compile(r"\{%-?\s*(?:el)?if\b([^%]*)%\}")
    wrong = []
    for path in sorted((ROOT / "templates").rglob("*.jinja")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for condition in decision.findall(line):
                if re.search(r"[<>=]=?|\b(?:head_dim|dim|stages|tile|dtype|target|arch)\b", condition):
                    wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong) + "\nThat decision belongs in a pass; L3 or the view carries its result."


def test_every_package_has_a_layer():
    missing = {
        module(p) for p in python_files() if p.parent.parent == PACKAGE.parent and package(module(p)) == "attncc"
    } - {"attncc"}
    folders = {f"attncc.{p.name}" for p in PACKAGE.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    missing |= {f for f in folders if package(f) == "attncc"}
    assert not missing, f"{sorted(missing)} stand in no row of LAYERS: say what they may import."
