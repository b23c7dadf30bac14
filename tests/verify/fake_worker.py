"""A worker that does what the job's file name says."""

import json
import os
import signal
import sys
import time

for line in sys.stdin:
    job = json.loads(line)
    if job["file"] == "hang":
        time.sleep(60)
    if job["file"] == "crash":
        print("about to die", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGABRT)
    if job["file"] == "leave":
        sys.exit(3)
    print(
        json.dumps({"ok": True, "rows": [], "file": job["file"], "verb": job["verb"], "pid": os.getpid()}), flush=True
    )
