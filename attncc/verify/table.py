"""The outcome of a verification as rows and as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attncc.verify.jobs import Job

HEADER = f"{'spec':<24} {'target':<8} {'cases':>5} {'worst error':>12} {'allowed':>9} {'of it':>6} {'lse error':>10}  outcome"


def outcome(job: Job, answer: dict) -> dict:
    """What a job came to, as it is written to JSON."""
    base = {"spec": Path(job.file).stem, "target": job.target, "group": job.group, "chip": job.chip}
    return {**base, **answer}


def lines(rows: Sequence[dict]) -> list[str]:
    """One line for each spec and target: its worst case over groups and shapes."""
    keys = list(dict.fromkeys((r["spec"], r["target"]) for r in rows))
    return [HEADER, *(_line(key, [r for r in rows if (r["spec"], r["target"]) == key]) for key in keys)]


def _line(key: tuple[str, str], rows: list[dict]) -> str:
    cases = [c for r in rows for c in r.get("rows", ())]
    said = next((_why(r) for r in rows if _why(r)), "")
    head = f"{key[0]:<24} {key[1]:<8} {len(cases):>5}"
    if not cases:
        return f"{head} {'-':>12} {'-':>9} {'-':>6} {'-':>10}  {said}"
    worst = max(cases, key=lambda c: c["error"] / c["allowed"])
    share = f"{100 * worst['error'] / worst['allowed']:.0f} %"
    lse = max(c["lse_error"] for c in cases)
    return f"{head} {worst['error']:>12.2e} {worst['allowed']:>9.2e} {share:>6} {lse:>10.1e}  {said or 'ok'}"


def _why(row: dict) -> str:
    """What is wrong with one job; empty when nothing is."""
    group = f"group {row['group']}: " if row["group"] else ""
    if "refused" in row:
        return f"refused: {row['refused']}"
    if "error" in row:
        return f"FAILED {group}{row['error']}"
    bad = [c for c in row.get("rows", ()) if not c["ok"]]
    if not bad:
        return ""
    c = bad[0]
    what = c["bad"] or f"error {c['error']:.2e}, allowed {c['allowed']:.2e}, lse error {c['lse_error']:.1e}"
    return f"WRONG in {len(bad)} of {len(row['rows'])} shapes; {group}{'x'.join(map(str, c['shape']))}: {what}"


def counts(rows: Sequence[dict]) -> dict[str, int]:
    """How many kernels were right, wrong, failed, refused."""
    found = {"right": 0, "wrong": 0, "failed": 0, "refused": 0}
    for row in rows:
        kind = "refused" if "refused" in row else "failed" if "error" in row else "right" if not _why(row) else "wrong"
        found[kind] += 1
    return found


def markdown(rows: Sequence[dict], facts: dict[str, str]) -> str:
    """The rows as a page: where and when they were made, what they say, one line for each spec and target."""
    found = counts(rows)
    head = ["spec", "target", "cases", "worst error", "allowed", "lse error", "outcome"]
    lines = [
        "# Kernels beside the float64 reference",
        "",
        "Made by `attncc verify`; what is compared is in [testing.md](testing.md). Errors are the worst over head groups and shapes.",
        "",
        ", ".join(f"{name} {value}" for name, value in facts.items()) + ".",
        "",
        ", ".join(f"{n} {kind}" for kind, n in found.items()) + f" of {len(rows)} kernels.",
        "",
        *("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head))),
    ]
    for key in dict.fromkeys((r["spec"], r["target"]) for r in rows):
        mine = [r for r in rows if (r["spec"], r["target"]) == key]
        lines.append("| " + " | ".join([*key, *_cells(mine)]) + " |")
    return "\n".join(lines) + "\n"


def _cells(rows: list[dict]) -> list[str]:
    cases = [c for r in rows for c in r.get("rows", ())]
    said = next((_why(r) for r in rows if _why(r)), "ok").replace("|", "/")
    if not cases:
        return ["0", "", "", "", said]
    worst = max(cases, key=lambda c: c["error"] / c["allowed"])
    lse = max(c["lse_error"] for c in cases)
    return [str(len(cases)), f"{worst['error']:.1e}", f"{worst['allowed']:.1e}", f"{lse:.0e}", said]
