"""Runs a command line inside the process."""

from dataclasses import dataclass

import pytest

from attncc import cli

SPEC = """attention little(window: int = 8) {
    heads q = 2, kv = 1
    dim 64
    dtype bf16
    mask causal and sliding_window(keys = window)
}
"""


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


@pytest.fixture
def attncc(capfd, tmp_path, monkeypatch):
    """`attncc("check", "x.attn")` in an empty folder that holds `little.attn`; never a traceback."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "little.attn").write_text(SPEC)

    def call(*arguments) -> Result:
        status = cli.run([str(a) for a in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return Result(status, out, err)

    return call
