"""Trees for measurements: agents, sessions, any number of locks, and processes that hold them.

    .venv/bin/python benchmarks/trees.py FOLDER LOCKS

makes a tree and holds its locks until it reads a line.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from reaper.core.lock import iso

KINDS: Final = (*["dead"] * 10, "interrupted", *["recycled"] * 3, *["live"] * 4, "overdue", "junk")
"""The kinds of each twenty locks. `interrupted`: the holder died during a run. `live`: held for ten
minutes by one model call."""
LOCKS_AN_AGENT: Final = 1000
TRANSCRIPTS_A_LOCK: Final = 10
_LOCKS_A_DEAD_GATEWAY: Final = 10
_NO_PID: Final = 5_000_000
"""No Linux process has this pid or a higher one: the limit is 2^22."""
_HOUR_MS: Final = 3_600_000

_HOLDER: Final = """
import json, os, resource, sys
stat = open("/proc/self/stat").read()
ticks = int(stat[stat.rindex(")") + 2:].split()[19])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = []
for line in sys.stdin:
    path, created, longest, start = line.rstrip("\\n").split("\\t")
    if not path:
        print("held", ticks, flush=True)
        continue
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    record = {"pid": os.getpid(), "createdAt": created, "maxHoldMs": int(longest),
              "starttime": int(start or ticks)}
    os.write(fd, (json.dumps(record, indent=2) + "\\n").encode())
