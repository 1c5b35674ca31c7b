"""What `make run` shows: a dry sweep of the default state directory, or of a small demo tree.

The demo tree has real processes in the roles of the gateway, and is gone when it is over.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from reaper.cli import app
from reaper.core.lock import iso
from reaper.settings import SettingsError, state_dirs

_HOLDER: Final = """
import json, os, sys
path, created = sys.argv[1:3]
stat = open("/proc/self/stat").read()
record = {"pid": os.getpid(), "createdAt": created, "maxHoldMs": 1020000,
          "starttime": int(stat[stat.rindex(")") + 2:].split()[19])}
lock = open(path, "x")
lock.write(json.dumps(record, indent=2) + "\\n")
lock.flush()
print("held", flush=True)
if sys.stdin.readline().strip() == "forget":
    lock.close()
    print("forgotten", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def _holder(path: Path, *, age: float = 0.0) -> Iterator["subprocess.Popen[str]"]:
    """Run a process that takes and holds a lock as a gateway does; `age` in seconds."""
    created = iso(time.time_ns() // 1_000_000 - int(age * 1000))
    process = subprocess.Popen(  # noqa: S603  # our own interpreter and script
        [sys.executable, "-c", _HOLDER, str(path), created, "openclaw", "gateway"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            if process.stdout is not None:
                process.stdout.readline()
            os.utime(path, (time.time() - age, time.time() - age))
            yield process
        finally:
            process.kill()


@contextmanager
def demo_tree() -> Iterator[Path]:
    """Give a state directory with a healthy lock, a killed holder's, a forgotten one, one held for
    a run that is over, and a file of junk.
    """
    with tempfile.TemporaryDirectory(prefix="reaper-demo-") as folder, ExitStack() as holders:
        root = Path(folder) / "demo"
        sessions = root / "agents" / "main" / "sessions"
        sessions.mkdir(parents=True)

        def hold(session: str, age: float = 0.0) -> "subprocess.Popen[str]":
            path = sessions / f"{session}.jsonl.lock"
            return holders.enter_context(_holder(path, age=age))

        hold("healthy", age=40)
        killed = hold("killed", age=90)
        killed.kill()
        killed.wait()
        forgetful = hold("forgotten", age=70)
        if forgetful.stdin is not None and forgetful.stdout is not None:
            forgetful.stdin.write("forget\n")
            forgetful.stdin.flush()
            forgetful.stdout.readline()
        hold("abandoned", age=300)
        _end_run(sessions, "abandoned", age=299.5)
        junk = sessions / "junk.jsonl.lock"
        junk.write_text("{")
        os.utime(junk, (time.time() - 60, time.time() - 60))
        yield root


def _end_run(sessions: Path, session: str, *, age: float) -> None:
    """Write beside the lock what a gateway writes when a run times out."""
    at_ms = time.time_ns() // 1_000_000 - int(age * 1000)
    for name, text in {
        f"{session}.jsonl": "{}\n",
        f"{session}.trajectory.jsonl": f'{{"type":"session.ended","ts":"{iso(at_ms)}",'
        '"data":{"aborted":true,"timedOut":true}}\n',
        "sessions.json": f'{{"agent:main:demo":{{"sessionId":"{session}","status":"timeout",'
        f'"endedAt":{at_ms}}}}}\n',
    }.items():
        path = sessions / name
        path.write_text(text)
        os.utime(path, (time.time() - age, time.time() - age))


def main() -> None:
    """Sweep the default state directory, dry; or the demo tree, where there is none."""
    given = [it for it in os.environ.get("REAPER_STATE_DIR", "").split(":") if it]
    try:
        for state in state_dirs(given, os.environ):
            sys.stderr.write(f"a dry sweep of {state.path}: nothing is removed\n")
        app(["sweep", "--dry-run", "--exit-zero", "-v"])
    except SettingsError:
        sys.stderr.write(
            "no OpenClaw state directory here: a dry sweep of a demo tree instead, "
            "with real processes as holders\n"
        )
        with demo_tree() as root:
            app(["sweep", "--dry-run", "--exit-zero", "-v", "--state-dir", str(root)])


if __name__ == "__main__":
    main()
