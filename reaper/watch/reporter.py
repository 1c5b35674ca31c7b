"""Where the worker reports to, and its reports on locks, with a bound for each agent."""

import math
import os
import time
from collections import Counter
from typing import Final

from reaper.core.finding import Finding, Skipped
from reaper.core.policy import Action, Outcome
from reaper.core.verdict import RECOVERY_PENDING, TOO_EARLY, Verdict
from reaper.reports.inventory import LockInventory
from reaper.reports.journal import Journal
from reaper.reports.metrics import Metrics
from reaper.reports.records import TrackedLock, lock_record, other_record

_PERIOD: Final = 60.0
"""Seconds for which the bounds below hold at least, because an agent can make sweeps frequent."""
_LINES_OF_AN_AGENT: Final = 50
"""Lines on the locks of one agent, not counting those on removed locks."""
_SKIPPED_IN_A_FOLDER: Final = 100
_SKIPPED_IN_ALL: Final = 1000
"""Lines on what was skipped. New folders can be made as easily as new files."""


class Reporter:
    def __init__(self, inventory: LockInventory, metrics: Metrics, journal: Journal) -> None:
        self.inventory = inventory
        self.metrics = metrics
        self.journal = journal
        self._others: dict[tuple[object, ...], object] = {}
        self._period_began = -math.inf
        self._lines: Counter[tuple[str, str]] = Counter()
        self._left_out: Counter[tuple[str, str]] = Counter()
        """Lines that were left out in this period, as far as that was reported."""
        self._skipped: set[tuple[str, str]] = set()
        self._not_logged: set[tuple[str, str]] = set()
        self._skipped_lines: Counter[str] = Counter()

    def lock(self, found: Finding, *, changed: bool, is_new: bool) -> None:
        """Count and log an action or a change of verdict. That a new lock is held is not logged."""
        would = found.outcome is Outcome.WOULD_REMOVE
        acted = found.action is Action.REMOVE and found.attempted and not would
        flagged = (found.action is Action.FLAG or would) and changed
        if acted:
            logged = found.retry is None or found.retry.is_news
        else:
            early = TOO_EARLY in found.judgement.reasons  # usually a release in progress
            held = is_new and found.judgement.verdict is Verdict.HELD
            logged = changed and not early and not held and found.attempted
        if not logged and not flagged and not acted:
            return
        record = lock_record(found)
        if acted or flagged:
            self.metrics.count_action(found)
            self.inventory.remember(record, time.time_ns() // 1_000_000)
        if logged and self._has_line_left(found):
            event, warn = _event(found)
            self.journal.lock(event, record, found.lock, warn=warn)

    def others(self, found: list[Finding]) -> None:
        """Log what has changed in the other locks, as a full sweep found them."""
        before, self._others = self._others, {}
        lines = left_out = 0
        for one in found:
            removal = one.action is Action.REMOVE and one.outcome is not Outcome.WOULD_REMOVE
            if removal and one.attempted and one.outcome is Outcome.FAILED:
                self.metrics.errors.labels("removal").inc()
            known = one.lock.identity, one.judgement.verdict, one.outcome
            self._others[one.key] = known
            plain = one.judgement.verdict is Verdict.HELD or TOO_EARLY in one.judgement.reasons
            if plain or before.get(one.key) == known:
                continue
            lines += 1
            if one.outcome is Outcome.REMOVED or lines <= _LINES_OF_AN_AGENT:
                event, warn = _event(one)
                self.journal.lock(event, other_record(one), one.lock, warn=warn)
            else:
                left_out += 1
        if left_out:
            self.journal.warn("lines-left-out", of="other locks", lines=left_out)
        self.inventory.set_others([TrackedLock.of(one) for one in found])

    def _has_line_left(self, found: Finding) -> bool:
        """Whether another line on this agent's locks may be written. Always for a removed lock,
        because its record is nowhere else.
        """
        if found.outcome is Outcome.REMOVED:
            return True
        agent = found.lock.state_dir, found.lock.agent
        self._lines[agent] += 1
        return self._lines[agent] <= _LINES_OF_AN_AGENT

    def swept(self, skipped: list[Skipped]) -> None:
        """Log what a sweep skipped, and how many lines were left out. Each file is logged once, and
        again after a sweep that did not skip it; what exceeds the bound, in a later period.
        """
        self.inventory.set_skipped(skipped)
        now = time.monotonic()
        is_over = now - self._period_began >= _PERIOD
        self._log_skipped(skipped)
        for (state_dir, agent), lines in self._lines.items():
            left_out = lines - _LINES_OF_AN_AGENT - self._left_out[state_dir, agent]
            if left_out > 0 and (is_over or not self._left_out[state_dir, agent]):
                self.journal.warn(
                    "lines-left-out", state_dir=state_dir, agent=agent, lines=left_out
                )
                self._left_out[state_dir, agent] += left_out
        if is_over:
            if self._not_logged:
                self.journal.warn("lines-left-out", of="skipped", lines=len(self._not_logged))
            self._period_began = now
            self._lines.clear()
            self._left_out.clear()
            self._skipped_lines.clear()

    def _log_skipped(self, skipped: list[Skipped]) -> None:
        not_logged = set()
        for file in skipped:
            name = file.path, file.reason
            is_new = name not in self._skipped
            if is_new and file.failed:
                self.metrics.errors.labels("unreadable").inc()
            if not is_new and name not in self._not_logged:
                continue
            folder = os.path.dirname(file.path)
            if (
                self._skipped_lines[folder] < _SKIPPED_IN_A_FOLDER
                and self._skipped_lines.total() < _SKIPPED_IN_ALL
            ):
                self._skipped_lines[folder] += 1
                log = self.journal.warn if file.failed else self.journal.info
                log("skipped", path=file.path, reason=file.reason, note=file.note)
            else:
                not_logged.add(name)
        self._skipped = {(file.path, file.reason) for file in skipped}
        self._not_logged = not_logged


def _event(found: Finding) -> tuple[str, bool]:
    """Return the event's name, and whether a person must know it: a lock stays stuck, or
    unjudged.
    """
    match found:
        case Finding(action=Action.FLAG) | Finding(outcome=Outcome.FLAGGED):
            return "stuck", True
        case Finding(action=Action.REMOVE, outcome=Outcome() as outcome):
            return outcome.value, outcome in {Outcome.FAILED, Outcome.WOULD_REMOVE}
        case _ if found.judgement.verdict is Verdict.UNCERTAIN:
            return "not-judged", True
        case _ if RECOVERY_PENDING in found.judgement.reasons:
            return "kept", False
        case _:
            return "held", False
