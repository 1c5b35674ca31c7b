"""The locks that are followed: what is known of each, and what a finding or an event changes."""

import math
from collections import Counter
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from reaper.core.evidence import HoldProof
from reaper.core.finding import Finding
from reaper.core.lock import Lock, LockKey, StateDir
from reaper.core.policy import Outcome
from reaper.core.retry import Retry
from reaper.reports.records import Seen
from reaper.watch.health_checks import HealthChecks
from reaper.watch.reporter import Reporter


@dataclass(slots=True)
class _Followed:
    """`key` is the one value by which the lock is followed: of equal keys only one is kept, because
    each pass has values of its own, and there may be 10,000 locks.

    `appeared_at` is set until the end of this hold is announced. Only events change it: a look may
    find the next lock under the same name before the end of the last one is announced.
    """

    key: LockKey
    announced_at: float = -math.inf
    appeared_at: float | None = None
    retry: Retry | None = None
    """Looks that failed; removals that failed are the Reaper's."""


class Tracker:
    """Follows at most `most_of_agent` locks of one agent because of events; those that a sweep
    finds have a bound of their own.
    """

    def __init__(
        self, reporter: Reporter, health: HealthChecks, *, most_of_agent: int, longest_retry: float
    ) -> None:
        self._reporter = reporter
        self._knowledge = reporter.knowledge
        self._metrics = reporter.metrics
        self._health = health
        self._most_of_agent = most_of_agent
        self._longest_retry = longest_retry
        self._followed: dict[LockKey, _Followed] = {}
        self._number_of: Counter[tuple[StateDir, str]] = Counter()

    def __contains__(self, key: LockKey) -> bool:
        return key in self._followed

    def keys(self) -> AbstractSet[LockKey]:
        return self._followed.keys()

    def has_room_for(self, key: LockKey) -> bool:
        """Whether this lock is followed already, or may be because of an event."""
        return key in self or self._number_of[key.state, key.agent] < self._most_of_agent

    def appeared(self, key: LockKey, at: float, *, is_new: bool) -> LockKey:
        """Follow a lock that an event announces; return the key by which it is followed. Not
        `is_new`: a removal gave it back, so its hold goes on.
        """
        lock = self._follow(key)
        lock.announced_at = at
        if is_new:
            lock.appeared_at = at
        return lock.key

    def ended(self, key: LockKey, at: float) -> None:
        """Record how long a hold lasted whose end an event announces."""
        lock, known = self._followed.get(key), self._knowledge.get(key)
        if lock is not None and lock.appeared_at is not None:
            self._metrics.hold.observe(at - lock.appeared_at)
            lock.appeared_at = None
        elif known is not None and known.evidence.proof is HoldProof.OPEN:
            self._metrics.hold.observe(max(0.0, known.age_at(at)))

    def update(self, found: Finding, now: float, *, due_since: float | None) -> LockKey | None:
        """Record, count and log what a lock is found to be; return the key by which it is followed,
        None where it is gone. `due_since` is since when it was due to be judged, if it was.
        """
        lock = self._follow(found.key)
        lock.retry = None
        before = self._knowledge.get(lock.key)
        seen = Seen.of(found, now, before)
        self._knowledge.put(lock.key, seen)
        is_new = before is None or not _is_same_lock(before.lock, found.lock)
        changed = is_new or before is None or _verdict(before) != _verdict(seen)
        self._reporter.lock(found, changed=changed, is_new=is_new)
        self._health.note(lock.key, seen)
        if found.outcome is Outcome.REMOVED:
            if not is_new and due_since is not None:
                self._metrics.reap_delay.observe(max(0.0, now - due_since))
            lock.appeared_at = None  # no hold that was completed
        return None if found.outcome in {Outcome.REMOVED, Outcome.VANISHED} else lock.key

    def retry(self, key: LockKey, why: str, now: float) -> tuple[LockKey, float]:
        """Return when to look again at what could not be looked at, later and later each time, and
        the key by which it is followed. A sweep looks at it as well.
        """
        lock = self._follow(key)
        lock.retry = Retry.after(lock.retry, why, now=now, longest=self._longest_retry)
        return lock.key, lock.retry.at

    def forget(self, key: LockKey, *, lost_before: float = -math.inf) -> None:
        """Forget a lock that is gone, but not when it appeared, where its end is still to be
        announced. If it appeared before `lost_before`, that event counts as lost.
        """
        self._knowledge.drop(key)
        lock = self._followed.get(key)
        if lock is None:
            return
        lock.retry = None
        if lock.appeared_at is None or lock.appeared_at < lost_before:
            del self._followed[key]
            agent = key.state, key.agent
            self._number_of[agent] -= 1
            if not self._number_of[agent]:
                del self._number_of[agent]

    def unmet(self, met: AbstractSet[LockKey], started: float) -> list[LockKey]:
        """Return the locks that a sweep did not meet, except those announced since it `started`."""
        return [
            key
            for key, lock in self._followed.items()
            if key not in met and lock.announced_at < started
        ]

    def _follow(self, key: LockKey) -> _Followed:
        lock = self._followed.get(key)
        if lock is None:
            lock = self._followed[key] = _Followed(key)
            self._number_of[key.state, key.agent] += 1
        return lock


def _is_same_lock(before: Lock, now: Lock) -> bool:
    """Whether it is the same file with the same content; removal attempts change its times."""
    return (before.file.device, before.file.inode, before.data) == (
        now.file.device,
        now.file.inode,
        now.data,
    )


def _verdict(seen: Seen) -> tuple[object, ...]:
    return seen.judgement.verdict, seen.judgement.reasons
