"""When locks are due to be judged again."""

import heapq
import math
from typing import Final

from reaper.core.lock import LockKey

_SLACK: Final = 64


class Deadlines:
    """At most one deadline (monotonic seconds) for each lock.

    A replaced deadline stays in the heap until its time. The heap is rebuilt before more than half
    of it, and a few, have been replaced.
    """

    def __init__(self) -> None:
        self._due: dict[LockKey, float] = {}
        self._heap: list[tuple[float, LockKey]] = []

    def set(self, key: LockKey, at: float) -> None:
        """Replace a lock's deadline. Infinity means none."""
        if at == math.inf:
            self._due.pop(key, None)
            return
        if len(self._heap) > 2 * len(self._due) + _SLACK:
            self._heap = [(due, known) for known, due in self._due.items()]
            heapq.heapify(self._heap)
        self._due[key] = at
        heapq.heappush(self._heap, (at, key))

    def next(self) -> float:
        """Return the first deadline, infinity without one."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def pop_due(self, now: float) -> dict[LockKey, float]:
        """Remove the deadlines up to `now`, and return them."""
        due: dict[LockKey, float] = {}
        while self.next() <= now:
            _, key = heapq.heappop(self._heap)
            due[key] = self._due.pop(key)
        return due
