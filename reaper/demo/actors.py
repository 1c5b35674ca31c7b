"""Processes that take and hold locks as gateways do, and what such a gateway writes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from reaper.core.lock import iso

_HOLDER: Final = """
import datetime, json, os, sys
path = sys.argv[1]
stat = open("/proc/self/stat").read()
print("up", flush=True)
sys.stdin.readline()
created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
record = {"pid": os.getpid(), "createdAt": created.replace("+00:00", "Z"),
          "maxHoldMs": 1020000, "starttime": int(stat[stat.rindex(")") + 2:].split()[19])}
lock = open(path, "x")
lock.write(json.dumps(record, indent=2) + "\\n")
lock.flush()
print("held", flush=True)
if sys.stdin.readline().strip() == "forget":
    lock.close()
    print("forgotten", flush=True)
    sys.stdin.readline()
"""


class Gateway:
    """A process that takes and holds one lock as a gateway does."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def send(self, command: str) -> None:
        """Send `take` or `forget`, and return when it has done that."""
        if self.process.stdin is not None and self.process.stdout is not None:
            self.process.stdin.write(f"{command}\n")
            self.process.stdin.flush()
            self.process.stdout.readline()


@contextmanager
def gateway(lock: Path, state_dir: Path) -> Iterator[Gateway]:
    """Start a gateway, and kill it at the end."""
    process = subprocess.Popen(  # noqa: S603  # our own interpreter and script
        [sys.executable, "-c", _HOLDER, str(lock), "openclaw.mjs", "gateway", "run"],
        # On an overlay, as in a container, the hold proof needs a holder whose environment says so.
        env={**os.environ, "OPENCLAW_STATE_DIR": str(state_dir)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            if process.stdout is not None:
                process.stdout.readline()
            yield Gateway(process)
        finally:
            process.kill()


def end_run(sessions: Path, session: str, began_ms: int) -> None:
    """Write, beside the lock, what a 2026.5.22 gateway writes when a run times out in its tool."""
    at_ms = time.time_ns() // 1_000_000
    harness = {"version": "2026.5.22", "invocation": ["node", "openclaw.mjs", "gateway", "run"]}
    records: list[tuple[str, int, dict[str, object]]] = [
        ("session.started", began_ms, {}),
        ("trace.metadata", began_ms, {"harness": harness}),
        ("session.ended", at_ms, {"aborted": True, "timedOutDuringToolExecution": True}),
    ]
    store = {"sessionId": session, "status": "timeout", "startedAt": began_ms, "endedAt": at_ms}
    (sessions / f"{session}.jsonl").write_text("{}\n")
    (sessions / "sessions.json").write_text(json.dumps({"agent:main:demo": store}))
    (sessions / f"{session}.trajectory.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "type": kind,
                    "ts": iso(ms),
                    "runId": "demo",
                    "seq": number,
                    "sourceSeq": number,
                    "data": data,
                }
            )
            + "\n"
            for number, (kind, ms, data) in enumerate(records, start=1)
        )
    )
