"""A process in the role of the gateway, for containers that the real one cannot be had for.

It takes locks as a gateway does, each in a child of its own, and obeys files that are put into the
folder `stand-in` of its state directory: `hold-SESSION`, `stuck-SESSION` (its run is cut short and
it never lets go), `overdue-SESSION` (held for longer than it promised), `release-SESSION`,
`kill-SESSION`. A file is gone when it has been obeyed. Uses the standard library only.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

STATE = Path(os.environ["OPENCLAW_STATE_DIR"])
SESSIONS = STATE / "agents" / "main" / "sessions"
ORDERS = STATE / "stand-in"


def iso(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(at))


def hold(session: str, *, since: float) -> None:
    """Take the lock and hold it until a signal."""
    stat = Path("/proc/self/stat").read_text()
    fields = {
        "pid": os.getpid(),
        "createdAt": iso(since),
        "maxHoldMs": 300_000,
        "starttime": int(stat[stat.rindex(")") + 2 :].split()[19]),
    }
    path = SESSIONS / f"{session}.jsonl.lock"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, (json.dumps(fields, indent=2) + "\n").encode())
    signal.sigwait({signal.SIGTERM})
    os.close(fd)
    path.unlink(missing_ok=True)


def cut_short(session: str, at: float) -> None:
    """Write beside a lock what a gateway writes when a run times out."""
    (SESSIONS / f"{session}.jsonl").write_text("{}\n")
    record = {
        "type": "session.ended", "ts": iso(at + 1), "runId": "run",
        "data": {"aborted": True, "timedOutDuringToolExecution": True},
    }  # fmt: skip
    (SESSIONS / f"{session}.trajectory.jsonl").write_text(json.dumps(record) + "\n")
    entry = {
        "sessionId": session, "status": "timeout",
        "startedAt": int((at - 60) * 1000), "endedAt": int((at + 1) * 1000),
    }  # fmt: skip
    (SESSIONS / "sessions.json").write_text(json.dumps({f"agent:main:{session}": entry}))


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    SESSIONS.mkdir(parents=True, exist_ok=True)
    ORDERS.mkdir(exist_ok=True)
    children: dict[str, int] = {}
    while signal.sigtimedwait({signal.SIGTERM}, 0.05) is None:
        for order in ORDERS.iterdir():
            what, session = order.name.split("-", 1)
            if what in {"hold", "stuck", "overdue"}:
                now = time.time()
                since = now - 3600 if what == "overdue" else now
                if what == "stuck":
                    cut_short(session, now)
                children[session] = os.fork()
                if children[session] == 0:
                    hold(session, since=since)
                    os._exit(0)
            else:
                pid = children.pop(session)
                os.kill(pid, signal.SIGKILL if what == "kill" else signal.SIGTERM)
                os.waitpid(pid, 0)
            order.unlink()
    for pid in children.values():
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    if sys.argv[1:] != ["openclaw", "gateway"]:  # by this the reaper knows OpenClaw's processes
        os.execv(sys.executable, [sys.executable, __file__, "openclaw", "gateway"])
    main()
