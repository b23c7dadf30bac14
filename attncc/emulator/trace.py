"""A Perfetto (Chrome trace event) file: what every warp did, waited for, and copied, over emulator steps."""

from __future__ import annotations

import json


class Trace:
    """Collects slices; time is the number of warp instructions executed so far, shown as microseconds.

    Each launch follows the one before, with a process for each of its CTAs. A warp's track is named for the asynchronous
    operations it issues: that is its role.
    """

    def __init__(self):
        self.events: list[dict] = []
        self.waiting: dict[int, tuple[int, str]] = {}
        self.roles: dict[tuple[int, int], dict[str, None]] = {}
        self.launch, self.base, self.first_pid, self.first_id = "", 0, 0, 0

    def begin(self, number: int, launches: int) -> None:
        """Launch `number` of so many starts."""
        self.launch = f"launch {number + 1}, " if launches > 1 else ""
        self.waiting.clear()

    def end(self, steps: int, operations: int) -> None:
        """The launch has ended after so many steps and asynchronous operations."""
        self.base, self.first_id = self.base + steps, self.first_id + operations
        self.first_pid = max((pid for pid, _ in self.roles), default=-1) + 1

    def _track(self, w) -> dict:
        key = (self.first_pid + w.cta.linear, w.id)
        if key not in self.roles:
            self.roles[key] = {}
            name = f"{self.launch}cta {w.cta.index}"
            self.events.append({"ph": "M", "name": "process_name", "pid": key[0], "args": {"name": name}})
        return {"pid": key[0], "tid": key[1]}

    def ran(self, w, now: int, steps: int) -> None:
        """A slice in which the warp executed `steps` instructions."""
        self._end_wait(w, now - steps)
        name = w.prog.source_of(w.pc)[1] or "run"
        start = self.base + now - steps
        self.events.append({"ph": "X", "name": name, "cat": "run", "ts": start, "dur": max(steps, 1), **self._track(w)})

    def blocked(self, w, now: int) -> None:
        """The warp waits from now on."""
        if w.gid not in self.waiting and w.wait is not None:
            self.waiting[w.gid] = (now, f"wait {w.wait.kind}: {w.wait.text}")

    def _end_wait(self, w, now: int) -> None:
        if w.gid in self.waiting:
            start, name = self.waiting.pop(w.gid)
            time = {"ts": self.base + start, "dur": max(now - start, 1)}
            self.events.append({"ph": "X", "name": name, "cat": "wait", **time, **self._track(w)})

    def issued(self, operation) -> None:
        """An asynchronous operation starts: its kind becomes part of the warp's role."""
        track = self._track(operation.warp)
        self.roles[track["pid"], track["tid"]][operation.name.split(" (")[0]] = None

    def operation(self, operation, now: int) -> None:
        """An asynchronous operation from issue to completion, as an async event on its CTA."""
        base = {
            "cat": "async",
            "name": operation.name,
            "id": self.first_id + operation.number,
            "pid": self.first_pid + operation.warp.cta.linear,
            "tid": 1000 + operation.warp.id,
        }
        self.events.append({"ph": "b", "ts": self.base + operation.started, **base})
        self.events.append({"ph": "e", "ts": self.base + now, **base})

    def write(self, path: str) -> None:
        """Write the JSON file."""
        for (pid, tid), kinds in self.roles.items():
            name = f"warp {tid}" + (f": {', '.join(kinds)}" if kinds else "")
            self.events.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}})
        with open(path, "w", encoding="utf-8") as out:
            json.dump({"traceEvents": self.events, "displayTimeUnit": "ns"}, out)
