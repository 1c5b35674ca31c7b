"""A process that replaces the gateway in containers without the real one.

It locks like a gateway, each session in another child. It obeys files in the folder `stand-in` of
its state directory: `hold-SESSION`, `stuck-SESSION` (the run is cut short and the lock is never
released), `overdue-SESSION` (held beyond its max hold), `release-SESSION`, `kill-SESSION`. It
deletes each file that it has obeyed. It needs only the standard library.
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


def take(session: str, *, since: float) -> int:
    """Create the lock; return the descriptor that holds it."""
    stat = Path("/proc/self/stat").read_text()
    fields = {
        "pid": os.getpid(),
        "createdAt": iso(since),
        "maxHoldMs": 300_000,
        "starttime": int(stat[stat.rindex(")") + 2 :].split()[19]),
    }
    fd = os.open(lock(session), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, (json.dumps(fields, indent=2) + "\n").encode())
    return fd


def lock(session: str) -> Path:
    return SESSIONS / f"{session}.jsonl.lock"


def release(session: str, fd: int) -> None:
    os.close(fd)
    lock(session).unlink(missing_ok=True)


def hold(session: str, *, since: float) -> None:
    """Create the lock and hold it until a signal."""
    fd = take(session, since=since)
    signal.sigwait({signal.SIGTERM})
    release(session, fd)


def cut_short(session: str, at: float) -> None:
    """Write the files that a 2026.5.22 gateway writes when a run times out in its tool."""
    (SESSIONS / f"{session}.jsonl").write_text("{}\n")
    harness = {"version": "2026.5.22", "invocation": ["node", "openclaw.mjs", "gateway", "run"]}
    records = [
        ("session.started", at, {}),
        ("trace.metadata", at, {"harness": harness}),
        ("session.ended", at + 1, {"aborted": True, "timedOutDuringToolExecution": True}),
    ]
    (SESSIONS / f"{session}.trajectory.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "type": kind, "ts": iso(ts), "runId": "run", "seq": number,
                    "sourceSeq": number, "data": data,
                }
            ) + "\n"
            for number, (kind, ts, data) in enumerate(records, start=1)
        )
    )  # fmt: skip
    entry = {
        "sessionId": session, "status": "timeout",
        "startedAt": int(at * 1000), "endedAt": int((at + 1) * 1000),
    }  # fmt: skip
    (SESSIONS / "sessions.json").write_text(json.dumps({f"agent:main:{session}": entry}))


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    SESSIONS.mkdir(parents=True, exist_ok=True)
    ORDERS.mkdir(exist_ok=True)
    children: dict[str, int] = {}
    stuck: dict[str, int] = {}
    started = time.time()
    while signal.sigtimedwait({signal.SIGTERM}, 0.05) is None:
        for order in ORDERS.iterdir():
            command, session = order.name.split("-", 1)
            if command == "stuck":
                # The gateway itself holds the lock, and must be five seconds older than the run.
                at = float(int(max(time.time(), started + 7)))
                cut_short(session, at)
                stuck[session] = take(session, since=at)
            elif command in {"hold", "overdue"}:
                since = time.time() - (3600 if command == "overdue" else 0)
                children[session] = os.fork()
                if children[session] == 0:
                    hold(session, since=since)
                    os._exit(0)
            elif session in stuck:
                release(session, stuck.pop(session))
            else:
                pid = children.pop(session)
                os.kill(pid, signal.SIGKILL if command == "kill" else signal.SIGTERM)
                os.waitpid(pid, 0)
            order.unlink()
    for session, fd in stuck.items():
        release(session, fd)
    for pid in children.values():
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    gateway = ["openclaw.mjs", "gateway", "run"]  # the reaper recognizes a gateway by these
    if sys.argv[1:] != gateway:
        os.execv(sys.executable, [sys.executable, __file__, *gateway])
    main()
