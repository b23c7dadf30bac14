"""A pool of worker processes that survives crashes and hangs of any of them."""

from __future__ import annotations

import json
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from attncc.verify.jobs import Job

MODULE = "attncc.verify.worker"
PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
START = "import sys, runpy; sys.path.insert(0, sys.argv[1]); runpy.run_module(sys.argv[2], run_name='__main__')"
"""Starts a module of the same attncc as this one, wherever the process runs."""


class Worker:
    """One process, started when it is first needed and again after it was lost."""

    def __init__(self):
        self.process: subprocess.Popen | None = None

    def ask(self, message: dict, timeout: float) -> dict:
        """The worker's answer; {"ok": False, "error": ...} when it crashes or does not answer within `timeout` seconds."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, PACKAGE_ROOT, MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            self.noise = _Tail(self.process.stderr)
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
            line = self._line(time.monotonic() + timeout)
        except OSError:
            line = b""
        if line is None:
            self.stop()
            return {"ok": False, "error": f"no answer within {timeout:.0f} s (a hang?)"}
        if not line.endswith(b"\n"):
            status = self.stop()
            return {"ok": False, "error": f"the process died with status {status}: {self.noise.text()}"}
        answer = json.loads(line)
        if not answer.get("ok"):
            self.stop()  # after a fault of the device every later call of that process fails as well
        return answer

    def _line(self, deadline: float) -> bytes | None:
        """A line, the part of one before the end of the stream, or None when time is up."""
        data = b""
        while not data.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            part = self.process.stdout.read1(65536)
            if not part:
                return data
            data += part
        return data

    def stop(self) -> int | None:
        """Ends the process."""
        process, self.process = self.process, None
        if process is None:
            return None
        if process.poll() is None:
            process.kill()
        return process.wait()


class _Tail:
    """Reads a stream to its end and remembers the last of it."""

    def __init__(self, stream):
        self.lines: list[str] = []
        self.thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self.thread.start()

    def _read(self, stream) -> None:
        for line in stream:
            self.lines = [*self.lines[-4:], line.decode(errors="replace").strip()]

    def text(self) -> str:
        self.thread.join(1.0)
        return " / ".join(self.lines)[-400:]


def run_all(
    jobs: Sequence[Job],
    verb: str,
    count: int,
    timeout: float,
    done: Callable[[Job, dict], None] = lambda job, answer: None,
) -> list[dict]:
    """The answers to all jobs, in order; `count` processes work on them. `done` is called after each, one call at a time."""
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    for item in enumerate(jobs):
        waiting.put(item)
    answers: list[dict] = [{} for _ in jobs]
    lock = threading.Lock()
    stopping = threading.Event()

    def work() -> None:
        worker = Worker()
        try:
            while not stopping.is_set():
                number, job = waiting.get_nowait()
                answers[number] = worker.ask(job.message(verb), timeout)
                with lock:
                    done(job, answers[number])
        except queue.Empty:
            pass
        finally:
            worker.stop()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(max(1, min(count, len(jobs))))]
    for t in threads:
        t.start()
    try:
        for t in threads:
            while t.is_alive():
                t.join(0.2)
    except KeyboardInterrupt:
        stopping.set()
        raise
    return answers
