"""How a diagnostic is rendered, and where the shipped files are found."""

import pickle

import pytest

from attncc.diagnostics import AttnError, Diagnostic, Source, Span, did_you_mean, fail, render
from attncc.syntax import resources

SOURCE = Source("a.attn", "first\n\tsecond line\r\nthird \x1b[2J\n" + "x" * 400)


def test_a_diagnostic_in_full():
    d = Diagnostic("E999", "it is wrong", Span(SOURCE, 2, 2, 2, 8), notes=("one", "two"), hint="do better")
    assert render(d) == (
        "error[E999]: it is wrong\n"
        " --> a.attn:2:2\n"
        "  |\n"
        "2 | \tsecond line\n"
        "  | \t^^^^^^\n"
        "  note: one\n"
        "  note: two\n"
        "  help: do better"
    )


def test_an_argument_takes_the_place_of_a_line():
    assert render(Diagnostic("E301", "missing", argument="doc")) == "error[E301]: missing\n  --> argument `doc`"
    assert render(Diagnostic("E003", "no file")) == "error[E003]: no file"


@pytest.mark.parametrize(
    "span, shown, carets",
    [
        (Span(SOURCE, 1, 3, 2, 4), "first", "  ^^^"),
        (Span(SOURCE, 3, 1, 3, 6), "third \ufffd[2J", "^^^^^"),
        (Span(SOURCE, 1, 6, 1, 6), "first", "     ^"),
        (Span(SOURCE, 9, 1, 9, 2), "", "^"),
        (Span(SOURCE, 4, 1, 4, 401), "x" * 160, "^" * 160),
        (Span(SOURCE, 4, 300, 4, 301), "x" * 160, " " * 80 + "^"),
    ],
    ids=["several lines", "control characters", "end of line", "past the end", "long", "long, far right"],
)
def test_excerpts(span, shown, carets):
    lines = render(Diagnostic("E1", "m", span)).splitlines()
    assert lines[-2].split(" | ", 1)[1] == shown and lines[-1].split(" | ", 1)[1] == carets


def test_errors_hold_several_diagnostics_and_travel_between_processes():
    error = AttnError(Diagnostic("E1", "one"), Diagnostic("E2", "two", Span(SOURCE, 1, 1, 1, 2)))
    copy = pickle.loads(pickle.dumps(error))
    assert (
        copy.diagnostics == error.diagnostics and str(copy) == str(error) and "E1" in str(error) and "E2" in str(error)
    )
    assert fail("E3", "three", hint="x").diagnostics[0].hint == "x"


def test_suggestions():
    assert did_you_mean("casual", ["causal", "alibi"]) == "did you mean `causal`?"
    assert did_you_mean("zzzz", ["causal", "alibi"]) is None


def test_shipped_files_are_found_beside_or_inside_the_package(tmp_path, monkeypatch):
    assert resources.spec_path("attn.lark").is_file() and resources.spec_path("prelude").is_dir()
    package = tmp_path / "attncc"
    (package / "spec").mkdir(parents=True)
    (package / "spec" / "x.md").write_text("inside")
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert resources.spec_path("x.md").read_text() == "inside"
    (tmp_path / "templates").mkdir()
    assert resources.resource_path("templates") == tmp_path / "templates"
    with pytest.raises(FileNotFoundError, match="incomplete: no spec/nothing"):
        resources.spec_path("nothing")
