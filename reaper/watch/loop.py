"""The loop: waits for what may change a verdict, judges what is due, stops cleanly.

One worker judges and acts, so that no two actions race. It sleeps until a file event, the death of
a holder (its pidfd), the moment a lock is due, or the next full sweep.
"""

import gc
import time
from collections.abc import Mapping
from typing import Final

from reaper.adapters.file_events import CREATED, DELETED
from reaper.core.finding import Finding, Skipped
from reaper.core.lock import LockKey
from reaper.gateway_health import GatewayHealth
from reaper.reports.inventory import LockInventory
from reaper.reports.journal import Journal
from reaper.reports.metrics import Metrics
from reaper.sweep import Reaper, Unseen
from reaper.watch.deadlines import Deadlines
from reaper.watch.event_trust import EventTrust
from reaper.watch.holders import HolderWatch
from reaper.watch.inbox import Inbox, Notice
from reaper.watch.probed_holders import ProbedHolders
from reaper.watch.reporter import Reporter
from reaper.watch.sweeps import SkippedFiles, Sweeps
from reaper.watch.tracker import Tracker

_RETRY: Final = 1.0
"""Seconds to wait after a system call failed."""
_URGENT_EVERY: Final = 0.0005
"""Seconds between two checks for urgent work during a full sweep. A check takes 3 µs."""
_LATE: Final = 10.0
"""How many seconds late the loop may be before it counts as stopped."""


