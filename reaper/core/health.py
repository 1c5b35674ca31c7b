"""When freeing locks is not enough: sessions that stick again, holders that are wedged.

All times are monotonic seconds that the caller reads.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Final

from reaper.core.evidence import Evidence, HolderState, HoldProof
from reaper.core.verdict import STUCK, Judgement

CHURN: Final = "churn"
STUCK_LOCKS: Final = "stuck-locks"
RESIDENT_MEMORY: Final = "resident-memory"
HOLDER_GONE: Final = "holder-gone"


def is_stuck_under_holder(evidence: Evidence, judgement: Judgement) -> bool:
    """Whether a live process keeps a session stuck: what a dead one left behind is no sign of how
    its successor does.
    """
    if judgement.verdict not in STUCK or evidence.lock.record.pid is None:
        return False
    return evidence.proof is HoldProof.OPEN or evidence.holder.state is HolderState.SAME


@dataclass(frozen=True, slots=True, kw_only=True)
class ChurnLimits:
    """`count` times stuck within `within` seconds is churn."""

    count: int = 3
    within: float = 600.0


_MOST_SESSIONS: Final = 10_000
"""Sessions that are remembered as stuck; a lock's name is no session's for sure."""


@dataclass(slots=True)
class _Stickings:
    last: str
    times: deque[float]


class Churn:
    """Remembers which session stuck how often under which holder, for as long as it counts."""

    def __init__(self, limits: ChurnLimits) -> None:
        self.limits = limits
        self._stuck: dict[tuple[Hashable, Hashable], _Stickings] = {}
        self._churned: dict[Hashable, deque[float]] = {}

    def note(self, holder: Hashable, session: Hashable, fingerprint: str, now: float) -> int:
        """Note that a session is stuck under a holder; return how often within the limit's time,
        this time included, where that is churn, else 0. The same lock counts once.
        """
        known = self._stuck.pop((holder, session), None) or _Stickings("", deque())
        self._stuck[holder, session] = known  # the latest one last
        if len(self._stuck) > _MOST_SESSIONS:
            del self._stuck[next(iter(self._stuck))]
        if known.last == fingerprint:
            return 0
        known.last = fingerprint
        known.times.append(now)
        while known.times[0] < now - self.limits.within:
            known.times.popleft()
        if len(known.times) < self.limits.count:
            return 0
        self._churned.setdefault(holder, deque()).append(now)
        return len(known.times)

    def of(self, holder: Hashable, now: float) -> int:
        """Return how often a session of this holder churned within the limit's time."""
        times = self._churned.get(holder, ())
        return sum(at >= now - self.limits.within for at in times)

    def forget(self, holder: Hashable) -> None:
        """Drop all of a holder that is gone."""
        self._churned.pop(holder, None)
        for key in [key for key in self._stuck if key[0] == holder]:
            del self._stuck[key]

    def forget_old(self, now: float) -> None:
        """Drop what is too old to count."""
        since = now - self.limits.within
        self._stuck = {key: it for key, it in self._stuck.items() if it.times[-1] >= since}
        for holder, times in list(self._churned.items()):
            while times and times[0] < since:
                times.popleft()
            if not times:
                del self._churned[holder]


@dataclass(frozen=True, slots=True, kw_only=True)
class WedgedLimits:
    """A holder that is at any of these for `after` seconds is wedged; None is no limit."""

    stuck_locks: int | None = 3
    churn: int | None = 3
    resident_bytes: int | None = None
    after: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a holder carries now; `resident_bytes` is None where that is not to be seen."""

    stuck_locks: int
    churn: int
    resident_bytes: int | None

    def at(self, limits: WedgedLimits) -> tuple[str, ...]:
        """Return which limits are reached."""
        reached = (
            (STUCK_LOCKS, self.stuck_locks, limits.stuck_locks),
            (CHURN, self.churn, limits.churn),
            (RESIDENT_MEMORY, self.resident_bytes, limits.resident_bytes),
        )
        return tuple(
            why
            for why, value, limit in reached
            if value is not None and limit is not None and value >= limit
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Whether a holder counts as wedged. `why` is what it is at now, or was when it became so;
    `since` when it became what it is; `turning_since` when it began to look otherwise;
    `looked_at` when that was last looked at.
    """

    wedged: bool = False
    why: tuple[str, ...] = ()
    since: float = 0.0
    turning_since: float | None = None
    looked_at: float = 0.0

    def next(self, why: tuple[str, ...], now: float, *, after: float, gap: float) -> "Standing":
        """Return the standing after another look. It turns, either way, only once all looks for
        `after` seconds have said so, with no more than `gap` seconds between two of them.
        """
        if bool(why) == self.wedged:
            return replace(self, why=why, turning_since=None, looked_at=now)
        since = self.turning_since
        if since is None or now - self.looked_at > gap:
            since = now
        if now - since < after:
            return replace(self, turning_since=since, looked_at=now)
        return Standing(wedged=bool(why), why=why, since=now, looked_at=now)
