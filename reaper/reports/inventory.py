"""What is known of all locks, kept for the page, the JSON and the metrics."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from reaper.core.policy import GONE, Outcome
from reaper.reports.records import RecentAction, SkippedFile, TrackedLock
from reaper.reports.stuck_history import StuckHistory
from reaper.reports.tally import Tallies

_ACTIONS: Final = 50
"""Actions that are remembered for the page."""
_COUNTED: Final = 1000
"""Actions that are counted, by lock and outcome."""


class LockInventory:
    """What is known about all locks, shared between the worker and its readers; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[object, TrackedLock] = {}
        self._skipped: list[SkippedFile] | None = None
        self._others: list[TrackedLock] = []
        self._watched_folders: dict[str, int] = {}
        self._actions: dict[tuple[str, str], RecentAction] = {}
        self._times: dict[tuple[str, str], int] = {}
        self._tallies = Tallies()
        self._history = StuckHistory()

    def put(self, place: object, seen: TrackedLock) -> TrackedLock | None:
        """Set what is known about a lock. Return what was known before."""
        with self._lock:
            before = self._seen.get(place)
            self._seen[place] = seen
            self._change(before, seen)
            return before

    def drop(self, place: object) -> TrackedLock | None:
        with self._lock:
            before = self._seen.pop(place, None)
            self._change(before, None)
            return before

    def _change(self, before: TrackedLock | None, after: TrackedLock | None) -> None:
        stuck = self._tallies.stuck
        self._tallies.change(before, after)
        if self._tallies.stuck != stuck:
            self._history.record(self._tallies.stuck, time.monotonic())

    def get(self, place: object) -> TrackedLock | None:
        with self._lock:
            return self._seen.get(place)

    def set_skipped(self, skipped: Iterable[SkippedFile]) -> None:
        with self._lock:
            self._skipped = list(skipped)
            self._history.record(self._tallies.stuck, time.monotonic())

    def set_others(self, seen: Iterable[TrackedLock]) -> None:
        """Keep the other locks that a full sweep found, without those that are gone now."""
        self._others = [one for one in seen if one.outcome not in GONE]

    def others(self) -> list[TrackedLock]:
        """Return the other locks of the last full sweep."""
        return self._others

    def set_watched_folders(self, counts: Mapping[str, int]) -> None:
        """Keep how many `sessions` folders each state directory has, by a full sweep."""
        self._watched_folders = dict(counts)

    def watched_folders(self) -> Mapping[str, int]:
        """Return these counts by state directory; empty before the first full sweep has ended."""
        return self._watched_folders

    def remember(self, record: dict[str, Any], at_ms: int) -> None:
        """Keep an action, as `lock_record` returns it. The last _ACTIONS are kept. The same outcome
        for the same lock is only counted, so a removal that fails each second pushes nothing out.
        """
        key = (record["path"], record["outcome"])
        with self._lock:
            times = self._times.pop(key, 0) + 1
            self._actions.pop(key, None)
            self._times[key] = times
            self._actions[key] = RecentAction(record=record, at_ms=at_ms, times=times)
            for remembered, most in ((self._actions, _ACTIONS), (self._times, _COUNTED)):
                if len(remembered) > most:
                    del remembered[next(iter(remembered))]

    def recent_actions(self) -> list[RecentAction]:
        """Return what is remembered, the latest first."""
        with self._lock:
            return list(reversed(self._actions.values()))

    def times_removed(self, path: str) -> int:
        """Return how often a lock with this path was removed, as far as that is remembered."""
        with self._lock:
            return self._times.get((path, Outcome.REMOVED.value), 0)

    def stuck_in_last_hour(self, now: float) -> list[int]:
        """Return the highest number of stuck locks in each minute up to `now` (monotonic seconds),
        the latest last. Empty before the first look.
        """
        with self._lock:
            return self._history.last_hour(now)

    def all(self) -> list[TrackedLock]:
        with self._lock:
            return list(self._seen.values())

    @contextmanager
    def tallies(self) -> Iterator[Tallies]:
        """Yield the totals while holding the mutex. Return quickly, and call no other method of
        this object.
        """
        with self._lock:
            yield self._tallies

    def skipped(self) -> list[SkippedFile]:
        with self._lock:
            return list(self._skipped or ())

    def has_swept(self) -> bool:
        """Whether a full sweep has ended, so that what was skipped is known."""
        return self._skipped is not None
