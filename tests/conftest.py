"""What the tests share: trees, holders as real processes, the real gateway's package."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from reaper.adapters import hold_proof
from reaper.adapters.processes import ProcessTable
from reaper.core.evidence import Evidence
from reaper.core.lock import iso, parse
from reaper.core.policy import Outcome, Policy, decide
from reaper.core.verdict import Limits, judge
from reaper.reports.records import Seen
from tests.model_provider import Provider
from tests.openclaw_package import LATER, VERSION, OpenClaw, Unavailable, install
from tests.trajectories import attempt

if TYPE_CHECKING:
    from tests.gateway import Gateway

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="session", autouse=True)
def _sigio_ignored() -> None:
    hold_proof.prepare()


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("REAPER_", "OPENCLAW_")):
            monkeypatch.delenv(name)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def start_ticks(pid: int) -> int:
    """Field 22 of /proc/<pid>/stat, read here by other means than the code under test."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[19])


def record(
    pid: object, *, age: float = 0.0, starttime: object = None, max_hold_ms: object = 1_020_000
) -> bytes:
    """Return a lock file's bytes as the gateway writes them; `age` in seconds."""
    fields: dict[str, object] = {
        "pid": pid,
        "createdAt": iso(now_ms() - int(age * 1000)),
        "maxHoldMs": max_hold_ms,
    }
    if starttime is not None:
        fields["starttime"] = starttime
    return (json.dumps(fields, indent=2) + "\n").encode()


def judged(evidence: Evidence, *, at: float, outcome: Outcome | None = None) -> Seen:
    """Return what is known of a lock with this evidence, judged by the default limits."""
    judgement = judge(evidence, Limits())
    return Seen(
        lock=evidence.lock,
        evidence=evidence,
        judgement=judgement,
        action=decide(judgement, Policy()),
        outcome=outcome,
        at=at,
    )


@dataclass
class Tree:
    """A state directory in the making."""

    root: Path

    def sessions(self, agent: str = "main") -> Path:
        folder = self.root / "agents" / agent / "sessions"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def lock(
        self, session: str, data: bytes, *, agent: str = "main", mtime_age: float = 3600.0
    ) -> Path:
        """Plant a lock file that nobody has open, last changed `mtime_age` seconds ago."""
        path = self.sessions(agent) / f"{session}.jsonl.lock"
        path.write_bytes(data)
        self.age(path, mtime_age)
        return path

    def age(self, path: Path, seconds: float) -> None:
        then = time.time() - seconds
        os.utime(path, (then, then))

    def store(self, entries: dict[str, Any], *, agent: str = "main") -> Path:
        path = self.sessions(agent) / "sessions.json"
        path.write_text(json.dumps(entries))
        return path

    def trajectory(
        self,
        session: str,
        *records: dict[str, Any],
        agent: str = "main",
        quiet: float = 3600.0,
    ) -> Path:
        path = self.sessions(agent) / f"{session}.trajectory.jsonl"
        path.write_text("".join(json.dumps(it) + "\n" for it in records))
        self.age(path, quiet)
        transcript = self.sessions(agent) / f"{session}.jsonl"
        transcript.write_text("{}\n")
        self.age(transcript, quiet)
        return path


def a_run(began: float, ended: float, **how: Any) -> list[dict[str, Any]]:
    """Return the records of a gateway's run, from `began` to `ended` seconds ago; cut short while
    it was in its tool unless `cut_short=False` is given.
    """
    now = now_ms()
    return attempt("run", now - int(began * 1000), now - int(ended * 1000), **how)


def created_ms(path: Path) -> int:
    """Return the createdAt of a lock file (epoch ms)."""
    created = parse(path.read_bytes()).created_at_ms
    assert created is not None
    return created


class LongUp(ProcessTable):
    """The real process table, in which each process began before any run of a test."""

    def began_ms(self, starttime: int) -> int:
        return 0


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path / "state")
    tree.sessions()
    return tree


@pytest.fixture
def public_tree() -> Iterator[Tree]:
    """Return a tree that other uids can reach, whatever becomes of pytest's own folders, which any
    other pytest of the same user closes to others when it starts.
    """
    with tempfile.TemporaryDirectory(prefix="reaper-test-") as folder:
        os.chmod(folder, 0o755)
        tree = Tree(Path(folder) / "state")
        tree.sessions()
        yield tree


