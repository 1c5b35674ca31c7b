"""Where the worker reports to, and its reports on locks, with a bound for each agent."""

import time
from collections import Counter
from typing import Final

from reaper.core.finding import Finding, Skipped
from reaper.core.policy import Action, Outcome
from reaper.core.verdict import TOO_EARLY, Verdict
from reaper.reports.journal import Journal
from reaper.reports.metrics import Knowledge, Metrics
from reaper.reports.records import lock_record

_LINES_OF_AN_AGENT: Final = 50
"""Lines on the locks of one agent between two sweeps, those on removed locks not counted."""


class Reporter:
    def __init__(self, knowledge: Knowledge, metrics: Metrics, journal: Journal) -> None:
        self.knowledge = knowledge
        self.metrics = metrics
        self.journal = journal
        self._lines: Counter[tuple[str, str]] = Counter()
        self._skipped: set[tuple[str, str]] = set()

    def lock(self, found: Finding, *, changed: bool, is_new: bool) -> None:
        """Count and log an act, or a change of verdict; that a new lock is held is none."""
        would = found.outcome is Outcome.WOULD_REMOVE
        acted = found.action is Action.REMOVE and found.attempted and not would
        flagged = (found.action is Action.FLAG or would) and changed
        if acted:
            logged = found.retry is None or found.retry.is_news
        else:
            early = TOO_EARLY in found.judgement.reasons  # a release under way, as a rule
            held = is_new and found.judgement.verdict is Verdict.HELD
            logged = changed and not early and not held and found.attempted
        if not logged and not flagged and not acted:
            return
        record = lock_record(found)
        if acted or flagged:
            self.metrics.count_action(found)
            self.knowledge.remember(record, time.time_ns() // 1_000_000)
        if logged and self._has_line_left(found):
            event = found.outcome.value if found.outcome and (acted or would) else "verdict"
            self.journal.lock(event, record, found.lock, warn=found.outcome is Outcome.FAILED)

    def _has_line_left(self, found: Finding) -> bool:
        """Whether there may be another line on this agent's locks; always for a removed lock, whose
        record is nowhere else.
        """
        if found.outcome is Outcome.REMOVED:
            return True
        agent = found.lock.state_dir, found.lock.agent
        self._lines[agent] += 1
        return self._lines[agent] <= _LINES_OF_AN_AGENT

    def swept(self, skipped: list[Skipped]) -> None:
        """Log how many lines were left out, and what a sweep skipped: each file once, and again
        when it was not skipped in between.
        """
        self.knowledge.set_skipped(skipped)
        for file in skipped:
            if (file.path, file.reason) not in self._skipped:
                log = self.journal.warn if file.failed else self.journal.info
                log("skipped", path=file.path, reason=file.reason, note=file.note)
                if file.failed:
                    self.metrics.errors.labels("unreadable").inc()
        self._skipped = {(file.path, file.reason) for file in skipped}
        for (state_dir, agent), lines in self._lines.items():
            if lines > _LINES_OF_AN_AGENT:
                left_out = lines - _LINES_OF_AN_AGENT
                self.journal.warn(
                    "lines-left-out", state_dir=state_dir, agent=agent, lines=left_out
                )
        self._lines.clear()
