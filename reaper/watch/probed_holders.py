"""Notices when a holder that cannot be waited for no longer holds its locks."""

import math
from collections.abc import Callable
from typing import Final

from reaper.core.lock import FileId, Lock, LockKey, StateDir

_EVERY: Final = 1.0
"""Seconds between two probes."""

_Holder = tuple[StateDir, int | None, int | None] | LockKey
"""State directory, pid and start time as recorded; the lock itself if its record has neither."""


class ProbedHolders:
    """Locks that were seen to be held, by holder. `is_held` probes one lock."""

    def __init__(self, is_held: Callable[[LockKey, FileId], bool]) -> None:
        self.is_held = is_held
        self._locks: dict[_Holder, dict[LockKey, FileId]] = {}
        self._holder_of: dict[LockKey, _Holder] = {}
        self._next = 0.0

    def __len__(self) -> int:
        return len(self._locks)

    def add(self, key: LockKey, lock: Lock, now: float) -> None:
        if not self._locks:
            self._next = now + _EVERY
        pid, starttime = lock.record.pid, lock.record.starttime
        is_named = pid is not None and starttime is not None
        holder = self._holder_of[key] = (key.state, pid, starttime) if is_named else key
        self._locks.setdefault(holder, {})[key] = lock.file

    def discard(self, key: LockKey) -> None:
        holder = self._holder_of.pop(key, None)
        if holder is not None:
            del self._locks[holder][key]
            if not self._locks[holder]:
                del self._locks[holder]

    def next(self) -> float:
        """Return when the next probes are due, infinity if there is nothing to probe."""
        return self._next if self._locks else math.inf

    def no_longer_held(self, now: float) -> dict[LockKey, float]:
        """When the probes are due, probe locks of each holder until one is held, because then the
        holder is alive. If it is dead, the first probe shows it. Forget the locks that are no
        longer held, and return them, each with the time when its probe was due.
        """
        if now < self.next():
            return {}
        gone: dict[LockKey, float] = {}
        for locks in self._locks.values():
            for key, file in locks.items():
                if self.is_held(key, file):
                    break
                gone[key] = self._next
        for key in gone:
            self.discard(key)
        self._next = now + _EVERY
        return gone