def kill_family(process: "subprocess.Popen[str]") -> None:
    """SIGKILL a process and all below it; return when the kernel has closed their files."""
    leader = psutil.Process(process.pid)
    family = [*leader.children(recursive=True), leader]
    for member in family:
        member.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(family, timeout=10)


_HOLDER = """
import json, os, sys, time
path, age, max_hold, starttime = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
stat = open("/proc/self/stat").read()
ticks = int(stat[stat.rindex(")") + 2:].split()[19])
created = time.time() - age
fields = {"pid": os.getpid(), "createdAt": time.strftime("%Y-%m-%dT%H:%M:%S.000Z",
          time.gmtime(created)), "maxHoldMs": max_hold}
if starttime != "none":
    fields["starttime"] = ticks + int(starttime)
def take():
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, (json.dumps(fields, indent=2) + "\\n").encode())
    return fd
fd = take()
print("held", flush=True)
for line in sys.stdin:
    command = line.strip()
    if command == "close":
        os.close(fd)
    elif command == "release":
        os.close(fd); os.unlink(path)
    elif command == "take again":  # as the gateway does, which leaks what was removed under it
        fd = take()
    print("done", flush=True)
"""


class Holder:
    """A real process in the role of the gateway, that holds one lock file open for writing.

    By its arguments it is a gateway.
    """

    def __init__(
        self,
        path: Path,
        *,
        age: float = 0.0,
        max_hold_ms: int = 1_020_000,
        starttime: str = "0",
        wrap: tuple[str, ...] = (),
        title: tuple[str, ...] = ("openclaw.mjs", "gateway", "run"),
    ) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        program = (sys.executable, "-c", _HOLDER, str(path), str(age), str(max_hold_ms), starttime)
        self.process = subprocess.Popen(
            [*wrap, *program, *title], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer("held")
        if age:
            then = time.time() - age
            os.utime(path, (then, then))

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        self._answer("done")

    def _answer(self, expected: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == expected

    def kill(self, *, reap: bool = True) -> None:
        """SIGKILL the holder and all below it; wait until the kernel has closed its files."""
        if reap:
            kill_family(self.process)
        else:
            self.process.send_signal(signal.SIGKILL)
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


HoldLock = Callable[..., Holder]


@pytest.fixture
def hold(tree: Tree) -> Iterator[HoldLock]:
    """Start a process that takes and holds the lock of a session of the tree."""
    holders: list[Holder] = []

    def start(session: str, *, agent: str = "main", **how: Any) -> Holder:
        holder = Holder(tree.sessions(agent) / f"{session}.jsonl.lock", **how)
        holders.append(holder)
        return holder

    yield start
    for holder in holders:
        holder.close()


@pytest.fixture
def dead_pid() -> int:
    """Return a pid that was a process a moment ago and is none now."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def root_only() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture(scope="session")
def openclaw() -> OpenClaw:
    return _installed(VERSION)


@pytest.fixture(scope="session")
def later() -> OpenClaw:
    return _installed(LATER)


def _installed(version: str) -> OpenClaw:
    try:
        return install(version)
    except Unavailable as why:
        warnings.warn(f"NOT TESTED with the real gateway: {why}", stacklevel=2)
        pytest.skip(f"openclaw {version} cannot be installed: {why}")


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


StartGateway = Callable[..., "Gateway"]


@pytest.fixture
def gateways(openclaw: OpenClaw, provider: Provider, tmp_path: Path) -> Iterator[StartGateway]:
    """Start gateways, each with a state directory of its own unless `root` names an older one's."""
    from tests.gateway import Gateway

    started: list[Gateway] = []

    def start(release: OpenClaw = openclaw, *, root: Path | None = None, **how: Any) -> Gateway:
        root = root or tmp_path / f"gateway{len(started)}"
        gateway = Gateway(release, root, provider, **how)
        started.append(gateway)
        gateway.start()
        # The first run of each gateway is slow to begin.
        gateway.hello("first")
        return gateway

    yield start
    for gateway in started:
        gateway.close()


@contextmanager
def bindfs(source: Path, target: Path) -> Iterator[Path]:
    """Show a directory through a FUSE layer."""
    if shutil.which("bindfs") is None:
        pytest.skip("bindfs is not here")
    target.mkdir()
    subprocess.run(["bindfs", source, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)
