"""What other threads and signal handlers report to the worker."""

import math
import os
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from typing import Final, NamedTuple

from reaper.adapters.file_events import DELETED
from reaper.core.lock import LockKey, StateDir

SETTLE: Final = 0.25
"""Seconds after its creation that a new lock is judged. A turn's short locks are held for 2 to 180
ms (docs/facts.md) and need not be judged at all."""


class Notice(Enum):
    """What the worker must know apart from file events."""

    STOP = auto()
    SWEEP = auto()
    FOLDERS_CHANGED = auto()
    EVENTS_LOST = auto()


class Event(NamedTuple):
    """A file event of one lock: CREATED, RESTORED or DELETED, and when (monotonic seconds)."""

    key: LockKey
    what: str
    at: float


class Inbox:
    """Queues events and notices, and wakes the worker.

    `fd` becomes readable when the worker must wake. `wake_fd` is for signal.set_wakeup_fd: any
    thread may receive a signal, and the one that waits must wake. At most `most_per_agent` events
    of one agent's locks are queued. `is_known` says, in any thread, whether a lock was judged.
    """

    def __init__(self, most_per_agent: int, is_known: Callable[[LockKey], bool]) -> None:
        self.fd, self.wake_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._most_per_agent = most_per_agent
        self._is_known = is_known
        self._notices = {Notice.SWEEP}
        # Guards events only: a signal handler may interrupt the worker while the worker holds it.
        self._mutex = threading.Lock()
        self._events: list[Event] = []
        self._number_of: Counter[tuple[StateDir, str]] = Counter()
        self._due_by = math.inf
        self.wakes_at = 0.0
        """Until when the worker sleeps; 0 while it is awake."""

    def __len__(self) -> int:
        return len(self._events)

    # Called from other threads; `send` and `wake` from signal handlers too

    def send(self, notice: Notice) -> None:
        self._notices.add(notice)
        self.wake()

    def wake(self) -> None:
        with suppress(BlockingIOError):  # the pipe is full, so the worker will wake anyway
            os.write(self.wake_fd, b"\0")

    def put(self, event: Event) -> None:
        """Queue an event. Wake the worker only if it would sleep too long: a turn's short locks are
        gone before they are due to be judged, and only their time is recorded.
        """
        agent = event.key.state, event.key.agent
        is_urgent = event.what == DELETED and self._is_known(event.key)
        with self._mutex:
            # The next sweep finds what is dropped. It does not count as a missed event.
            if self._number_of[agent] < self._most_per_agent:
                self._events.append(event)
            self._number_of[agent] += 1
            self._due_by = min(self._due_by, event.at if is_urgent else event.at + SETTLE)
            wake = self._due_by < self.wakes_at
            if wake:
                self.wakes_at = self._due_by
        if wake:
            self.wake()

    # Called by the worker

    def has(self, notice: Notice) -> bool:
        return notice in self._notices

    def take(self, notice: Notice) -> bool:
        """Return whether there is such a notice, and forget it."""
        found = notice in self._notices
        self._notices.discard(notice)
        return found

    def drain(self) -> tuple[list[Event], set[tuple[StateDir, str]]]:
        """Return what is queued, and the agents some of whose events were dropped. The worker is
        awake, and drains again before it sleeps.
        """
        with self._mutex:
            queued, self._events = self._events, []
            most = self._most_per_agent
            crowded = {agent for agent, number in self._number_of.items() if number > most}
            self._number_of.clear()
            self._due_by = math.inf
            self.wakes_at = 0.0
        return queued, crowded

    def sleep_until(self, at: float) -> float:
        """Return until when the worker may sleep, at most `at`. What is due sooner wakes it."""
        with self._mutex:
            self.wakes_at = min(at, self._due_by)
            return self.wakes_at

    def clear_wakes(self) -> None:
        """Make `fd` unreadable. Call it after a sleep, before looking at notices and events."""
        with suppress(BlockingIOError):
            os.read(self.fd, 65536)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.wake_fd)
