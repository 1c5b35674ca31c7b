"""The demo: a state directory of its own, real processes in the roles of the gateway, and the real
watch loop on it. Nothing of it is left behind.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from reaper.adapters.processes import use_of
from reaper.core.lock import StateDir, iso
from reaper.core.policy import Policy
from reaper.core.verdict import STUCK, Limits
from reaper.core.wedged import WedgedLimits
from reaper.gateway_health import GatewayHealth
from reaper.reports.explain import duration
from reaper.reports.inventory import LockInventory
from reaper.reports.journal import Journal
from reaper.reports.metrics import Metrics
from reaper.reports.output import VERDICT_STYLES
from reaper.sweep import Reaper
from reaper.watch.loop import Watch
from reaper.web.app import WebServer
from reaper.web.page import View
from reaper.web.server import Address
from reaper.web.state import Host

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


class _Gateway:
    """A process that takes and holds one lock as a gateway does."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def tell(self, command: str) -> None:
        """Have it take the lock, or forget it; return when that is done."""
        if self.process.stdin is not None and self.process.stdout is not None:
            self.process.stdin.write(f"{command}\n")
            self.process.stdin.flush()
            self.process.stdout.readline()


@contextmanager
def _gateway(path: Path) -> Iterator[_Gateway]:
    process = subprocess.Popen(  # noqa: S603  # our own interpreter and script
        [sys.executable, "-c", _HOLDER, str(path), "openclaw.mjs", "gateway", "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            if process.stdout is not None:
                process.stdout.readline()
            yield _Gateway(process)
        finally:
            process.kill()


_LIMITS: Final = Limits(orphan_grace=4.0, abandoned_after=12.0, confirm=3.0)
_SECONDS: Final = 30.0
_LINES: Final = 8


class _LastLines:
    """A stream that keeps the last lines written to it."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=_LINES)

    def write(self, text: str) -> int:
        self.lines.extend(line for line in text.splitlines() if line.strip())
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


def run(console: Console) -> None:
    """Show what the reaper does, for about 30 seconds; Ctrl-C ends it sooner.

    On a terminal as a live table, elsewhere as journal lines. Needs `hold_proof.prepare` before.
    """
    with (
        tempfile.TemporaryDirectory(prefix="reaper-demo-") as folder,
        ExitStack() as holders,
        ExitStack() as cleanup,  # the sidecar stops before its holders are killed
    ):
        root = Path(folder) / "demo"
        sessions = root / "agents" / "main" / "sessions"
        sessions.mkdir(parents=True)
        state = StateDir("demo", str(root))
        inventory = LockInventory()
        metrics = Metrics(
            inventory,
            version="demo",
            states=[state.name],
            policy=Policy(),
            acquire_timeout=60.0,
            now=time.monotonic,
            holder_use=use_of,
        )
        lines = _LastLines()
        journal = Journal(lines if console.is_terminal else console.file, json=False)  # type: ignore[arg-type]  # as much of a stream as a journal needs
        reaper = Reaper([state], limits=_LIMITS, policy=Policy())
        health = GatewayHealth(inventory, WedgedLimits())
        watch = Watch(
            reaper,
            resync=20.0,
            inventory=inventory,
            health=health,
            metrics=metrics,
            journal=journal,
        )
        view = View(
            inventory,
            metrics,
            version="demo",
            host=Host(socket.gethostname(), os.geteuid()),
            states=[state],
            policy=Policy(),
            acquire_timeout=60.0,
            stopped_at=watch.stopped_at,
            not_ready_because=watch.not_ready_because,
        )
        web = WebServer(
            metrics.registry,
            view,
            gateway=lambda: health.answer(fresh=True),
        )
        (port,) = web.start([Address("127.0.0.1", 0)])
        cleanup.callback(web.stop)
        worker = threading.Thread(target=watch.run, name="watch")
        worker.start()
        cleanup.callback(watch.close)
        cleanup.callback(worker.join)
        cleanup.callback(watch.stop)
        live = (
            cleanup.enter_context(Live(console=console, refresh_per_second=4, transient=False))
            if console.is_terminal
            else None
        )
        started = time.monotonic()
        for caption in _story(sessions, holders):
            until = min(started + _SECONDS, time.monotonic() + caption.seconds)
            while time.monotonic() < until:
                if live is not None:
                    live.update(_picture(inventory, metrics, lines, caption.text, port))
                time.sleep(0.25)


@dataclass(frozen=True, slots=True)
class _Caption:
    text: str
    seconds: float


def _story(sessions: Path, holders: ExitStack) -> Iterator[_Caption]:
    """Let the processes play their parts; yields what is going on, and for how long to look."""

    def start(session: str) -> _Gateway:
        return holders.enter_context(_gateway(sessions / f"{session}.jsonl.lock"))

    def hold(session: str) -> _Gateway:
        gateway = start(session)
        gateway.tell("take")
        return gateway

    stuck = start("run-timed-out")
    hold("healthy")
    yield _Caption("a healthy gateway holds a lock: it is kept, all the time", 3)
    killed = hold("killed")
    yield _Caption("another gateway holds a lock ...", 2)
    killed.process.kill()
    yield _Caption("... and is killed: its lock is gone at once", 2)
    began_ms = time.time_ns() // 1_000_000
    stuck.tell("take")
    _end_run(sessions, "run-timed-out", began_ms)
    yield _Caption("a run times out, and its gateway, alive, never lets go of the lock", 4)
    forgetful = hold("forgotten")
    yield _Caption("one more ...", 2)
    forgetful.tell("forget")
    wait = duration(_LIMITS.orphan_grace)
    yield _Caption(f"... closes its lock and forgets it: freed when seen so for {wait}", 6)
    wait = duration(_LIMITS.abandoned_after)
    yield _Caption(f"the run's lock is freed when all has been quiet for {wait}", 9)
    if stuck.process.poll() is None:
        yield _Caption("the healthy lock is still there: that is all", 2)


def _picture(
    inventory: LockInventory, metrics: Metrics, lines: _LastLines, caption: str, port: int
) -> Group:
    table = Table(title=caption, title_style="bold", title_justify="left", min_width=60)
    for column in ("session", "pid", "age", "verdict", "reasons"):
        table.add_column(column)
    now = time.monotonic()
    for it in sorted(inventory.all(), key=lambda it: it.lock.session):
        verdict = it.judgement.verdict.value
        table.add_row(
            it.lock.session,
            str(it.lock.record.pid or "-"),
            duration(it.age_at(now)),
            Text(verdict.upper(), style=VERDICT_STYLES[verdict]),
            ", ".join(it.judgement.reasons) or "-",
        )
    removed = sum(
        sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "reaper_actions_total" and sample.labels["outcome"] == "removed"
    )
    stuck = sum(it.judgement.verdict in STUCK for it in inventory.all())
    counts = Text(
        f"reaper_stuck_locks {stuck}   reaper_actions_total{{outcome=removed}} {removed:.0f}   "
        f"http://127.0.0.1:{port}/",
        style="dim",
    )
    journal = Text("\n".join(line.rstrip() for line in lines.lines), overflow="ellipsis")
    journal.no_wrap = True
    return Group(table, counts, journal)


def _end_run(sessions: Path, session: str, began_ms: int) -> None:
    """Write beside the lock what a 2026.5.22 gateway writes when a run times out in its tool."""
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
