"""The locks that are followed: what is known about each, and what a finding or an event changes."""

import math
from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from reaper.core.evidence import HolderState, HoldProof
from reaper.core.finding import Finding
from reaper.core.lock import LockKey, StateDir
from reaper.core.policy import GONE, Outcome
from reaper.core.retry import Retry
from reaper.gateway_health import GatewayHealth
from reaper.reports.records import TrackedLock
from reaper.watch.deadlines import Deadlines
from reaper.watch.holders import HolderWatch, Watched
from reaper.watch.inbox import SETTLE
from reaper.watch.probed_holders import ProbedHolders
from reaper.watch.reporter import Reporter

_RETRY: Final = 1.0
"""Seconds until a lock whose holder has just exited is judged again."""
_SOONEST: Final = 0.01
"""The shortest time until the same lock is due again, in seconds."""
_EVENT_LOST: Final = 10.0
"""Seconds from the appearance of a lock. If a sweep that begins after them does not find the lock,
the event of its end counts as lost."""


@dataclass(slots=True)
class _Followed:
    """`key` is the one object by which the lock is followed. Each pass has keys of its own, and
    keeping equal ones for 10,000 locks would waste memory.

    `announced_at` is when the last event announced it, so that a sweep that is past its folder does
    not forget it. `appeared_at` is set until the end of this hold is announced, the reaper removes
    the lock, or the event of its end is lost. A look does not set it, because it may find the next
    lock under the same name before the end of the last one is announced.
    """

    key: LockKey
    announced_at: float = -math.inf
    appeared_at: float | None = None
    retry: Retry | None = None
    """Looks that failed. The Reaper has the removals that failed."""


class Tracker:
    """Makes the next change of each lock wake the worker. An event adds no lock to an agent with
    `most_per_agent` followed ones; for locks that a sweep finds, the sweep has its own bound.
    """

    def __init__(
        self,
        reporter: Reporter,
        health: GatewayHealth,
        deadlines: Deadlines,
        holders: HolderWatch,
        probed_holders: ProbedHolders,
        *,
        most_per_agent: int,
        longest_retry: float,
    ) -> None:
        self._reporter = reporter
        self._health = health
        self._deadlines = deadlines
        self._holders = holders
        self._probed_holders = probed_holders
        self._most_per_agent = most_per_agent
        self._longest_retry = longest_retry
        self._followed: dict[LockKey, _Followed] = {}
        self._number_of: Counter[tuple[StateDir, str]] = Counter()

    def __contains__(self, key: LockKey) -> bool:
        return key in self._followed

    def keys(self) -> AbstractSet[LockKey]:
        return self._followed.keys()

    def appeared(self, key: LockKey, at: float, *, is_new: bool) -> bool:
        """Follow a lock that an event announces. Return False if its agent has too many. If it is
        not `is_new`, a removal put it back, so its hold goes on.
        """
        if key not in self and self._number_of[key.state, key.agent] >= self._most_per_agent:
            return False
        lock = self._follow(key)
        lock.announced_at = at
        if is_new:
            lock.appeared_at = at
        self._deadlines.set(lock.key, at + SETTLE)
        return True

    def ended(self, key: LockKey, at: float) -> None:
        """Forget a lock whose end an event announces, and record how long it was held."""
        lock, known = self._followed.get(key), self._reporter.inventory.get(key)
        if lock is not None and lock.appeared_at is not None:
            self._reporter.metrics.hold.observe(at - lock.appeared_at)
            lock.appeared_at = None
        elif known is not None and known.evidence.proof is HoldProof.OPEN:
            self._reporter.metrics.hold.observe(max(0.0, known.age_at(at)))
        self.forget(key)

    def update(self, found: Finding, now: float, *, due_since: float | None = None) -> None:
        """Record, count and log a finding, and wait for the next change of its lock. `due_since` is
        since when the lock was due to be judged, if it was.
        """
        lock = self._follow(found.key)
        lock.retry = None
        before = self._reporter.inventory.get(lock.key)
        seen = TrackedLock.of(found, before)
        self._reporter.inventory.put(lock.key, seen)
        is_new = before is None or before.lock.hold != found.lock.hold
        changed = is_new or before is None or _verdict(before) != _verdict(seen)
        self._reporter.lock(found, changed=changed, is_new=is_new)
        self._health.add(seen)
        if found.outcome is Outcome.REMOVED:
            if not is_new and due_since is not None:
                self._reporter.metrics.reap_delay.observe(max(0.0, now - due_since))
            lock.appeared_at = None  # the holder did not release it
        if found.outcome in GONE:
            self.forget(lock.key)
        else:
            self._wait_for(lock.key, found, now)

    def _wait_for(self, key: LockKey, found: Finding, now: float) -> None:
        holder = found.evidence.holder
        pid = holder.pid if holder.state is HolderState.SAME else None
        watched = self._holders.watch(key, pid, found.lock.record.starttime)
        at = math.inf
        if watched is Watched.EXITED:
            at = now + _RETRY
        elif found.retry is not None:
            at = found.retry.at
        elif found.judgement.due_in is not None:
            at = now + max(_SOONEST, found.judgement.due_in)
        self._deadlines.set(key, at)
        self._probed_holders.discard(key)
        if watched is not Watched.YES and found.evidence.proof is HoldProof.OPEN:
            self._probed_holders.add(key, found.lock, now)

    def look_again(self, key: LockKey, why: str, now: float) -> None:
        """Look again, later and later each time, at what could not be looked at. A sweep does so
        too.
        """
        lock = self._follow(key)
        lock.retry = Retry.after(lock.retry, why, now=now, longest=self._longest_retry)
        self._deadlines.set(lock.key, lock.retry.at)

    def forget(self, key: LockKey) -> None:
        """Forget a lock that is gone. Keep only `appeared_at`, until its end is announced."""
        self._deadlines.set(key, math.inf)
        self._probed_holders.discard(key)
        self._holders.release(key)
        self._reporter.inventory.drop(key)
        lock = self._followed.get(key)
        if lock is None:
            return
        lock.retry = None
        if lock.appeared_at is None:
            del self._followed[key]
            agent = key.state, key.agent
            self._number_of[agent] -= 1
            if not self._number_of[agent]:
                del self._number_of[agent]

    def forget_all_but(
        self, seen: AbstractSet[LockKey], hidden: Callable[[LockKey], bool], started: float
    ) -> None:
        """Forget what a full sweep did not find, except what was announced since it `started` and
        what may be where it could not look.
        """
        for key, lock in list(self._followed.items()):
            if key in seen or lock.announced_at >= started or hidden(key):
                continue
            # The event of the end may still come, unless the lock appeared long ago.
            if lock.appeared_at is not None and lock.appeared_at < started - _EVENT_LOST:
                lock.appeared_at = None
            self.forget(key)

    def _follow(self, key: LockKey) -> _Followed:
        lock = self._followed.get(key)
        if lock is None:
            lock = self._followed[key] = _Followed(key)
            self._number_of[key.state, key.agent] += 1
        return lock


def _verdict(seen: TrackedLock) -> tuple[object, ...]:
    return seen.judgement.verdict, seen.judgement.reasons