"""


class Holder:
    """A process that holds locks open for writing, with a gateway's command line."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _HOLDER, "openclaw", "gateway"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.starttime = 0
        self.settle()

    @property
    def pid(self) -> int:
        return self.process.pid

    def hold(
        self, path: Path, *, age_ms: int = 0, max_hold_ms: int = 1_020_000, unseen: bool = False
    ) -> None:
        """Make the process take a lock; `settle` waits until it is taken. `unseen`: the record has
        a start time of no process here, as from a gateway in another PID namespace.
        """
        created = iso(time.time_ns() // 1_000_000 - age_ms)
        start = "1" if unseen else ""
        self._say(f"{path}\t{created}\t{max_hold_ms}\t{start}\n")

    def settle(self) -> None:
        self._say("\t\t\t\n")
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.flush()
        self.starttime = int(self.process.stdout.readline().split()[1])

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


@dataclass
class Tree:
    """A growing state directory, and the processes that hold its locks."""

    root: Path
    holders: list[Holder] = field(default_factory=list)
    locks: int = 0
    kinds: dict[str, int] = field(default_factory=dict)

    def sessions(self, agent: int) -> Path:
        folder = self.root / "agents" / f"agent{agent}" / "sessions"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def grow(self, locks: int) -> None:
        """Add agents until there are `locks` locks, with their sessions, stores and transcripts."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 100
        for agent in range(self.locks // LOCKS_AN_AGENT, -(-locks // LOCKS_AN_AGENT)):
            if agent % max(1, most * 3 // LOCKS_AN_AGENT) == 0:
                self.holders.append(Holder())  # it holds a quarter of its agents' locks
            self._grow_agent(agent, min(LOCKS_AN_AGENT, locks - agent * LOCKS_AN_AGENT))
        self.locks = locks
        self.holders[-1].settle()

    def _grow_agent(self, agent: int, locks: int) -> None:
        folder, holder = self.sessions(agent), self.holders[-1]
        store = {}
        now_ms = time.time_ns() // 1_000_000
        for number in range(locks):
            ordinal = agent * LOCKS_AN_AGENT + number
            kind = KINDS[number % len(KINDS)]
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
            session = f"{agent:06x}{number:02x}-5e55-4000-8000-{number:012x}"
            running = kind in {"interrupted", "live", "overdue"}
            _transcripts(folder, session, running=running)
            status = "running" if running else "done"
            store[f"agent:agent{agent}:{number}"] = {
                "sessionId": session,
                "sessionFile": f"{session}.jsonl",
                "updatedAt": now_ms,
                "status": status,
                "startedAt": now_ms - 2 * _HOUR_MS,
                "endedAt": None if running else now_ms - _HOUR_MS,
                "model": "a-model",
                "inputTokens": 10_000 + number,
                "totalTokens": 20_000 + number,
            }
            self._lock(folder / f"{session}.jsonl.lock", kind, ordinal, holder)
        (folder / "sessions.json").write_text(json.dumps(store, indent=2))

    def _lock(self, path: Path, kind: str, ordinal: int, holder: Holder) -> None:
        match kind:
            case "live":
                holder.hold(path, age_ms=_HOUR_MS // 6)
            case "overdue":
                holder.hold(path, age_ms=_HOUR_MS)
            case "junk":
                path.write_bytes(b"{")
                os.utime(path, (0, 0))
            case "recycled":
                path.write_bytes(record(holder.pid, holder.starttime - 1))
            case _:
                path.write_bytes(record(_NO_PID + ordinal // _LOCKS_A_DEAD_GATEWAY, 4711))

    def close(self) -> None:
        for holder in self.holders:
            holder.close()


def dead_tree(root: Path, locks: int) -> None:
    """Make a tree in which each lock names another dead process, as after a gateway that started a
    process for each session. Each lock has five transcripts.
    """
    for agent in range(-(-locks // LOCKS_AN_AGENT)):
        folder = Tree(root).sessions(agent)
        store = {}
        for number in range(min(LOCKS_AN_AGENT, locks - agent * LOCKS_AN_AGENT)):
            session = f"{agent:06x}{number:02x}-5e55-4000-8000-{number:012x}"
            (folder / f"{session}.jsonl").write_bytes(b'{"type":"session"}\n')
            for other in range(1, 5):
                (folder / f"{session[:-2]}{other:02x}-other-{number}.jsonl").touch()
            pid = _NO_PID + agent * LOCKS_AN_AGENT + number
            (folder / f"{session}.jsonl.lock").write_bytes(record(pid, 4711))
            store[f"agent:agent{agent}:{number}"] = {
                "sessionId": session,
                "sessionFile": f"{session}.jsonl",
                "updatedAt": 1,
                "status": "done",
                "startedAt": 1,
                "endedAt": 2,
            }
        (folder / "sessions.json").write_text(json.dumps(store, indent=2))


def record(pid: int, starttime: int, *, age_ms: int = 2 * _HOUR_MS) -> bytes:
    """Return a lock file's bytes in the gateway's format."""
    fields = {
        "pid": pid,
        "createdAt": iso(time.time_ns() // 1_000_000 - age_ms),
        "maxHoldMs": 1_020_000,
        "starttime": starttime,
    }
    return (json.dumps(fields, indent=2) + "\n").encode()


_STARTED: Final = (
    b'{"type":"session.started","ts":"2026-05-24T10:29:15.171Z","runId":"r","data":{}}\n'
    b'{"type":"prompt.submitted","ts":"2026-05-24T10:29:15.200Z","runId":"r","data":{}}\n'
)
_ENDED: Final = (
    b'{"type":"session.ended","ts":"2026-05-24T10:31:15.171Z","runId":"r","data":'
    b'{"aborted":false,"timedOut":false,"timedOutDuringToolExecution":false}}\n'
)


def _transcripts(folder: Path, session: str, *, running: bool) -> None:
    """Make the session's transcript and trajectory, and further transcripts without locks."""
    (folder / f"{session}.jsonl").write_bytes(b'{"type":"session"}\n')
    (folder / f"{session}.trajectory.jsonl").write_bytes(_STARTED if running else _STARTED + _ENDED)
    dir_fd = os.open(folder, os.O_RDONLY)
    try:
        for other in range(1, TRANSCRIPTS_A_LOCK):
            name = f"{session[:-2]}{other:02x}-other-{session[-4:]}.jsonl"
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=dir_fd))
    finally:
        os.close(dir_fd)


@contextmanager
def tree(folder: Path) -> Iterator[Tree]:
    """Yield an empty tree; at the end kill its holders and keep the files."""
    tree = Tree(folder)
    try:
        yield tree
    finally:
        tree.close()


if __name__ == "__main__":
    with tree(Path(sys.argv[1])) as made:
        made.grow(int(sys.argv[2]))
        print(made.locks, "locks:", made.kinds, flush=True)
        sys.stdin.readline()
