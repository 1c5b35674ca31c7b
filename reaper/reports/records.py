"""Findings as data: the schema of `--json`, and the result of a command as a whole.

docs/json.md describes the schema. Schema 1 only gains fields.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self

from reaper.core.evidence import Evidence
from reaper.core.lock import Lock, iso
from reaper.core.policy import GONE, Action, Outcome
from reaper.core.verdict import NO_HOLD_PROOF, OTHER_VERDICTS, TOO_EARLY, Judgement, Verdict
from reaper.reports.unmet import why_not_removed

if TYPE_CHECKING:
    from reaper.core.finding import Finding

SCHEMA: Final = 1

_NOT_LEFT: Final = GONE | {Outcome.CHANGED, Outcome.RESTORED}
"""Outcomes after which the lock that was judged stuck is gone."""


class Found(Protocol):
    """What was found about one lock, and done to it, as a pass yields it."""

    @property
    def lock(self) -> Lock: ...
    @property
    def evidence(self) -> Evidence: ...
    @property
    def judgement(self) -> Judgement: ...
    @property
    def action(self) -> Action: ...
    @property
    def outcome(self) -> Outcome | None: ...
    @property
    def note(self) -> str: ...


def lock_record(found: Found) -> dict[str, Any]:
    """Return one lock as `--json` shows it."""
    lock, evidence, judgement = found.lock, found.evidence, found.judgement
    record, not_removed = lock.record, why_not_removed(found)
    return {
        "path": lock.path,
        "state_dir": lock.state_dir,
        "agent": lock.agent,
        "session": lock.session,
        "session_key": evidence.run.session_key,
        "pid": record.pid,
        "starttime": record.starttime,
        "created_at": None if record.created_at_ms is None else iso(record.created_at_ms),
        "max_hold_ms": record.max_hold_ms,
        "fingerprint": lock.fingerprint,
        "age_seconds": round(evidence.age, 3),
        "holder": evidence.holder.state.value,
        "holder_pid": evidence.holder.pid,
        "hold_proof": evidence.proof.value,
        "run": evidence.run.state.value,
        "verdict": judgement.verdict.value,
        "reasons": list(judgement.reasons),
        "rule": judgement.row,
        "not_removed_because": None if not_removed is None else not_removed.code,
        "not_removed_text": None if not_removed is None else not_removed.text,
        "action": found.action.value,
        "outcome": None if found.outcome is None else found.outcome.value,
        "note": found.note,
    }


_OF_SESSIONS: Final = frozenset({"session", "session_key", "max_hold_ms", "run"})


def other_record(found: Found) -> dict[str, Any]:
    """Return a lock that is not a session lock as `--json` shows it."""
    record = lock_record(found)
    return {"kind": found.lock.kind} | {
        name: value for name, value in record.items() if name not in _OF_SESSIONS
    }


class TrackedLock(NamedTuple):
    """The latest finding about one lock. `at` is the moment until which its ages count (monotonic
    seconds).
    """

    lock: Lock
    evidence: Evidence
    judgement: Judgement
    action: Action
    outcome: Outcome | None
    at: float
    note: str = ""

    def age_at(self, now: float) -> float:
        """Return the lock's age at a later moment (monotonic seconds)."""
        return self.evidence.age + now - self.at

    @classmethod
    def of(cls, found: "Finding", before: Self | None = None) -> Self:
        """Make it from a new finding. What equals the finding `before` is taken from there: each
        pass reads a lock again, and what is kept of 10,000 locks should not move in memory.
        """
        lock, evidence = found.lock, found.evidence
        if before is not None and before.lock.identity == lock.identity:
            lock = before.lock if before.lock == lock else lock
            run = before.evidence.run if before.evidence.run == evidence.run else evidence.run
            evidence = evidence._replace(lock=lock, run=run)
        return cls(
            lock=lock,
            evidence=evidence,
            judgement=found.judgement,
            action=found.action,
            outcome=found.outcome,
            at=found.at,
            note=found.note,
        )


class SkippedFile(Protocol):
    """Something that was not looked at, and why."""

    @property
    def path(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def failed(self) -> bool: ...
    @property
    def note(self) -> str: ...
    @property
    def files(self) -> int: ...


class RecentAction(NamedTuple):
    """An action on one lock, or a report about it. It happened `times` times, last at `at_ms`
    (epoch).
    """

    record: dict[str, Any]
    at_ms: int
    times: int = 1


class Summary:
    """What a command found, counted."""

    def __init__(self) -> None:
        self.failed = self.unseen = 0
        self._locks: Counter[tuple[Verdict, tuple[str, ...], Outcome | None]] = Counter()
        """The session locks, by verdict, reasons and outcome."""
        self.others: Counter[Verdict] = Counter()
        self.others_stuck = self.others_unjudged = 0
        self.skipped: list[dict[str, str | None]] = []

    def count_lock(self, judgement: Judgement, outcome: Outcome | None) -> None:
        self._locks[judgement.verdict, judgement.reasons, outcome] += 1
        if outcome is Outcome.FAILED:
            self.failed += 1

    @property
    def locks(self) -> int:
        return self._locks.total()

    @property
    def stuck(self) -> int:
        return sum(
            number
            for (verdict, reasons, outcome), number in self._locks.items()
            if Judgement(verdict, reasons, row=0).is_stuck and outcome not in _NOT_LEFT
        )

    @property
    def unjudged(self) -> int:
        return sum(
            number
            for (verdict, reasons, _), number in self._locks.items()
            if verdict is Verdict.UNCERTAIN and NO_HOLD_PROOF in reasons
        )

    def count_other(self, judgement: Judgement, outcome: Outcome | None) -> None:
        """Count a lock that is not a session lock."""
        self.others[judgement.verdict] += 1
        self.failed += outcome is Outcome.FAILED
        self.others_stuck += judgement.is_stuck and outcome not in _NOT_LEFT
        is_early = TOO_EARLY in judgement.reasons
        self.others_unjudged += judgement.verdict is Verdict.UNCERTAIN and not is_early

    def count_skipped(
        self, *, path: str | None, reason: str, note: str | None, failed: bool
    ) -> None:
        """Count what was not looked at. Path and note are None for readers that may not see
        names.
        """
        self.skipped.append({"path": path, "reason": reason, "note": note})
        self.failed += failed
        self.unseen += failed

    def as_record(self) -> dict[str, Any]:
        verdicts: Counter[Verdict] = Counter()
        outcomes: Counter[Outcome | None] = Counter()
        for (verdict, _, outcome), number in self._locks.items():
            verdicts[verdict] += number
            outcomes[outcome] += number
        return {
            "locks": self.locks,
            "stuck": self.stuck,
            "failed": self.failed,
            "no_hold_proof": self.unjudged,
            "verdicts": {verdict.value: verdicts[verdict] for verdict in Verdict},
            "outcomes": {outcome.value: outcomes[outcome] for outcome in Outcome},
            "other_locks": {
                "locks": self.others.total(),
                "stuck": self.others_stuck,
                "not_judged": self.others_unjudged,
                "verdicts": {verdict.value: self.others[verdict] for verdict in OTHER_VERDICTS},
            },
            "skipped": self.skipped,
        }
