"""Acts on a judgement."""

import os
from typing import Final, NamedTuple

from reaper.adapters.locks import removal
from reaper.adapters.locks.reading import OpenLock
from reaper.core.evidence import Evidence, HoldProof
from reaper.core.finding import Finding, Mode
from reaper.core.lock import Lock, LockKey
from reaper.core.policy import (
    GONE,
    Action,
    Outcome,
    Policy,
    decide,
    without_second_look,
)
from reaper.core.retry import Retry
from reaper.core.verdict import Judgement, Verdict
from reaper.sweep.memory import FailedRemoval
from reaper.sweep.plan import Plan
from reaper.sweep.sources import Clock


class _Done(NamedTuple):
    """The result of an action; the fields are those of a Finding."""

    outcome: Outcome | None
    note: str = ""
    retry: Retry | None = None
    attempted: bool = True


class Actor(NamedTuple):
    """Acts for one pass.

    `failures` has the removals that failed in earlier passes. A retry is due after at most
    `longest_retry` seconds.
    """

    plan: Plan
    policy: Policy
    clock: Clock
    failures: dict[LockKey, FailedRemoval]
    longest_retry: float

    def act(
        self, opened: OpenLock, key: LockKey, evidence: Evidence, judgement: Judgement, at: float
    ) -> Finding:
        """Act on one lock. Its ages are those at the moment `at` (monotonic seconds)."""
        unlock, is_other = self.plan.unlock, bool(opened.lock.kind)
        note = "" if opened.unread is None else opened.unread.note
        if not judgement.confirmed:
            judgement = without_second_look(judgement, self.policy, is_other=is_other)
        if self.plan.mode is Mode.LOOK:
            # What a sweep would do after its second look.
            action = decide(judgement._replace(confirmed=True), self.policy, is_other=is_other)
            done = _Done(None, note)
        elif unlock is not None and unlock.fingerprint != opened.lock.fingerprint:
            judgement = judgement._replace(pending=False)
            action = Action.KEEP
            done = _Done(Outcome.CHANGED, "another lock has its name now")
        else:
            action = decide(judgement, self.policy, is_other=is_other)
            forced = unlock is not None and unlock.force
            if forced:
                judgement = judgement._replace(pending=False)
                action = Action.REMOVE
            if action is Action.REMOVE and self.plan.mode is Mode.ACT:
                done = self._remove(opened, key, forced=forced)
            else:
                if action is not Action.REMOVE:
                    self.failures.pop(key, None)
                done = _WITHOUT_REMOVAL[action]
                if note:
                    done = done._replace(note=note)
            if done.outcome is Outcome.REMOVED and _may_be_held(evidence, judgement):
                notes = filter(None, (done.note, _RELEASE_BY_PATH))
                done = done._replace(note="; ".join(notes))
        return Finding(key, opened.lock, evidence, judgement, action, *done, at)

    def _remove(self, opened: OpenLock, key: LockKey, *, forced: bool) -> _Done:
        """Remove the lock, unless it is too early for another attempt."""
        now = self.clock.monotonic()
        failure = self.failures.get(key) if self.plan.remembers else None
        if failure is not None and failure.fingerprint not in {None, opened.lock.fingerprint}:
            failure = None
        if failure is not None and now < failure.retry.at:
            return _Done(failure.outcome, failure.note, failure.retry, attempted=False)
        attempt = removal.remove(opened, forced=forced)
        if not self.plan.remembers or attempt.outcome in GONE:
            self.failures.pop(key, None)
            return _Done(*attempt)
        before = None if failure is None else failure.retry
        retry = Retry.after(before, attempt.cause, now=now, longest=self.longest_retry)
        was_replaced = attempt.outcome in {Outcome.CHANGED, Outcome.RESTORED}
        fingerprint = None if was_replaced else _after_attempt(opened).fingerprint
        self.failures[key] = FailedRemoval(fingerprint, *attempt, retry)
        return _Done(*attempt, retry)


_WITHOUT_REMOVAL: Final = {
    Action.KEEP: _Done(Outcome.KEPT),
    Action.FLAG: _Done(Outcome.FLAGGED),
    Action.REMOVE: _Done(Outcome.WOULD_REMOVE),
}


def _after_attempt(opened: OpenLock) -> Lock:
    """Return the lock after an attempt to remove it, which may have changed its ctime."""
    return opened.lock._replace(ctime_ns=os.fstat(opened.fd).st_ctime_ns)


def _may_be_held(evidence: Evidence, judgement: Judgement) -> bool:
    """Whether a removed lock may have a holder that will release it."""
    judged_over = judgement.is_stuck and judgement.verdict is not Verdict.OVERDUE
    return evidence.proof is not HoldProof.NOT_OPEN and not judged_over


_RELEASE_BY_PATH: Final = (
    "if a gateway up to 2026.5.7 held this lock, that gateway may delete the next lock with this "
    "name"
)