class Watch:
    """Watches, judges and acts until it is stopped. Only the worker uses the parts and methods,
    unless a comment says otherwise.
    """

    def __init__(
        self,
        reaper: Reaper,
        *,
        resync: float,
        inventory: LockInventory,
        health: GatewayHealth,
        metrics: Metrics,
        journal: Journal,
    ) -> None:
        self.reaper = reaper
        self.inventory = inventory
        reporter = Reporter(inventory, metrics, journal)
        most = reaper.most_remembered
        # Two events for each lock: its creation and its end.
        self.inbox = Inbox(2 * most, is_known=lambda key: inventory.get(key) is not None)
        self.deadlines = Deadlines()
        self.holders = HolderWatch(self.inbox.fd)
        self.probed_holders = ProbedHolders(reaper.is_held)
        self.trust = EventTrust(self.inbox, reporter, resync=resync)
        self.sweeps = Sweeps(self.trust, reporter, longest_retry=resync)
        self.tracker = Tracker(
            reporter,
            health,
            self.deadlines,
            self.holders,
            self.probed_holders,
            most_per_agent=most,
            longest_retry=resync,
        )
        self._expected_by = time.monotonic()

    # Called from other threads and from signal handlers

    @property
    def wake_fd(self) -> int:
        """The descriptor for signal.set_wakeup_fd."""
        return self.inbox.wake_fd

    def stop(self) -> None:
        """End the loop after the current action."""
        self.inbox.send(Notice.STOP)

    def sweep_soon(self) -> None:
        """Request a full sweep now."""
        self.inbox.send(Notice.SWEEP)

    def stopped_at(self) -> float | None:
        """Return when the loop stopped (monotonic seconds): something was due then and is more than
        10 s late. None while the loop is alive.
        """
        due = self._expected_by
        return None if time.monotonic() < due + _LATE else due

    def healthy(self) -> bool:
        """Whether the loop is alive."""
        return self.stopped_at() is None

    def ready(self) -> bool:
        """Whether the last full sweep saw every folder, and found an `agents` in each state
        directory.
        """
        return not self.sweeps.not_ready_because

    def not_ready_because(self) -> str:
        """Why it is not `ready`, without a path."""
        return self.sweeps.not_ready_because

    # The worker

    def run(self) -> None:
        """Watch until `stop`. All work of the worker happens in this thread."""
        self.trust.source.start()
        while not self.inbox.has(Notice.STOP):
            try:
                self._step()
                self.sweeps.step_ended()
            except OSError as error:
                # A system call that fails for a moment must not end the watch. A request to sweep
                # now must not skip the wait until the next attempt.
                self.inbox.take(Notice.SWEEP)
                self.sweeps.failed(error, time.monotonic())
                self.holders.wait(_RETRY)

    def close(self) -> None:
        """Stop following events and close all descriptors. Call it after `run` has returned, when
        nothing uses `wake_fd`.
        """
        self.trust.source.stop()
        self.holders.close()
        self.inbox.close()

    def _step(self) -> None:
        if self._take_notices():
            self.sweep()
        now = time.monotonic()
        self.act_on(self.deadlines.pop_due(now))
        self.act_on(self.probed_holders.no_longer_held(now))
        self.trust.check(now)
        parts = (self.sweeps, self.deadlines, self.probed_holders, self.trust)
        ready = self._sleep(until=min(part.next() for part in parts))
        self.act_on(self.holders.exited(ready, time.monotonic()))
        self.handle_events()

    def _take_notices(self) -> bool:
        """Handle the notices. Return whether a full sweep is due."""
        if self.inbox.take(Notice.EVENTS_LOST):
            self.trust.lost("file events were lost: the kernel's queue overflowed")
        if self.inbox.take(Notice.FOLDERS_CHANGED):
            self.sweeps.folders_changed()
        return self.inbox.take(Notice.SWEEP) or time.monotonic() >= self.sweeps.next()

    def _sleep(self, until: float) -> list[tuple[int, int]]:
        self._expected_by = until = self.inbox.sleep_until(until)
        ready = self.holders.wait(until - time.monotonic())
        self._expected_by = time.monotonic()
        self.inbox.clear_wakes()
        return ready

    def handle_events(self) -> None:
        """Handle the file events that are queued."""
        events, crowded = self.inbox.drain()
        self.trust.dropped(crowded)
        for key, what, at in events:
            self.trust.announced(key)
            if what == DELETED:
                self.tracker.ended(key, at)
                self.reaper.forget(key)
            elif not self.tracker.appeared(key, at, is_new=what == CREATED):
                self.trust.dropped({(key.state, key.agent)})

    def sweep(self) -> None:
        """Judge all locks and act on them, and meanwhile handle what cannot wait for the end of the
        sweep.
        """
        # Garbage collection among 10,000 remembered locks takes 0.1 s, in which no death is seen.
        # A sweep leaves almost no garbage.
        gc.disable()
        try:
            self._sweep()
        finally:
            gc.enable()

    def _sweep(self) -> None:
        started = checked_at = time.monotonic()
        self.handle_events()
        self.trust.follow(self.reaper.states)
        seen: set[LockKey] = set()
        unseen, files = Unseen(), SkippedFiles(self.reaper.most_remembered)
        others: list[Finding] = []
        for found in self.reaper.act():
            self._expected_by = time.monotonic()
            unseen.add(found)
            if found.key is not None:
                seen.add(found.key)
            match found:
                case Skipped():
                    files.add(found)
                case Finding() if found.lock.kind:
                    others.append(found)
                case Finding():
                    if found.key not in self.tracker:
                        self.trust.expect(found, started, time.monotonic())
                    self.tracker.update(found, time.monotonic())
            if self.inbox.has(Notice.STOP):
                return
            if time.monotonic() - checked_at >= _URGENT_EVERY:
                self._handle_urgent()
                checked_at = time.monotonic()
        self.trust.swept()  # first: only the next sweep finds what handle_events drops
        self.handle_events()
        self.tracker.forget_all_but(seen, unseen.hides, started)
        now = time.monotonic()
        self.inventory.set_watched_folders(self.reaper.watched_folders())
        self.sweeps.saw_others(others)
        self.sweeps.ended(started, now, files)
        self.holders.close_idle()

    def _handle_urgent(self) -> None:
        """Handle events, deaths and deadlines during a full sweep, which can take seconds."""
        self.handle_events()
        ready, now = self.holders.wait(0), time.monotonic()
        self.act_on(self.holders.exited(ready, now) | self.deadlines.pop_due(now))

    def act_on(self, due: Mapping[LockKey, float]) -> None:
        """Judge some locks again, and act on them. `due` has the time since when each was due."""
        if not due:
            return
        gone = set(due)
        unseen = Unseen()
        for found in self.reaper.act(frozenset(due)):
            unseen.add(found)
            if found.key is not None:
                gone.discard(found.key)
                now = time.monotonic()
                match found:
                    case Skipped():
                        self.tracker.look_again(found.key, found.reason, now)
                    case Finding():
                        self.tracker.update(found, now, due_since=due.get(found.key))
            if self.inbox.has(Notice.STOP):
                return
        for key in gone:
            if unseen.hides(key):
                self.tracker.look_again(key, "its folder was not seen", time.monotonic())
            else:
                self.tracker.forget(key)
