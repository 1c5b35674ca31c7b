"""Speed and cost of the sidecar: due locks, CPU, memory, scrapes. See also deaths.py.

.venv/bin/python benchmarks/sidecar.py [SCENARIO...]
"""

import json
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
from trees import Holder

_PATIENCE: Final = 120.0
_REAPER: Final = (sys.executable, "-m", "reaper")
_RUN_REAPER: Final = str(Path(__file__).parents[1] / "tests" / "run_reaper.py")
_WITHOUT_GRACE: Final = (sys.executable, "-P", _RUN_REAPER, '{"grace": 0}')
"""Like the tests, this starts the reaper with other limits than the defaults."""
_AS_PROMETHEUS: Final = {
    "Accept": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    "Accept-Encoding": "gzip",
}
"""The headers of Prometheus 3."""

_FORKER: Final = """
import json, os, signal, sys, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
folder, count, first = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
created = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
ready, told = os.pipe()
group = 0
for number in range(first, first + count):
    pid = os.fork()
    if pid == 0:
        stat = open("/proc/self/stat").read()
        ticks = int(stat[stat.rindex(")") + 2:].split()[19])
        fd = os.open(f"{folder}/{number}.jsonl.lock", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        record = {"pid": os.getpid(), "createdAt": created, "maxHoldMs": 1020000,
                  "starttime": ticks}
        os.write(fd, (json.dumps(record, indent=2) + "\\n").encode())
        os.write(told, b".")
        while True:
            time.sleep(3600)
    os.setpgid(pid, group)
    group = group or pid
    print(number, pid)
for _ in range(count):
    os.read(ready, 1)
print("ready", flush=True)
sys.stdin.readline()
"""
"""Forks processes that hold one lock each, in the process group of the first, and reaps them."""

_APPENDER: Final = """
import os, sys, time
root, rate, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
line = b'{"type":"message","text":"' + b"x" * 200 + b'"}\\n'
began = time.monotonic()
done = 0
while (now := time.monotonic()) < began + seconds:
    while done < (now - began) * rate:
        path = f"{root}/agents/agent{done % 50}/sessions/busy{done // 50 % 10}.jsonl"
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, line)
        os.close(fd)
        done += 1
    time.sleep(0.002)
print(done)
"""
_LOCKER: Final = """
import json, os, sys, time
root, rate, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
stat = open("/proc/self/stat").read()
ticks = int(stat[stat.rindex(")") + 2:].split()[19])
held = []
began = time.monotonic()
done = 0
while (now := time.monotonic()) < began + seconds:
    while held and held[0][0] < now - 0.05:
        _, path, fd = held.pop(0)
        os.close(fd)
        os.unlink(path)
    while done < (now - began) * rate:
        path = f"{root}/agents/agent{done % 50}/sessions/turn{done}.jsonl.lock"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        created = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        record = {"pid": os.getpid(), "createdAt": created, "maxHoldMs": 300000,
                  "starttime": ticks}
        os.write(fd, (json.dumps(record, indent=2) + "\\n").encode())
        held.append((now, path, fd))
        done += 1
    time.sleep(0.002)
for _, path, fd in held:
    os.close(fd)
    os.unlink(path)
print(done)
"""


class Sidecar:
    """`reaper watch` on its own state directory."""

    def __init__(self, root: Path, *options: str, program: tuple[str, ...] = _REAPER) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self._journal = (root.parent / f"journal-{self.port}").open("w")
        self.process = psutil.Popen(
            [*program, "watch", "--state-dir", str(root), "--log-format", "json", "--listen",
             f"127.0.0.1:{self.port}", "--resync", "600s", *options],
            stderr=self._journal,
        )  # fmt: skip
        until(self._ready, "a sidecar that is ready")

    def _ready(self) -> bool:
        try:
            return "OK" in self.get("/-/ready")
        except OSError:
            return False

    def get(self, path: str) -> str:
        return self.fetch(path, {}).decode()

    def fetch(self, path: str, headers: Mapping[str, str]) -> bytes:
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, headers=dict(headers))
        with urllib.request.urlopen(request, timeout=30) as answer:
            body: bytes = answer.read()
            return body

    def held(self) -> int:
        """Return how many locks the sidecar knows to be held."""
        return sum(
            int(float(line.split()[-1]))
            for line in self.get("/metrics").splitlines()
            if line.startswith("reaper_locks{") and 'verdict="held"' in line
        )

    def sweep(self) -> None:
        """Request a full sweep, and wait for its end."""
        before = self.of_sweeps("count")
        self.process.send_signal(signal.SIGHUP)
        until(lambda: self.of_sweeps("count") > before, "the end of a sweep")

    def of_sweeps(self, what: str) -> float:
        """Return the sum of the sweeps' durations, or their count."""
        text = self.get("/metrics")
        return float(text.split(f"reaper_sweep_duration_seconds_{what} ")[1].split()[0])

    def cpu(self) -> float:
        """Return the CPU seconds so far, with those of ended threads, to the nanosecond."""
        return time.clock_gettime(~self.process.pid << 3 | 2)  # clock_getcpuclockid(3) of that pid

    def wakeups(self) -> int:
        tasks = Path(f"/proc/{self.process.pid}/task")
        return sum(
            int(line.split()[1])
            for path in tasks.iterdir()
            for line in (path / "status").read_text().splitlines()
            if line.startswith("voluntary_ctxt_switches")
        )

    def rss_mib(self) -> float:
        resident: int = self.process.memory_info().rss
        return resident / 2**20

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self._journal.close()


