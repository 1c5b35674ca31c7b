"""What happens in the demo, and the captions that say so once it is true."""

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from rich.console import Console

from reaper.adapters.processes import use_of
from reaper.core.lock import StateDir
from reaper.core.policy import Policy
from reaper.core.verdict import Limits, Verdict
from reaper.core.wedged import WedgedLimits
from reaper.demo.actors import Gateway, end_run, gateway
from reaper.demo.screen import LiveScreen, Log, PlainScreen
from reaper.gateway_health import GatewayHealth
from reaper.reports.inventory import LockInventory
from reaper.reports.journal import Journal
from reaper.reports.metrics import Metrics
from reaper.reports.records import TrackedLock
from reaper.sweep import Reaper
from reaper.watch.loop import Watch
from reaper.web.app import WebServer
from reaper.web.page import View
from reaper.web.server import Address
from reaper.web.state import Host

_LIMITS: Final = Limits(orphan_grace=4.0, abandoned_after=12.0, confirm=3.0)
_READING: Final = 2.5
"""Seconds that a caption stays."""
_PATIENCE: Final = 60.0
"""Seconds after which something that should have happened counts as failed."""
_BEGINNING: Final = "A demo of 30 seconds, in a folder of its own, with real processes."
_END: Final = "Now try: reaper list, which shows your own locks and changes nothing."


def run(console: Console) -> bool:
    """Show what the reaper does, for about 30 seconds. Return whether it did all of it. Ctrl-C ends
    it sooner.

    Shows a live table on a terminal, lines of text elsewhere. Call `hold_proof.prepare` first.
    """
    print(_BEGINNING, file=console.file, flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="reaper-demo-") as folder,
        ExitStack() as holders,
        ExitStack() as cleanup,  # the sidecar stops before the demo's gateways are killed
    ):
        root = Path(folder) / "demo"
        (root / "agents" / "main" / "sessions").mkdir(parents=True)
        inventory = LockInventory()
        screen: LiveScreen | PlainScreen = (
            LiveScreen(console, inventory) if console.is_terminal else PlainScreen(console)
        )
        log = Log(screen)
        address = _start_sidecar(root, inventory, log, cleanup)
        if isinstance(screen, LiveScreen):
            screen.address = address
        cleanup.enter_context(screen)
        done = _Story(root, inventory, screen, log, holders).play()
    print(_END, file=console.file, flush=True)
    return done


def _start_sidecar(root: Path, inventory: LockInventory, log: Log, cleanup: ExitStack) -> str:
    """Start the watch loop and its page, as `reaper watch` does; return the page's address."""
    state, policy = StateDir("demo", str(root)), Policy()
    metrics = Metrics(
        inventory,
        version="demo",
        states=[state.name],
        policy=policy,
        acquire_timeout=60.0,
        now=time.monotonic,
        holder_use=use_of,
    )
    health = GatewayHealth(inventory, WedgedLimits())
    watch = Watch(
        Reaper([state], limits=_LIMITS, policy=policy),
        resync=3.0,  # the watch asks for no event when a file is closed
        inventory=inventory,
        health=health,
        metrics=metrics,
        journal=Journal(log, json=True),  # type: ignore[arg-type]  # as much of a stream as a journal needs
    )
    view = View(
        inventory,
        metrics,
        version="demo",
        host=Host(socket.gethostname(), os.geteuid()),
        states=[state],
        policy=policy,
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
    return f"http://127.0.0.1:{port}/"


class _Story:
    """Starts and stops the processes, waits for what the reaper does, and says so."""

    def __init__(
        self,
        root: Path,
        inventory: LockInventory,
        screen: LiveScreen | PlainScreen,
        log: Log,
        holders: ExitStack,
    ) -> None:
        self._root = root
        self._sessions = root / "agents" / "main" / "sessions"
        self._inventory = inventory
        self._screen = screen
        self._log = log
        self._holders = holders

    def play(self) -> bool:
        """Return whether the reaper removed what it should, and nothing else."""
        # First, because a gateway that is younger than the run cannot have written the trajectory.
        stuck = self._start("run-timed-out")
        self._hold("healthy")
        self._say("'healthy': a gateway holds this lock and works. The reaper keeps it.")
        killed = self._hold("killed")
        self._say("'killed': another gateway holds this lock ...")
        killed.process.kill()
        done = self._removed("killed", "'killed': the gateway was killed, and its lock is gone.")

        began_ms = time.time_ns() // 1_000_000
        stuck.send("take")
        end_run(self._sessions, "run-timed-out", began_ms)
        self._until(lambda: self._verdict("run-timed-out") is not None)
        self._say("'run-timed-out': this run is over, but its gateway keeps the lock.")

        forgetful = self._hold("forgotten")
        forgetful.send("forget")
        self._say("'forgotten': this gateway closed its lock file and did not delete it.")
        self._until(lambda: self._verdict("forgotten") is not Verdict.HELD)
        if "forgotten" not in self._log.removed:
            grace = _LIMITS.orphan_grace
            self._say(f"'forgotten': the reaper makes sure for {grace:.0f} s that it stays closed.")
        done &= self._removed("forgotten", "'forgotten': its lock was removed.")
        if "run-timed-out" not in self._log.removed:
            quiet = _LIMITS.abandoned_after
            self._say(f"'run-timed-out': the reaper waits for {quiet:.0f} s without a write ...")
        text = "'run-timed-out': its lock was removed, though the gateway still runs."
        done &= self._removed("run-timed-out", text)
        if not (self._sessions / "healthy.jsonl.lock").exists():
            self._say("'healthy': its lock is gone, which must never happen.")
            return False
        self._say("'healthy': its lock is still there. The reaper never touched it.")
        return done

    def _start(self, session: str) -> Gateway:
        lock = self._sessions / f"{session}.jsonl.lock"
        return self._holders.enter_context(gateway(lock, self._root))

    def _hold(self, session: str) -> Gateway:
        """Have a gateway take a lock, and wait until the reaper has found it held."""
        holder = self._start(session)
        holder.send("take")
        self._until(lambda: self._verdict(session) is Verdict.HELD)
        return holder

    def _removed(self, session: str, text: str) -> bool:
        """Show the text once the lock was removed. Return whether it was."""
        if self._until(lambda: session in self._log.removed):
            self._say(text)
            return True
        seen = self._known(session)
        why = "unknown"
        if seen is not None:
            why = ", ".join(seen.judgement.reasons) or seen.judgement.verdict.value
        self._say(f"'{session}': its lock was not removed ({why}).")
        return False

    def _say(self, text: str) -> None:
        self._screen.caption(text)
        self._until(lambda: False, _READING)

    def _until(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        end = time.monotonic() + (_PATIENCE if seconds is None else seconds)
        while not condition():
            if time.monotonic() >= end:
                return False
            self._screen.refresh()
            time.sleep(0.1)
        return True

    def _known(self, session: str) -> TrackedLock | None:
        return next((one for one in self._inventory.all() if one.lock.session == session), None)

    def _verdict(self, session: str) -> Verdict | None:
        seen = self._known(session)
        return None if seen is None else seen.judgement.verdict
