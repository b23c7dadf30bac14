"""Templates print; they decide nothing."""

import re

import pytest

from attncc.emit.render import TEMPLATE_FOLDERS

TEMPLATES = sorted(p for folder in TEMPLATE_FOLDERS if folder.is_dir() for p in folder.rglob("*.jinja"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_a_template_holds_no_condition(path):
    text = path.read_text()
    assert not re.search(r"{%-?\s*(if|elif|set)\b", text), "a condition on L3 belongs in emit/view.py or in a pass"
    assert not re.search(r"{{[^}]*\bif\b[^}]*}}", text)
    assert len(text.splitlines()) <= 300
