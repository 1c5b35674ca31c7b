"""How many locks were stuck in each minute of the last hour."""

from collections import deque
from typing import Final

MINUTES: Final = 60


class StuckHistory:
    """The highest number of stuck locks in each minute. It gets only changes, so it wakes no
    thread; the minutes between two changes are filled in later. Times are monotonic seconds. Not
    thread-safe.
    """

    def __init__(self) -> None:
        self._minute: int | None = None
        self._stuck = 0
        self._most: deque[int] = deque(maxlen=MINUTES)

    def record(self, stuck: int, now: float) -> None:
        """Set how many locks are stuck from now on."""
        self._go_on(now)
        self._stuck = stuck
        self._most[-1] = max(self._most[-1], stuck)

    def last_hour(self, now: float) -> list[int]:
        """Return the minutes up to `now`, the latest last: at most MINUTES, none from before the
        first record.
        """
        if self._minute is None:
            return []
        self._go_on(now)
        return list(self._most)

    def _go_on(self, now: float) -> None:
        minute = int(now // 60)
        if self._minute is None:
            self._most.append(0)
        else:
            passed = min(MINUTES, max(0, minute - self._minute))
            self._most.extend([self._stuck] * passed)
            minute = max(minute, self._minute)
        self._minute = minute
