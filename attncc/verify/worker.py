"""A worker process: reads jobs as lines of JSON, answers each with a line of JSON. A crash or a hang loses only this process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def serve() -> None:
    """Answers until the input ends. The answers have the original stdout to themselves; whatever else prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")


def answer(job: dict) -> dict:
    """The outcome of one job: {"ok": true, "rows": [...]}, {"ok": false, "error": ...} or {"refused": reason}."""
    from attncc.diagnostics import AttnError

    try:
        kernel = make(job)
        if job["verb"] == "compile":
            kernel.build(job["target"], job["chip"])
            return {"ok": True, "rows": []}
        return {"ok": True, "rows": [run(kernel, shape, i % 2 == 1, i > 0 and i % 3 == 0) for i, shape in enumerate(job["shapes"])]}
    except AttnError as error:
        return {"ok": False, "refused": error.diagnostics[0].message}
    except Exception as error:  # noqa: BLE001 - the parent reports it and goes on
        return {"ok": False, "error": f"{type(error).__name__}: {plain(str(error))}"}


def make(job: dict):
    from attncc import entry

    return entry.compile(Path(job["file"]), target=job["target"], **job["parameters"])


def run(kernel, shape, strided: bool, steep: bool) -> dict:
    """One shape on the GPU: errors, what is allowed, and the time of a call."""
    from attncc.explain import Shape
    from attncc.measure import measure

    result = measure(kernel, Shape(*shape), seed=sum(shape), device="cuda", strided=strided, steep=steep)
    return {
        "shape": list(shape),
        "strided": strided,
        "steep": steep,
        "error": result.error,
        "allowed": result.allowed,
        "lse_error": result.lse_error,
        "bad": result.bad,
        "ok": result.ok,
        "us": 1e6 * result.seconds,
    }


def plain(text: str) -> str:
    """A message without terminal colours, its lines in one."""
    import re

    return " / ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split("\n"))[:600]


if __name__ == "__main__":
    serve()
