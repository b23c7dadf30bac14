"""A Perfetto (Chrome trace event) file: what every warp did, waited for, and copied, over emulator steps."""

from __future__ import annotations

import json


class Trace:
    """Collects slices; time is the number of warp instructions executed so far, shown as microseconds."""

    def __init__(self):
        self.events: list[dict] = []
        self.waiting: dict[int, tuple[int, str]] = {}
        self.named: set[tuple[int, int]] = set()

    def _track(self, w) -> dict:
        key = (w.cta.linear, w.id)
        if key not in self.named:
            self.named.add(key)
            self.events.append(
                {"ph": "M", "name": "process_name", "pid": key[0], "args": {"name": f"cta {w.cta.index}"}}
            )
            self.events.append(
                {"ph": "M", "name": "thread_name", "pid": key[0], "tid": key[1], "args": {"name": f"warp {w.id}"}}
            )
        return {"pid": key[0], "tid": key[1]}

    def ran(self, w, now: int, steps: int) -> None:
        """A slice in which the warp executed `steps` instructions."""
        self._end_wait(w, now - steps)
        name = w.prog.source_of(w.pc)[1] or "run"
        self.events.append(
            {"ph": "X", "name": name, "cat": "run", "ts": now - steps, "dur": max(steps, 1), **self._track(w)}
        )

    def blocked(self, w, now: int) -> None:
        """The warp waits from now on."""
        if w.gid not in self.waiting and w.wait is not None:
            self.waiting[w.gid] = (now, f"wait {w.wait.kind}: {w.wait.text}")

    def _end_wait(self, w, now: int) -> None:
        if w.gid in self.waiting:
            start, name = self.waiting.pop(w.gid)
            self.events.append(
                {"ph": "X", "name": name, "cat": "wait", "ts": start, "dur": max(now - start, 1), **self._track(w)}
            )

    def operation(self, operation, now: int) -> None:
        """An asynchronous operation from issue to completion, as an async event on its CTA."""
        base = {
            "cat": "async",
            "name": operation.name,
            "id": operation.number,
            "pid": operation.warp.cta.linear,
            "tid": 1000 + operation.warp.id,
        }
        self.events.append({"ph": "b", "ts": operation.started, **base})
        self.events.append({"ph": "e", "ts": now, **base})

    def write(self, path: str) -> None:
        """Write the JSON file."""
        with open(path, "w", encoding="utf-8") as out:
            json.dump({"traceEvents": self.events, "displayTimeUnit": "ns"}, out)
