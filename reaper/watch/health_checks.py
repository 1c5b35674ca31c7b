"""When to look how the holders do, and what to report of it."""

import math

from reaper.core.health import CHURN
from reaper.core.lock import LockKey
from reaper.gateway_health import GatewayHealth, health_record
from reaper.reports.records import Seen
from reaper.watch.reporter import Reporter


class HealthChecks:
    def __init__(self, health: GatewayHealth, reporter: Reporter) -> None:
        self._health = health
        self._reporter = reporter
        self._next = 0.0

    def note(self, key: LockKey, seen: Seen) -> None:
        """Report a session that got stuck again and again under one holder."""
        times = self._health.note(key, seen)
        if not times:
            return
        self._reporter.metrics.count_churn()
        self._reporter.journal.warn(
            "churn",
            state_dir=seen.lock.state_dir,
            agent=seen.lock.agent,
            session=seen.lock.session,
            session_key=seen.evidence.run.session_key,
            pid=seen.lock.record.pid,
            reasons=[CHURN],
            stuck_times=times,
            within_seconds=self._health.churn_limits.within,
        )

    def swept(self, now: float) -> None:
        self._next = now

    def next(self) -> float:
        """Return when to check again, infinity where nobody asked for it."""
        return math.inf if self._health.limits is None else self._next

    def check(self, now: float) -> None:
        """Check the holders: as often as that was asked for, else after each full sweep."""
        if now < self._next:
            return
        asked = self._health.limits is not None
        self._next = now + self._health.check_every if asked else math.inf
        for holder in self._health.check(self._reporter.knowledge.all(), now):
            wedged = holder.standing.wedged
            log = self._reporter.journal.warn if wedged else self._reporter.journal.info
            log("wedged" if wedged else "wedged-no-more", **health_record(holder, now))
