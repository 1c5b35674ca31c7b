"""Fixtures of the tests: state directories, real processes as holders, the real gateway."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from reaper.adapters import hold_proof
from reaper.adapters.locks import removal
from reaper.adapters.processes import ProcessTable
from reaper.core.evidence import Evidence
from reaper.core.judge import judge
from reaper.core.lock import iso
from reaper.core.policy import Outcome, Policy, decide
from reaper.core.record import parse
from reaper.core.verdict import Limits
from reaper.reports.records import TrackedLock
from tests import needs, processes, sidecar
from tests.model_provider import Provider
from tests.needs import PACKAGES, missing, not_tested, program
from tests.openclaw_package import LATER, NEWEST, VERSION, OpenClaw, Unavailable, install
from tests.processes import kill_family, start
from tests.sidecar import Sidecar, Watching
from tests.trajectories import attempt

if TYPE_CHECKING:
    from tests.gateway import Gateway
    from tests.serving import Serving

TICKS = os.sysconf("SC_CLK_TCK")

DEAD = 2**22 + 1
"""A pid above the kernel's limit, so that no process has it."""

_OUTSIDE = ("REAPER_", "OPENCLAW_")
_OUTSIDE_NAMES = {"PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "GITHUB_ACTIONS", "FORCE_COLOR"}
"""Variables that change how fast Python starts or whether output has colours."""


# Without a deadline, because that would measure how busy the machine is. `make test` tries the same
# examples each time; CI and `make torture` draw new ones.
settings.register_profile("test", deadline=None, derandomize=True, max_examples=100)
settings.register_profile("ci", deadline=None, max_examples=300, print_blob=True)
settings.register_profile("torture", deadline=None, max_examples=5000, print_blob=True)
settings.load_profile("test")


@pytest.fixture(scope="session", autouse=True)
def _sigio_ignored() -> None:
    hold_proof.prepare()


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(_OUTSIDE) or name in _OUTSIDE_NAMES:
            monkeypatch.delenv(name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start the longest tests first, so that no worker runs one alone at the end. Without workers,
    start them last, so that `-x` stops soon.
    """

    def seconds(item: pytest.Item) -> float:
        long = item.get_closest_marker("long")
        return long.kwargs["seconds"] if long else 0.0

    items.sort(key=seconds, reverse=hasattr(config, "workerinput"))


# The processes of a test end with the test, even if a fixture fails, and before fixtures remove the
# mounts and folders that they use.


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    processes.begin_test()
    sidecar.journals.clear()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    processes.end_test()


@pytest.fixture(scope="session", autouse=True)
def _fork_server_ends() -> Iterator[None]:
    yield
    processes.end_server()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    needs.summarize(terminalreporter)
    if "not gateway" in terminalreporter.config.option.markexpr:
        terminalreporter.write_line(
            "Not run: the tests with the real gateway; `make test-gateway` runs them (npm, 700 MB)."
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of the sidecars of a failed test."""
    report = needs.failed_if_skipped((yield))
    if report.failed:
        for path in sidecar.journals:
            with suppress(OSError):
                report.sections.append((f"sidecar's {path.name}", path.read_text()[-20_000:]))
    return report


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def start_ticks(pid: int) -> int:
    """Return field 22 of /proc/<pid>/stat, without the code under test."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[19])


def record(
    pid: object, *, age: float = 0.0, starttime: object = None, max_hold_ms: object = 1_020_000
) -> bytes:
    """Return the bytes of a lock file in the gateway's format; `age` in seconds."""
    fields: dict[str, object] = {
        "pid": pid,
        "createdAt": iso(now_ms() - int(age * 1000)),
        "maxHoldMs": max_hold_ms,
    }
    if starttime is not None:
        fields["starttime"] = starttime
    return (json.dumps(fields, indent=2) + "\n").encode()


Meanwhile = Callable[[str, Callable[[], object]], None]


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """Return a function that runs another just before the next call of a function of `removal`."""

    def arrange(function: str, happens: Callable[[], object]) -> None:
        real = getattr(removal, function)
        left = [happens]

        def called(*arguments: Any, **keywords: Any) -> Any:
            if left:
                left.pop()()
            return real(*arguments, **keywords)

        monkeypatch.setattr(removal, function, called)

    return arrange


def judged(evidence: Evidence, *, at: float, outcome: Outcome | None = None) -> TrackedLock:
    """Return the lock with this evidence, judged by the default limits."""
    judgement = judge(evidence, Limits())
    return TrackedLock(
        lock=evidence.lock,
        evidence=evidence,
        judgement=judgement,
        action=decide(judgement, Policy()),
        outcome=outcome,
        at=at,
    )


@dataclass
class Tree:
    """A state directory, and functions that add to it."""

    root: Path

    def sessions(self, agent: str = "main") -> Path:
        folder = self.root / "agents" / agent / "sessions"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def lock(
        self, session: str, data: bytes, *, agent: str = "main", mtime_age: float = 3600.0
    ) -> Path:
        """Plant a lock file that no process has open, last changed `mtime_age` seconds ago."""
        path = self.sessions(agent) / f"{session}.jsonl.lock"
        path.write_bytes(data)
        self.age(path, mtime_age)
        return path

    def age(self, path: Path, seconds: float) -> None:
        timestamp = time.time() - seconds
        os.utime(path, (timestamp, timestamp))

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
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        self.age(path, quiet)
        transcript = self.sessions(agent) / f"{session}.jsonl"
        transcript.write_text("{}\n")
        self.age(transcript, quiet)
        return path


def a_run(began: float, ended: float, **kwargs: Any) -> list[dict[str, Any]]:
    """Return the records of a gateway's run from `began` to `ended` seconds ago. It was cut short
    in its tool unless `cut_short=False` is given.
    """
    now = now_ms()
    return attempt("run", now - int(began * 1000), now - int(ended * 1000), **kwargs)


def created_ms(path: Path) -> int:
    """Return the createdAt of a lock file (epoch ms)."""
    created = parse(path.read_bytes()).created_at_ms
    assert created is not None
    return created


class LongUp(ProcessTable):
    """The real process table, but each process began before any run of a test."""

    def began_ms(self, starttime: int) -> int:
        return 0


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path / "state")
    tree.sessions()
    return tree


@pytest.fixture
def public_tree() -> Iterator[Tree]:
    """Yield a tree that other uids can reach. Pytest's folders are closed to them, also by another
    pytest of the same user.
    """
    with tempfile.TemporaryDirectory(prefix="reaper-test-") as folder:
        os.chmod(folder, 0o755)
        tree = Tree(Path(folder) / "state")
        tree.sessions()
        yield tree


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
    elif command == "take again":  # as a gateway does, which leaks a removed lock
        fd = take()
    print("done", flush=True)
"""


class Holder:
    """A real process that holds a lock file open for writing, with the arguments of a gateway."""

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
        command = [*wrap, *program, *title]
        self.process = start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
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
        """SIGKILL the holder and its children; wait until the kernel has closed their files."""
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
    """Return a function that starts a holder of a session's lock."""
    holders: list[Holder] = []

    def start(session: str, *, agent: str = "main", **kwargs: Any) -> Holder:
        holder = Holder(tree.sessions(agent) / f"{session}.jsonl.lock", **kwargs)
        holders.append(holder)
        return holder

    yield start
    for holder in holders:
        holder.close()


@pytest.fixture
def watching(tree: Tree) -> Watching:
    """Return a function that starts a sidecar of the tree, or of another `root`."""

    def start(*options: str, root: Path | None = None, **kwargs: Any) -> Sidecar:
        return Sidecar(root or tree.root, *options, **kwargs)

    return start


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator["Serving"]:
    """Return a function that starts servers without the cache of one second."""
    from reaper.web import app
    from tests.serving import Served

    monkeypatch.setattr(app, "_CACHE_SECONDS", 0.0)
    served: list[Served] = []

    def start(**kwargs: Any) -> Served:
        served.append(Served(**kwargs))
        return served[-1]

    yield start
    for server in served:
        server.web.stop()


@pytest.fixture
def dead_pid() -> int:
    return DEAD


@pytest.fixture
def root_only() -> None:
    if os.geteuid() != 0:
        not_tested("not root", cure="run as root")


@pytest.fixture(scope="session")
def openclaw() -> OpenClaw:
    return _installed(VERSION)


@pytest.fixture(scope="session")
def later() -> OpenClaw:
    return _installed(LATER)


@pytest.fixture(scope="session")
def newest() -> OpenClaw:
    return _installed(NEWEST)


def _installed(version: str) -> OpenClaw:
    try:
        return install(version)
    except Unavailable as why:
        if shutil.which("npm") is None:
            missing("npm", PACKAGES["npm"])
        not_tested(f"with the real gateway: {why}", cure="npm's registry")


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


StartGateway = Callable[..., "Gateway"]


@pytest.fixture
def gateways(openclaw: OpenClaw, provider: Provider, tmp_path: Path) -> Iterator[StartGateway]:
    """Return a function that starts gateways, each with its own state directory or with `root`."""
    from tests.gateway import Gateway

    started: list[Gateway] = []

    def start(release: OpenClaw = openclaw, *, root: Path | None = None, **kwargs: Any) -> Gateway:
        root = root or tmp_path / f"gateway{len(started)}"
        gateway = Gateway(release, root, provider, **kwargs)
        started.append(gateway)
        gateway.start()
        # The first run of each gateway begins slowly.
        gateway.hello("first")
        return gateway

    yield start
    for gateway in started:
        gateway.close()


@contextmanager
def bindfs(source: Path, target: Path) -> Iterator[Path]:
    """Show a directory through a FUSE layer."""
    command = [program("bindfs"), str(source), str(target)]
    target.mkdir()
    subprocess.run(command, check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)
