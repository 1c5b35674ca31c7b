"""What is remembered about locks between two looks."""

from collections import OrderedDict
from typing import Final

from reaper.core.evidence import EarlierLock
from reaper.core.lock import Lock

_EARLIER_LOCKS: Final = 8
"""Locks of one session that are remembered; the newest count."""
_SESSIONS: Final = 1000
"""Sessions of one agent whose earlier locks are remembered; those that were locked last count."""


class LockHistory:
    """What is remembered about one lock: it ends with the file.

    `ages` holds, for each kind of age, the instant it counts from (epoch ms), the age at the first
    look and the monotonic time then. Later ages grow from these, so a step of the wall clock ages
    nothing. `since` is since when `unchanged`, all that was seen, is the same (monotonic seconds).
    """

    __slots__ = (
        "_identity",
        "ages",
        "seen_alive_as",
        "seen_as_other_program",
        "since",
        "unchanged",
    )

    def __init__(self, lock: Lock, *, since: float) -> None:
        self._identity = lock.identity
        self.since = since
        self.unchanged: object = None
        self.ages: dict[str, tuple[int, float, float]] = {}
        self.seen_alive_as: int | None = None
        self.seen_as_other_program = False

    def is_of(self, lock: Lock) -> bool:
        """Tell whether this is the same lock: the same file, unchanged. An empty file that gets the
        inode number of one that is gone has another ctime.
        """
        return self._identity == lock.identity

    @property
    def data_bytes(self) -> int:
        """How many bytes of the file are remembered with it."""
        return len(self._identity[-1])

    def age(self, kind: str, instant_ms: int, age: float, now: float) -> float:
        """Return an age in seconds; `age` is what the wall clock gives for `instant_ms`."""
        first = self.ages.get(kind)
        if first is None or first[0] != instant_ms:
            self.ages[kind] = (instant_ms, age, now)
            return age
        # Passes can nest. The outer one reads the clock as it was when that pass began.
        return first[1] + max(0.0, now - first[2])


class EarlierLocks:
    """Who took the locks of one agent's sessions before, within bounds."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, tuple[EarlierLock, ...]] = OrderedDict()

    def with_this(self, lock: Lock) -> tuple[EarlierLock, ...]:
        """Remember this lock; return it and the others of its session, the newest last."""
        record = lock.record
        known = self._of.get(lock.session, ())
        if record.pid is None or record.starttime is None or record.created_at_ms is None:
            return known
        taken = EarlierLock(record.created_at_ms, record.pid, record.starttime)
        if taken not in known:
            known = (*known, taken)[-_EARLIER_LOCKS:]
            self._of[lock.session] = known
            self._of.move_to_end(lock.session)
            if len(self._of) > _SESSIONS:
                self._of.popitem(last=False)
        return known
