"""Whether file events can be trusted, and how often to sweep because of that."""

import math
import time
from collections.abc import Iterable
from typing import Final

from reaper.adapters.file_events import CREATED, DELETED, EventSource
from reaper.core.finding import Finding
from reaper.core.lock import LockKey, StateDir
from reaper.watch.inbox import Event, Inbox, Notice
from reaper.watch.reporter import Reporter

_MISSING_RESYNC: Final = 2.0
"""Seconds between two sweeps while a state directory does not exist."""
DEGRADED_RESYNC: Final = 5.0
"""Seconds between two sweeps while events are missing, or while a lock that may be live is without
its name because a removal was interrupted."""
PATIENCE: Final = 1.0
"""Seconds that a file event may be late before it counts as missed."""
_SWEEPS_TO_RECOVER: Final = 12
"""Sweeps in a row that find nothing unannounced before events are trusted again."""


class EventTrust:
    """Follows the state directories, passes their events on, and notices missed ones."""

    def __init__(self, inbox: Inbox, reporter: Reporter, *, resync: float) -> None:
        self._inbox = inbox
        self._resync = resync
        self._metrics = reporter.metrics
        self._journal = reporter.journal
        self.source = EventSource(
            on_lock=self._on_lock,
            on_change=lambda: inbox.send(Notice.FOLDERS_CHANGED),
            on_overflow=self._on_overflow,
            on_warning=self._on_warning,
        )
        self._expected: dict[LockKey, float] = {}
        """Locks that no event has announced yet, the one that was found first in front."""
        self._crowded: set[tuple[StateDir, str]] = set()
        self._is_missing = False
        self._is_degraded = False
        self._clean_sweeps = 0

    # Called from watchdog's thread

    def _on_lock(self, state: StateDir, agent: str, name: str, what: str) -> None:
        self._metrics.events.labels(DELETED if what == DELETED else CREATED).inc()
        self._inbox.put(Event(LockKey(state, agent, name), what, time.monotonic()))

    def _on_overflow(self) -> None:
        self._metrics.events.labels("overflow").inc()
        self._inbox.send(Notice.EVENTS_LOST)
        self._inbox.send(Notice.SWEEP)

    def _on_warning(self, text: str) -> None:
        self._metrics.errors.labels("observer").inc()
        self._journal.warn("observer-warning", why=text)

    # Called by the worker

    def follow(self, states: Iterable[StateDir]) -> None:
        """Follow the folders that exist now."""
        self._is_missing = False
        up = True
        for state in states:
            if self.source.follow(state):
                continue
            why = self.source.errors.get(state)
            if why is None:
                self._is_missing = True
            else:
                up = False
                self._metrics.errors.labels("observer").inc()
                self.lost(f"file events are missing for {state.path}: {why}")
        self._metrics.observer_up.set(up and not self._is_degraded)

    def expect(self, found: Finding, started: float, now: float) -> None:
        """Expect the event of a lock that a sweep found first and that was created well after its
        folder was followed. It is late, or was missed. The lock's age counts to when the sweep
        `started`, which can be long ago.
        """
        state, agent = found.key.state, found.key.agent
        if (state, agent) in self._crowded:
            return
        since = self.source.followed_since(state, agent)
        if since is not None and found.evidence.file_age < started - since - PATIENCE:
            self._expected.setdefault(found.key, now)

    def announced(self, key: LockKey) -> None:
        self._expected.pop(key, None)

    def dropped(self, agents: Iterable[tuple[StateDir, str]]) -> None:
        """Expect nothing from agents whose events were dropped, until the current sweep ends, or
        the next one.
        """
        self._crowded.update(agents)

    def check(self, now: float) -> None:
        """Stop trusting events if one is too late."""
        missed = [key for key, at in self._expected.items() if at + PATIENCE <= now]
        for key in missed:
            del self._expected[key]
        if missed:
            self.lost(
                f"{len(missed)} lock(s) were found that no file event announced "
                "(the file system has no events?)"
            )

    def next(self) -> float:
        """Return when to check again, infinity if nothing is expected."""
        return next(iter(self._expected.values()), math.inf) + PATIENCE

    def lost(self, why: str) -> None:
        """Stop trusting events, and sweep more often."""
        self._clean_sweeps = 0
        self._metrics.observer_up.set(0)
        if not self._is_degraded:
            self._is_degraded = True
            self._journal.warn("events-missing", why=why, sweeping_every=self.resync_interval)

    def swept(self) -> None:
        """Trust events again after enough sweeps that found nothing unannounced."""
        self._crowded.clear()
        if self._is_degraded and not self.source.errors:
            self._clean_sweeps += 1
            if self._clean_sweeps >= _SWEEPS_TO_RECOVER:
                self._is_degraded = False
                self._metrics.observer_up.set(1)
                self._journal.info("events-again", sweeping_every=self._resync)

    @property
    def resync_interval(self) -> float:
        """Seconds from one sweep to the next."""
        if self._is_degraded:
            return min(self._resync, DEGRADED_RESYNC)
        return min(self._resync, _MISSING_RESYNC) if self._is_missing else self._resync
