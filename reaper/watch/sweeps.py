"""When the next full sweep is due, and what the last one skipped."""

import os
from collections import Counter
from typing import Final

from reaper.core.finding import Finding, Skipped
from reaper.core.retry import Retry
from reaper.sweep import LEFTOVER, TOO_MANY_LOCKS, hides_locks
from reaper.watch.event_trust import DEGRADED_RESYNC, EventTrust
from reaper.watch.reporter import Reporter

_WHILE_LEFTOVER: Final = 12
"""Sweeps in a row that come sooner because a lock is still under a private name."""
_FOLDERS_SETTLE: Final = 1.0
"""Seconds between two sweeps because folders appeared or went."""
_NAMED: Final = 100
"""Files that one sweep skips in one folder for one reason and reports by name. Others are only
counted."""


class SkippedFiles:
    """What one sweep skips. Memory is bounded for each folder and reason. If an agent has more
    locks than `most_remembered`, those beyond are skipped.
    """

    def __init__(self, most_remembered: int) -> None:
        self._most_remembered = most_remembered
        self._found: dict[tuple[str, str], Skipped] = {}
        self._named: Counter[tuple[str, str]] = Counter()
        self.not_ready_because = ""
        """Why locks may be there that this sweep did not see, empty if it saw every folder; a
        single file does not count, because any agent can make one that nobody can read."""

    def add(self, skipped: Skipped) -> None:
        if skipped.key is None and hides_locks(skipped):
            self.not_ready_because = self.not_ready_because or _why_not_ready(skipped)
        folder = os.path.dirname(skipped.path)
        if (skipped.path, skipped.reason) not in self._found:
            if self._named[folder, skipped.reason] >= _NAMED:
                skipped = skipped._replace(path=folder, note="further files in this folder")
            else:
                self._named[folder, skipped.reason] += 1
        key = skipped.path, skipped.reason
        before = self._found.get(key)
        if before is not None:
            skipped = before._replace(files=before.files + skipped.files)
        self._found[key] = skipped

    @property
    def has_leftover(self) -> bool:
        """Whether a lock that may be live is without its name because a removal was interrupted."""
        return any(found.failed and found.reason == LEFTOVER for found in self._found.values())

    def all(self) -> list[Skipped]:
        return [
            found._replace(note=self._too_many_note(found.files))
            if found.reason == TOO_MANY_LOCKS
            else found
            for found in self._found.values()
        ]

    def _too_many_note(self, files: int) -> str:
        return (
            f"{files} locks are looked at in full sweeps only, because {self._most_remembered} of "
            "this agent are followed already; find out what creates them, and remove what is no "
            "session's"
        )


def _why_not_ready(skipped: Skipped) -> str:
    """Say why a folder was not seen, without its name, which clients may not see."""
    match skipped.reason, os.path.basename(skipped.path):
        case "missing", "agents":
            return "a state directory has no agents folder"
        case "missing", _:
            return "a folder is missing"
    return f"a folder cannot be read ({skipped.reason})"


class Sweeps:
    """When full sweeps are due."""

    def __init__(self, trust: EventTrust, reporter: Reporter, *, longest_retry: float) -> None:
        self.not_ready_because = "the first sweep has not ended"
        """Why the last sweep did not see every folder, empty if it did."""
        self._trust = trust
        self._longest_retry = longest_retry
        self._reporter = reporter
        self._ended_at = 0.0
        self._folders_changed = False
        self._sweeps_with_leftover = 0
        self._retry: Retry | None = None

    @property
    def interval(self) -> float:
        """Seconds from one sweep to the next."""
        soon = 0 < self._sweeps_with_leftover <= _WHILE_LEFTOVER
        interval = self._trust.resync_interval
        return min(interval, DEGRADED_RESYNC) if soon else interval

    def next(self) -> float:
        """Return when the next sweep is due."""
        at = self._ended_at + self.interval if self._retry is None else self._retry.at
        return min(at, self._ended_at + _FOLDERS_SETTLE) if self._folders_changed else at

    def folders_changed(self) -> None:
        """Sweep soon. One sweep a second sees all changes of folders."""
        self._folders_changed = True

    def ended(self, started: float, now: float, files: SkippedFiles) -> None:
        self._reporter.swept(files.all())
        self._reporter.metrics.sweep_duration.observe(now - started)
        self._reporter.metrics.last_sweep.set_to_current_time()
        self.not_ready_because = files.not_ready_because
        self._sweeps_with_leftover = self._sweeps_with_leftover + 1 if files.has_leftover else 0
        self._folders_changed = False
        self._ended_at = now

    def saw_others(self, found: list[Finding]) -> None:
        """Report the locks that are not session locks, as a full sweep found them."""
        self._reporter.others(found)

    def failed(self, error: OSError, now: float) -> None:
        """Sweep again later, and later each time, because a system call failed."""
        self._reporter.metrics.errors.labels("sweep").inc()
        self._retry = Retry.after(self._retry, str(error), now=now, longest=self._longest_retry)
        self._folders_changed = False
        if self._retry.is_news:
            self._reporter.journal.warn("sweep-failed", why=str(error))

    def step_ended(self) -> None:
        """Forget the failures after a sweep, and everything that the worker did after it, went
        well.
        """
        if self._retry is not None and self._ended_at >= self._retry.at:
            self._retry = None