def until(condition: Callable[[], bool], what: str, *, every: float = 0.05) -> None:
    end = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"never came: {what}")
        time.sleep(every)


@contextmanager
def state_dir() -> Iterator[Path]:
    """Yield a state directory; remove it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="reaper-bench-"))
    root = folder / "state"
    (root / "agents").mkdir(parents=True)
    try:
        yield root
    finally:
        shutil.rmtree(folder)


def sessions(root: Path, agent: str) -> Path:
    folder = root / "agents" / agent / "sessions"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def sidecar(root: Path, *options: str, program: tuple[str, ...] = _REAPER) -> Iterator[Sidecar]:
    sidecar = Sidecar(root, *options, program=program)
    try:
        yield sidecar
    finally:
        sidecar.close()


@contextmanager
def forked(folder: Path, count: int) -> Iterator[list[tuple[Path, int]]]:
    """Yield the path and the pid of locks, each held by its own process."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", _FORKER, str(folder), str(count), "0",
         "openclaw", "gateway"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    while (line := process.stdout.readline()) not in {"ready\n", ""}:
        lines.append(line.split())
    held = [(folder / f"{number}.jsonl.lock", int(pid)) for number, pid in lines]
    try:
        yield held
    finally:
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.communicate("\n")


def gone(path: Path) -> float:
    """Wait until the file is gone; return the time."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if not path.exists():
            return time.monotonic()
        time.sleep(0.0001)
    raise TimeoutError(f"{path} stays")


def percentiles(seconds: list[float]) -> dict[str, float]:
    ms = sorted(second * 1000 for second in seconds)
    return {
        "p50_ms": round(statistics.median(ms), 2),
        "p99_ms": round(ms[min(len(ms) - 1, int(len(ms) * 0.99))], 2),
        "most_ms": round(ms[-1], 2),
        "count": len(ms),
    }


@contextmanager
def scraped(sidecar: Sidecar, every: float) -> Iterator[None]:
    """Scrape the sidecar from a thread, as Prometheus does."""
    done = threading.Event()

    def scrape() -> None:
        while not done.wait(every):
            sidecar.fetch("/metrics", _AS_PROMETHEUS)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def due(count: int = 100) -> dict[str, Any]:
    """Measure the time from when a lock is due (maxHoldMs and grace are over) to its removal."""
    with state_dir() as root:
        folder = sessions(root, "main")
        holder = Holder()
        try:
            with sidecar(root, "--on-overdue", "remove", program=_WITHOUT_GRACE):
                dues = []
                for number in range(count):
                    path = folder / f"{number}.jsonl.lock"
                    hold_ms = 6000 + number * 40
                    holder.hold(path, max_hold_ms=hold_ms)
                    dues.append((path, hold_ms))
                holder.settle()
                at_s = [_epoch(json.loads(path.read_bytes())["createdAt"]) for path, _ in dues]
                late = []
                for (path, hold_ms), created in zip(dues, at_s, strict=True):
                    at = created + hold_ms / 1000
                    gone(path)
                    late.append(time.time() - at)
                return percentiles(late)
        finally:
            holder.close()


def _epoch(text: str) -> float:
    from datetime import datetime  # noqa: PLC0415  # only used here

    return datetime.fromisoformat(text).timestamp()


def processor(seconds: float = 20.0) -> dict[str, Any]:
    """Measure the sidecar's CPU time in percent of one core: idle, with appends, and with locks."""
    with state_dir() as root:
        for agent in range(50):
            for number in range(10):
                (sessions(root, f"agent{agent}") / f"busy{number}.jsonl").touch()
        with sidecar(root) as the_sidecar:
            time.sleep(2)
            found: dict[str, Any] = {}
            for name, programs in {
                "idle": (),
                "appends": ((_APPENDER, 2000),),
                "appends_and_locks": ((_APPENDER, 2000), (_LOCKER, 50)),
            }.items():
                before, woken, began = the_sidecar.cpu(), the_sidecar.wakeups(), time.monotonic()
                running = [
                    subprocess.Popen(
                        [sys.executable, "-S", "-E", "-c", script, str(root), str(rate),
                         str(seconds), "openclaw", "gateway"],
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                    for script, rate in programs
                ]  # fmt: skip
                time.sleep(max(0.0, began + seconds - time.monotonic()))
                done = [int(program.communicate()[0]) for program in running]
                took = time.monotonic() - began
                found[name] = {
                    "percent": round((the_sidecar.cpu() - before) / took * 100, 3),
                    "wakeups_per_second": round((the_sidecar.wakeups() - woken) / took, 2),
                    "done_per_second": [round(count / took) for count in done],
                }
            found["idle_with_a_held_lock"] = _idle_with_a_held_lock(the_sidecar, root, seconds)
            return found


def _idle_with_a_held_lock(sidecar: Sidecar, root: Path, seconds: float) -> dict[str, float]:
    holder = Holder()
    try:
        holder.hold(sessions(root, "agent0") / "held.jsonl.lock")
        holder.settle()
        until(lambda: sidecar.held() == 1, "held")
        time.sleep(1)
        before, woken, began = sidecar.cpu(), sidecar.wakeups(), time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        return {
            "percent": round((sidecar.cpu() - before) / took * 100, 3),
            "wakeups_per_second": round((sidecar.wakeups() - woken) / took, 2),
        }
    finally:
        holder.close()


def memory(count: int = 10_000) -> dict[str, Any]:
    """Measure resident memory: idle, with many held locks of a gateway, after ten more sweeps."""
    with state_dir() as root:
        holder = Holder()
        try:
            with sidecar(root) as the_sidecar:
                the_sidecar.get("/metrics")
                idle = the_sidecar.rss_mib()
                for number in range(count):
                    holder.hold(sessions(root, f"agent{number % 50}") / f"{number}.jsonl.lock")
                holder.settle()
                until(lambda: the_sidecar.held() == count, "all held", every=2.0)
                held = the_sidecar.rss_mib()
                for _ in range(10):
                    the_sidecar.sweep()
                return {
                    "idle_mib": round(idle, 1),
                    "held_mib": round(held, 1),
                    "swept_mib": round(the_sidecar.rss_mib(), 1),
                }
        finally:
            holder.close()


def unseen(count: int = 10_000, seconds: float = 20.0) -> dict[str, Any]:
    """Measure the CPU time of polling many held locks with a holder that cannot be waited for."""
    with state_dir() as root:
        holder = Holder()
        try:
            for number in range(count):
                path = sessions(root, f"agent{number % 50}") / f"{number}.jsonl.lock"
                holder.hold(path, unseen=True)
            holder.settle()
            with sidecar(root) as the_sidecar:
                until(lambda: the_sidecar.held() == count, "all held")
                time.sleep(2)
                before, began = the_sidecar.cpu(), time.monotonic()
                time.sleep(seconds)
                took = time.monotonic() - began
                return {
                    "percent": round((the_sidecar.cpu() - before) / took * 100, 2),
                    "locks": count,
                }
        finally:
            holder.close()


def scrape(agents: int = 200, rounds: int = 50) -> dict[str, Any]:
    """Measure a scrape of /metrics with held locks of many agents: as plain text without changes;
    compressed, as for Prometheus; and the same while 20 agents change a lock between two scrapes.
    """
    with state_dir() as root:
        holder = Holder()
        locks = {
            agent: [sessions(root, f"agent{agent}") / f"{number}.jsonl.lock" for number in range(5)]
            for agent in range(agents)
        }
        taken = iter(range(5, 1_000_000))

        def change() -> None:
            for agent in range(20):
                locks[agent].pop(0).unlink()
                locks[agent].append(sessions(root, f"agent{agent}") / f"{next(taken)}.jsonl.lock")
                holder.hold(locks[agent][-1])
            holder.settle()
            time.sleep(0.5)  # the sidecar checks new locks after 0.25 s

        try:
            for path in (path for paths in locks.values() for path in paths):
                holder.hold(path)
            holder.settle()
            with sidecar(root) as the_sidecar:
                until(lambda: the_sidecar.held() == agents * 5, "all held")
                return {
                    "plain": _scrapes(the_sidecar, {}, rounds),
                    "as_prometheus": _scrapes(the_sidecar, _AS_PROMETHEUS, rounds),
                    "beside_changes": _scrapes(the_sidecar, _AS_PROMETHEUS, rounds, between=change),
                }
        finally:
            holder.close()


def _scrapes(
    sidecar: Sidecar,
    headers: Mapping[str, str],
    rounds: int,
    *,
    between: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    took = []
    cpu = 0.0
    for _ in range(rounds):
        between()
        before, began = sidecar.cpu(), time.monotonic()
        body = sidecar.fetch("/metrics", headers)
        took.append(time.monotonic() - began)
        cpu += sidecar.cpu() - before
    text = zlib.decompress(body, wbits=31) if body.startswith(b"\x1f\x8b") else body
    series = sum(not line.startswith(b"#") for line in text.splitlines())
    return {
        **percentiles(took),
        "cpu_ms": round(cpu / rounds * 1000, 1),
        "series": series,
        "bytes": len(body),
    }


SCENARIOS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "due": due,
    "processor": processor,
    "memory": memory,
    "unseen": unseen,
    "scrape": scrape,
}


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for name in sys.argv[1:] or SCENARIOS:
        print(json.dumps({name: SCENARIOS[name]()}), flush=True)
